"""Arrays of images and labels in files: what they are called, and reading them without running code."""
