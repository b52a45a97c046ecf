"""Data sets of torchvision, and of anybody's own, by the name of their class."""
