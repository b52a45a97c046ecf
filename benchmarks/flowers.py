"""Seconds, after start-up, until a share of flowers5's validation photos is told right: SqueezeNet 1.1, one thread.

    LIT_FT_DATA=FOLDER python benchmarks/flowers.py [--rounds 5] [--goals 0.8 0.835]

lit_ft trains the head for thirty epochs, or from two random crops of each photo, and then all for four; fastai its
own five and four (`fine_tune`); by hand, a logistic regression on features that are computed once. FOLDER has
``flowers5`` and ``weights/torchvision_squeezenet1_1.pth``. All else is as in ``probe.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peers.contest import hold, parser, turns
from peers.table import Turn, spread

# The head's objective is the regression's, whose C of 0.01 is the best of several by the same validation photos; so are
# learning rate and epochs here: what both reach is optimistic.
LIT_FT = [
    "--model.lr=3e-3", "--lr_scheduler=WarmupCosine", "--model.head.zero_init=true", "--model.penalty.kind=l2",
    "--model.penalty.head_strength=0.2", "--model.penalty.strength=0", "--feature_cache.views=2",
]  # fmt: skip
KINDS: dict[str, list[dict[str, Any]]] = {
    "lit_ft": [
        {"augment": False, "head_epochs": 30, "full_epochs": 0, "options": LIT_FT},
        {"augment": True, "head_epochs": 30, "full_epochs": 4, "options": LIT_FT},
    ],
    "by hand, features once": [{"augment": False, "head_epochs": 1, "full_epochs": 0}],
    "fastai": [{"augment": True, "head_epochs": 5, "full_epochs": 4}],
}


def line(turns: Sequence[Turn], goals: Sequence[float]) -> str:
    """A contestant's line of the table: in how many rounds it came to each goal, and the seconds that took."""
    one = turns[0]
    images = "random crops" if one["augment"] else "no augmentation"
    cells = [f"{one['contestant']}, {one['head_epochs']} + {one['full_epochs']} epochs, {images}"]
    for goal in goals:
        # Accuracies are of float32, and may be less than the goal by rounding.
        epochs = [zip(turn["ends"], turn["accuracies"], strict=True) for turn in turns]
        passed = [[end for end, accuracy in both if accuracy > goal - 1e-4] for both in epochs]
        reached = [ends[0] for ends in passed if ends]
        cells.append(f"{spread(reached, '.1f')} ({len(reached)} of {len(turns)})")
    cells.append(spread([turn["seconds"] for turn in turns], ".1f"))
    cells.append(spread([100 * turn["accuracies"][-1] for turn in turns], ".1f") + "%")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    options = parser(__doc__, "flowers.jsonl")
    options.add_argument("--goals", type=float, nargs="+", default=[0.8, 0.825, 0.835])
    args = options.parse_args()
    args.models = ["squeezenet1_1"]
    wanted = [turn for name in args.contestants if name in KINDS for turn in turns(args, KINDS[name], [name])]
    held = hold(args.results, sorted(wanted, key=lambda turn: turn["round"]))
    print("| | " + " | ".join(f"seconds to {goal:.1%}" for goal in args.goals) + " | seconds in all | at the end |")
    print("|---" * (len(args.goals) + 3) + "|")
    for name, kinds in KINDS.items():
        for kind in kinds:
            mine = [turn for turn in held if turn["contestant"] == name and kind.items() <= turn.items()]
            if mine:
                print(line(mine, args.goals))


if __name__ == "__main__":
    main()
