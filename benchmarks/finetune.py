"""One epoch of a new head and three of the whole network, as fastai's `fine_tune`, by lit_ft and its peers.

    LIT_FT_DATA=FOLDER python benchmarks/finetune.py [--rounds 5] [--models resnet18 ...] [--contestants lit_ft ...]

Augmented photos of 224 pixels, batches of 32, float32, AdamW at 1e-3 and smaller rates for the network, one thread. The
rates are constant, but for lit_ft's (warm-up and cosine, 0.6 a stage), fastai's (one cycle) and those of Lightning's
callback, which doubles the network's at each epoch: compare times.
All else is as in ``probe.py``.
"""

from __future__ import annotations

from peers.contest import hold, parser, turns
from peers.table import tables


def main() -> None:
    """Prints the tables."""
    args = parser(__doc__, "finetune.jsonl").parse_args()
    kinds = [{"augment": True, "head_epochs": 1, "full_epochs": 3}]
    print(tables(hold(args.results, turns(args, kinds, args.contestants))))


if __name__ == "__main__":
    main()
