"""What cached views of augmented photos cost and give: thirty epochs of a head on SqueezeNet 1.1, flowers5, one thread.

    LIT_FT_DATA=FOLDER python benchmarks/views.py [--rounds 5] [--views 1 2 4 10 0]

Random crops, mirrored; with 0 views each epoch computes its own. All else is as in ``flowers.py``.
"""

from __future__ import annotations

from flowers import LIT_FT
from peers.contest import hold, parser, turns
from peers.table import spread


def main() -> None:
    """Prints the table."""
    options = parser(__doc__, "views.jsonl")
    options.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 10, 0])
    args = options.parse_args()
    args.models = ["squeezenet1_1"]
    chosen = {views: [*LIT_FT, f"--feature_cache.views={views}"] for views in args.views}
    kinds = [{"augment": True, "head_epochs": 30, "full_epochs": 0, "options": given} for given in chosen.values()]
    held = hold(args.results, turns(args, kinds, ["lit_ft"]))
    print("| views | CPU seconds | accuracy, % |\n|---|---|---|")
    for views, given in chosen.items():
        mine = [turn for turn in held if turn["options"] == given]
        accuracy = spread([100 * turn["accuracies"][-1] for turn in mine], ".1f")
        print(f"| {views or 'off'} | {spread([turn['cpu_seconds'] for turn in mine], '.1f')} | {accuracy} |")


if __name__ == "__main__":
    main()
