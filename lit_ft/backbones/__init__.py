"""Pretrained networks as backbones: ordered, named stages from a name or a module, with weights and input format."""

HEAD = "head"
"""The name of the last stage of a module, which the new head is."""
