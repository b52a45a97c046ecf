"""Runs a part: ``python -m gpu_parts PART``, as ``benchmarks/gpu.py`` starts it."""

from __future__ import annotations

import argparse
import logging
import warnings
from importlib import import_module
from pathlib import Path

from gpu_parts import PARTS
from gpu_parts.measuring import TINY, Measuring, Sizes


def main() -> None:
    """Measures until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--until", type=float, required=True, help="seconds since 1970")
    parser.add_argument("--rows", type=Path, required=True)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sizes = Sizes() if args.device == "cuda" else TINY
    measure = getattr(import_module(f"gpu_parts.{PARTS[args.part].home}"), args.part)
    measure(Measuring(sizes, args.rounds, args.until, args.rows))


if __name__ == "__main__":
    main()
