"""Explanations: where in photos a model finds its evidence, and what fine-tuning changed, stage by stage."""
