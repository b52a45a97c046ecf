"""Weights: reading, checking, loading and downloading."""
