"""Gradual unfreezing: plan, strategies and the callback that applies them."""
