"""Cutting of a network into stages: its graph, the cuts, and the proof that nothing changed."""
