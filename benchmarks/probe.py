"""Ten epochs of a new head on a frozen network, by lit_ft and by what a user would pick instead.

    LIT_FT_DATA=FOLDER python benchmarks/probe.py [--rounds 5] [--models resnet18 ...] [--contestants lit_ft ...]

Photos of 224 pixels, with and without augmentation, batches of 32, float32, AdamW at 1e-3, one thread. Peers are
installed into environments of their own below ``benchmarks/.environments``; FOLDER has ``flowers5``. What was measured
is kept there, so that the command can be interrupted, and goes on where it was.
"""

from __future__ import annotations

from peers.contest import hold, parser, turns
from peers.table import tables


def main() -> None:
    """Prints the tables."""
    options = parser(__doc__, "probe.jsonl")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--augment", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    args = options.parse_args()
    kinds = [{"augment": word == "yes", "head_epochs": args.epochs, "full_epochs": 0} for word in args.augment]
    print(tables(hold(args.results, turns(args, kinds, args.contestants))))


if __name__ == "__main__":
    main()
