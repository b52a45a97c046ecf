"""What curves, pictures and tables cost a run: CPU seconds of what makes them, by those of the rest.

Counted are all hooks of `RunReport`, what it keeps of each validation, TensorBoard's logger, its thread and its import;
and apart from these the page of the run. So no difference of two runs is needed, of which each varies by more.

    LIT_FT_DATA=FOLDER python benchmarks/pictures.py [--rounds 3] [--recipes quickstart image_folder]

FOLDER has ``flowers5`` and ``weights/torchvision_squeezenet1_1.pth``, for ``image_folder`` without its refit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from peers.table import spread
from watch import HERE, in_process

DATA = Path(os.environ.get("LIT_FT_DATA", "data"))
RECIPES = {
    "quickstart": [],
    "image_folder": [
        "--data.root", str(DATA / "flowers5"), "--model.backbone", "squeezenet1_1",
        "--model.weights", str(DATA / "weights" / "torchvision_squeezenet1_1.pth"), "--refit", "false",
    ],
}  # fmt: skip


class Account:
    """CPU seconds of a thread within some functions; those that one calls of the others count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def count(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose seconds count."""

        @wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            begin, self._depth = time.thread_time(), self._depth + 1
            try:
                return function(*args, **options)
            finally:
                self._depth -= 1
                self.seconds += 0.0 if self._depth else time.thread_time() - begin

        return counted


def run(to: str, args: list[str]) -> None:
    """Runs lit-ft in this process, and writes the seconds of the pictures, the page, and the whole."""
    from lit_ft.cli import lightning, main
    from lit_ft.evaluation.run_report import RunReport
    from lit_ft.evaluation.tensorboard import BoardLogger
    from lit_ft.training.selected import OutputRecorder

    pictures, thread, page = Account(), Account(), Account()
    pictures.count(lambda: import_module("torch.utils.tensorboard"))()
    writes = import_module("tensorboard.summary.writer.event_file_writer")._AsyncWriterThread
    writes.run = thread.count(writes.run)
    own = ("setup", "log_metrics", "log_hyperparams", "save", "finalize", "_note")
    for kind in (RunReport, BoardLogger, OutputRecorder):
        for name in dir(kind):
            if name in own or (name.startswith("on_") and name in vars(kind)):
                setattr(kind, name, pictures.count(getattr(kind, name)))
    lightning.render_report = page.count(lightning.render_report)
    if main(args):
        raise SystemExit(1)
    found = {"pictures": pictures.seconds + thread.seconds, "page": page.seconds, "all": time.process_time()}
    Path(to).write_text(json.dumps(found))


def main() -> None:
    """Prints a row for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each runs")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    args = parser.parse_args()
    print(
        "| recipe | CPU seconds of all | curves and pictures, by the rest | the page, by the rest |\n|---|---|---|---|"
    )
    for recipe in args.recipes:
        config = str(HERE.parent / "configs" / f"{recipe}.yaml")
        options = [*RECIPES[recipe], "--trainer.default_root_dir", "{folder}"]
        command = [str(HERE / "pictures.py"), "run", "{to}", "finetune", "--config", config, *options]
        turns = [in_process(*command) for _ in range(args.rounds)]
        rest = [turn["all"] - turn["pictures"] - turn["page"] for turn in turns]
        cells = [spread([turn["all"] for turn in turns], ".1f")]
        for part in ("pictures", "page"):
            cells.append(spread([turn[part] / own for turn, own in zip(turns, rest, strict=True)], ".1%"))
        print(f"| {recipe} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2], sys.argv[3:])
    else:
        main()
