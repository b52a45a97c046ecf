"""The folder of a run: its paths, its checkpoints, and how one process claims it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lit_ft.errors import UserError, find_full_disk

DEFAULT_ROOT = "logs"
"""The folder of all runs, unless another is given."""

RESULT_TABLES = ("predictions", "per_class", "confusion")
"""The kinds of tables of an evaluation."""

_FOLD = "fold_"

# Files that may be in the folder of a run before its first step.
_FIRST_FILES = (
    "config.yaml", "job.txt", ".job.txt.lock", "split.csv", "skipped_images.txt", "train_images.jpg",
    "events.out.tfevents.*",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """The folder of a run, and the paths of all that is in it.

    Args:
        folder: The folder of the run.
        claimed: The folders that this process has made for it: that one, and those of its loggers elsewhere.
        above: The folders above them that were not there, the deepest first.
        whole: The cross-validation that it is a fold of, where it is trained as a part of it.
    """

    folder: Path
    claimed: tuple[Path, ...] = ()
    above: tuple[Path, ...] = ()
    whole: Run | None = None

    def fold(self, number: int) -> Run:
        """The run of a fold, from 1, of a cross-validation in this folder."""
        return Run(self.folder / f"{_FOLD}{number}", whole=self)

    def has_folds(self) -> bool:
        """Whether it is a cross-validation, with a run for each fold."""
        return any(self.folder.glob(f"{_FOLD}[0-9]*"))

    @property
    def config(self) -> Path:
        """The config that gives the same run again."""
        return self.folder / "config.yaml"

    @property
    def job(self) -> Path:
        """The command that began it, and the job that this was of, by which a restarted job finds it."""
        return self.folder / "job.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.checkpoint("last")

    @property
    def probe(self) -> Path:
        """The checkpoint of the linear probe that it began with, of weights alone."""
        return self.checkpoint("probe")

    def checkpoint(self, name: str) -> Path:
        """The checkpoint of a name, such as ``best``."""
        return self.checkpoints / f"{name}.ckpt"

    @property
    def split_table(self) -> Path:
        """The table that says which image is in which split."""
        return self.folder / "split.csv"

    @property
    def skipped_images(self) -> Path:
        """The list of the images that cannot be read."""
        return self.folder / "skipped_images.txt"

    @property
    def predictions(self) -> Path:
        """The table of predictions."""
        return self.folder / "predictions.csv"

    @property
    def out_of_fold(self) -> Path:
        """What the model of a fold gave for the images that it has not seen."""
        return self.folder / "out_of_fold.pt"

    @property
    def train_images(self) -> Path:
        """The picture of training images, as the network got them."""
        return self.folder / "train_images.jpg"

    @property
    def history(self) -> Path:
        """The table of metrics and learning rates, a row an epoch."""
        return self.folder / "history.csv"

    @property
    def metrics(self) -> Path:
        """The metrics of each split, with the checkpoint that they are of."""
        return self.folder / "metrics.json"

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.folder / "report.html"

    @property
    def projector(self) -> Path:
        """The folder of features for TensorBoard's projector."""
        return self.folder / "projector"

    def result_table(self, kind: str, name: str) -> Path:
        """A table of the results of an evaluation, such as ``val`` or ``test``; ``kind`` is one of `RESULT_TABLES`."""
        return self.folder / f"{kind}_{name}.csv"

    def features(self, node: int | str | None = None) -> Path:
        """The folder of cached features; of one node, where there are several, which may share a file system or not."""
        return self.folder / ("features" if node is None else f"features-node{node}")

    def release(self, loggers: Sequence[Any] = ()) -> None:
        """Removes the claimed folders with no more than what each run begins with, which loggers may have open.

        And those above them that were made for them, where nothing else is in them.
        """
        if loggers:
            from lightning.pytorch.loggers import TensorBoardLogger  # loaded by now; not where a model predicts

            for logger in loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.finalize("failed")
        for folder in self.claimed:
            files = list(folder.iterdir())
            if all(any(fnmatch(file.name, name) for name in _FIRST_FILES) for file in files):
                for file in files:
                    file.unlink()
                folder.rmdir()
        for folder in self.above:
            with suppress(OSError):
                folder.rmdir()


