"""What a module does around its steps in a fit: checks, metrics, divergence, finders, state."""
