"""The folder of a run: its paths, its checkpoints, and how one process claims it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_ft.errors import UserError

DEFAULT_ROOT = "logs"
"""The folder of all runs, unless another is given."""

FOLDER_VARIABLE = "LIT_FT_RUN"
"""Names the claimed folder to the processes of the other ranks, which Lightning starts by the same command."""

_UNNAMED = "lightning_logs"
"""The name that Lightning's loggers give to runs without one."""

# Files that are in the folder of a run before the trainer logs its hyperparameters, and data is read.
_FIRST_FILES = ("config.yaml", "split.csv", "skipped_images.txt", "events.out.tfevents.*")


@dataclass(frozen=True)
class Run:
    """The folder of a run, and the paths of all that is in it.

    Args:
        folder: The folder of the run.
        claimed: The folders that this process has made for it: that one, and those of its loggers elsewhere.
    """

    folder: Path
    claimed: tuple[Path, ...] = ()

    @property
    def config(self) -> Path:
        """The config that gives the same run again."""
        return self.folder / "config.yaml"

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

    def result_table(self, kind: str, split: str) -> Path:
        """A table of results of a split, ``val`` or ``test``: ``predictions``, ``per_class`` or ``confusion``."""
        return self.folder / f"{kind}_{split}.csv"

    def features(self, node: int | str | None = None) -> Path:
        """The folder of cached features; of one node, where there are several, which may share a file system or not."""
        return self.folder / ("features" if node is None else f"features-node{node}")

    def release(self, loggers: Sequence[Any] = ()) -> None:
        """Removes the claimed folders with no more than what each run begins with, which loggers may have open."""
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.finalize("failed")
        for folder in self.claimed:
            files = list(folder.iterdir())
            if all(any(fnmatch(file.name, name) for name in _FIRST_FILES) for file in files):
                for file in files:
                    file.unlink()
                folder.rmdir()


def find_run(trainer: Any) -> Run | None:
    """The run of a trainer, if that writes anything; asks all ranks, so each must call it."""
    folder = trainer.log_dir
    return Run(Path(folder)) if folder else None


def find_run_of_checkpoint(checkpoint: str | None) -> Run | None:
    """The run that wrote a checkpoint, if the checkpoint is still in its folder."""
    run = Run(Path(checkpoint or "").resolve().parent.parent)
    return run if checkpoint and run.config.is_file() else None


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


def format_intact_checkpoints(folder: Path) -> str:
    """The checkpoints that a folder has where no more can be written, and what to do about it."""
    found = _sort_by_age(folder.glob("*.ckpt"))
    if not found:
        return "no checkpoint was written before; make room, and start again"
    names = ", ".join(file.name for file in found)
    to_resume = [file for file in found if file.name != Run(folder).probe.name]
    then = f"resume from {to_resume[-1]}" if to_resume else "start again"
    return f"intact: {names}; make room, and {then}"


def _find_beside(configs: Sequence[Any], name: str) -> list[Path]:
    """The checkpoints of a name beside configs, which are then those of runs."""
    files = [Run(Path(str(config)).parent).checkpoint(name) for config in configs]
    return [file for file in files if file.exists()]


def _find_below(folder: str, pattern: str, name: str) -> list[Path]:
    """The checkpoints of a name in the runs that match, the newest last."""
    return _sort_by_age(Path(folder).glob(str(Run(Path(pattern)).checkpoint(name))))


def _sort_by_age(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: file.stat().st_mtime)


