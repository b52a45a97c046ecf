"""Cached features: outputs of the frozen stages, computed once."""
