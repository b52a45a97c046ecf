"""The parts of ``benchmarks/gpu.py``: what each measures, in a process of its own and a time of its own."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A part.

    Args:
        home: The module with the function of its name.
        title: What it measures.
        weight: Its share of the time.
    """

    home: str
    title: str
    weight: float


PARTS = {
    "tests": Part("tests", "tests marked `gpu`", 32),
    "share": Part("steps", "training at 224 px", 30),
    "cifar": Part("steps", "training at 32 px", 10),
    "photos": Part("photos", "photos", 12),
    "heads": Part("heads", "batched solver", 8),
    "memory": Part("memory", "memory of the phases", 8),
}
"""The parts, the one first whose result is worth most."""