def begin_run(folder: Path, loggers: Iterable[Any], checkpoint: str | None) -> Run | None:
    """Claims the folder of a run, or finds that of a checkpoint, and directs the loggers there.

    It is a new ``version_N`` where the first logger that writes files would have it, or, without such a one, in the
    folder of all runs. Loggers of services name the run likewise, as far as the user has not. The number is one that no
    run has in any of the loggers' folders: Lightning's loggers find it by looking, and two runs that look at once find
    the same. There is none on a process that cannot know it.

    Args:
        folder: The folder of all runs of that name.
        loggers: The configs of the user's loggers; those that write files get ``save_dir``, ``name`` and ``version``.
        checkpoint: The checkpoint that is resumed or evaluated; what comes of it goes to the run that wrote it.

    Raises:
        UserError: If the folder cannot be made or written.
    """
    loggers = list(loggers)
    writers = [one for one in loggers if issubclass(resolve_name(one["class_path"]), (TensorBoardLogger, CSVLogger))]
    options = [writer["init_args"] for writer in writers]
    for given in options:
        if given.get("name") == _UNNAMED:
            given["name"] = folder.name
    # Absolute, so that a resumed run finds its best score again, which is kept with the path.
    places = [Path(given["save_dir"], given.get("name") or "").absolute() for given in options] or [folder.absolute()]
    earlier = find_run_of_checkpoint(checkpoint)
    asked = [version for given in options if (version := given.get("version")) is not None]
    name: str | None = None
    claimed: tuple[Path, ...] = ()
    if earlier is not None:
        if options and not os.access(earlier.folder, os.W_OK):  # else TensorBoard fails in a thread of its own
            raise UserError(f"{earlier.folder}: cannot be written; give write permission, or copy the run and use that")
        places[0], name = earlier.folder.parent, earlier.folder.name
    elif asked:  # the user has chosen it, and may want to add to it
        name = f"version_{asked[0]}" if isinstance(asked[0], int) else str(asked[0])
    elif is_first_process():
        claimed = claim(places)
        name = claimed[0].name
        os.environ[FOLDER_VARIABLE] = str(claimed[0])
    elif FOLDER_VARIABLE in os.environ:
        name = Path(os.environ[FOLDER_VARIABLE]).name
    for given, place in zip(options, places, strict=False):
        given["save_dir"], given["name"], given["version"] = str(place.parent), place.name, name
        if name is not None and is_first_process():
            _keep_logged_metrics(place / name)
    if name is None:
        return None
    for logger in loggers:
        if logger not in writers:
            _name_elsewhere(logger["init_args"], places[0].name, name)
    return Run(places[0] / name, claimed)


def _name_elsewhere(options: Any, name: str, version: str) -> None:
    """Gives a run the same name in a service as its folder has, unless the user has named it."""
    names = {"project": name, "experiment_name": name, "name": version, "run_name": version}
    if "WANDB_PROJECT" in os.environ:
        del names["project"]
    for key, value in names.items():
        if key in options and options[key] in (None, _UNNAMED):
            options[key] = value


def claim(places: Sequence[Path]) -> tuple[Path, ...]:
    """Makes a folder ``version_N`` in each of some folders that no other process has made, or ever will.

    Making a folder is the claim: it is atomic on network file systems too, and a killed process leaves no lock.

    Raises:
        UserError: If it cannot be written there.
    """
    number = max(map(_last_number, places)) + 1
    while True:
        made: list[Path] = []
        try:
            for folder in (place / f"version_{number}" for place in dict.fromkeys(places)):
                folder.mkdir(parents=True)
                made.append(folder)
            return tuple(made)
        except FileExistsError:
            number += 1
            for taken in made:
                taken.rmdir()
        except OSError as error:
            raise UserError(
                f"`trainer.default_root_dir`: cannot make a folder for the run in {folder.parent} ({error.strerror}); "
                "name one that can be written"
            ) from error


def is_first_process() -> bool:
    """Whether this is rank 0 of all processes of a run, by the variables of its launcher, before the run begins."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return bool(cast(Any, rank_zero_only).rank == 0) and int(node) == 0


def _keep_logged_metrics(folder: Path) -> None:
    """Renames what a CSV logger has written in a folder, as another one would remove it."""
    path = folder / "metrics.csv"
    if path.is_file():
        names = (folder / f"metrics-{number}.csv" for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


def _last_number(place: Path) -> int:
    found = (re.fullmatch(r"version_(\d+)", entry.name) for entry in place.glob("version_*"))
    return max((int(match[1]) for match in found if match), default=-1)
