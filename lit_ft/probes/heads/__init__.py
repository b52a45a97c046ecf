"""Linear heads on features, solved to their optimum, and their cross-validation."""
