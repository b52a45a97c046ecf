"""Collections of networks that a backbone can be built from."""