def find_run(trainer: Any) -> Run | None:
    """The run of a trainer, if that writes anything; asks all ranks, so each must call it."""
    folder = trainer.log_dir
    return Run(Path(folder)) if folder else None


def find_run_of_checkpoint(checkpoint: str | None) -> Run | None:
    """The run that wrote a checkpoint, if the checkpoint is still in its folder."""
    run = Run(Path(checkpoint or "").resolve().parent.parent)
    return run if checkpoint and run.config.is_file() else None


def find_best_checkpoint(given: str | Path) -> Path:
    """The checkpoint that is given, or the best one of the run whose folder is given.

    Raises:
        UserError: If it is a folder of runs, or of something else.
    """
    path, run = Path(given), Run(Path(given))
    if not path.is_dir():
        return path
    if Run(path.parent).checkpoints == path:
        run = Run(path.parent)
    if run.checkpoints.is_dir():
        return run.checkpoint("best")
    if run.has_folds():
        raise UserError(
            f"`ckpt_path`: {path} is a cross-validation, which has no model of its own, as its folds just measure; a "
            "run without `data.folds` makes one"
        )
    other = describe_folder_of_runs(path) or f"is no run, as it has no folder {run.checkpoints.name}; name one"
    raise UserError(f"`ckpt_path`: {path} {other}")


def describe_folder_of_runs(folder: Path) -> str | None:
    """What to say where a run is meant, and its folder has some in it, or in the folders in it; None of others."""
    found = _find_below(str(folder), "*", "best") or _find_below(str(folder), "*/*", "best")
    if not found:
        return None
    return f"is no run, but a folder of runs; name one, the newest is {Run(found[-1].parent.parent).folder}"


def find_best_callback(trainer: Any) -> Any:
    """The callback that keeps the best checkpoint: the last that monitors a metric, as the user's come first."""
    return next((callback for callback in reversed(trainer.checkpoint_callbacks) if callback.monitor), None)


def find_best_path(trainer: Any) -> str | None:
    """The path of the best checkpoint that a trainer has written, if any."""
    return getattr(find_best_callback(trainer), "best_model_path", "") or None


def find_checkpoint(folder: str, name: str, configs: Sequence[Any] = ()) -> str:
    """The ``best`` or ``last`` checkpoint of the run whose config is given, or else the newest of the runs in a folder.

    Raises:
        UserError: If there is none.
    """
    found = _find_beside(configs, name) or _find_below(folder, "*", name)
    if not found:
        raise UserError(f"`ckpt_path`: there is no {Run(Path(folder, '*')).checkpoint(name)}")
    return str(found[-1])


def suggest_checkpoint(root: str, configs: Sequence[Any]) -> str:
    """The end of a message to a user who gave no checkpoint: the one that they may mean, or nothing."""
    if beside := _find_beside(configs, "best"):
        return f"; that of this config is {beside[-1]}"
    found = [] if configs else _find_below(root, "*/*", "best")
    return f"; the newest is {found[-1]}" if found else ""


def format_intact_checkpoints(folder: Path, reason: OSError) -> str:
    """The checkpoints that a folder has where no more can be written, for a reason, and what to do about it."""
    first = "make room" if find_full_disk(reason) else "let the folder be written"
    found = _sort_by_age(folder.glob("*.ckpt"))
    if not found:
        return f"no checkpoint was written before; {first}, and start again"
    names = ", ".join(file.name for file in found)
    to_resume = [file for file in found if file.name != Run(folder).probe.name]
    then = f"resume from {to_resume[-1]}" if to_resume else "start again"
    return f"intact: {names}; {first}, and {then}"


def _find_beside(configs: Sequence[Any], name: str) -> list[Path]:
    """The checkpoints of a name beside configs, which are then those of runs."""
    files = [Run(Path(str(config)).parent).checkpoint(name) for config in configs]
    return [file for file in files if file.exists()]


def _find_below(folder: str, pattern: str, name: str) -> list[Path]:
    """The checkpoints of a name in the runs that match, the newest last."""
    return _sort_by_age(Path(folder).glob(str(Run(Path(pattern)).checkpoint(name))))


def _sort_by_age(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: file.stat().st_mtime)
