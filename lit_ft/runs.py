"""The folder of a run: claimed by one process alone, and given back where the run is refused."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_ft.errors import UserError

FOLDER_VARIABLE = "LIT_FT_RUN"
"""Tells processes that Lightning starts for the other ranks, by the same command, what folder the first has claimed."""

# What is in the folder of a run before the trainer logs its hyperparameters, and data is read.
_BEGINNINGS = ("config.yaml", "split.csv", "skipped_images.txt", "events.out.tfevents.*")


@dataclass(frozen=True)
class Run:
    """The folder of a run, and those that its loggers have beside it.

    Args:
        folder: The folder, absolute; none on a process that has not claimed it and cannot know.
        claimed: The folders that this process has made.
    """

    folder: Path | None
    claimed: tuple[Path, ...] = ()

    def give_back(self, loggers: Sequence[Any] = ()) -> None:
        """Removes what was claimed, if there is no more in it than what each run begins with.

        Args:
            loggers: Those of the trainer, which may have files open.
        """
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.finalize("failed")
        for folder in self.claimed:
            files = list(folder.iterdir())
            if all(any(fnmatch(file.name, name) for name in _BEGINNINGS) for file in files):
                for file in files:
                    file.unlink()
                folder.rmdir()


def begin_run(folder: Path, loggers: Iterable[Any], checkpoint: str | None) -> Run:
    """Claims the folder of a run, or finds that of a checkpoint, and directs the loggers there.

    It is a new ``version_N`` where the first logger that writes files would have it, or, without such a one, in the
    folder of all runs. The number is one that no run has in any of the loggers' folders: Lightning's loggers find it by
    looking, and two runs that look at once find the same.

    Args:
        folder: The folder of all runs of that name.
        loggers: The configs of the user's loggers; those that write files get ``save_dir``, ``name`` and ``version``.
        checkpoint: The checkpoint that is resumed or evaluated; what comes of it goes to the run that wrote it.

    Returns:
        The run, as far as this process knows it.

    Raises:
        UserError: If the folder cannot be made.
    """
    options = [logger["init_args"] for logger in loggers if issubclass(_class(logger), (TensorBoardLogger, CSVLogger))]
    # Absolute, so that a resumed run finds its best score again, which is kept with the path.
    places = [Path(given["save_dir"], given.get("name") or "").absolute() for given in options] or [folder.absolute()]
    earlier = Path(checkpoint or "").resolve().parent.parent
    asked = [version for given in options if (version := given.get("version")) is not None]
    name: str | None = None
    claimed: tuple[Path, ...] = ()
    if checkpoint and (earlier / "config.yaml").is_file():
        places[0], name = earlier.parent, earlier.name
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
            _keep_metrics(place / name)
    return Run(None if name is None else places[0] / name, claimed)


def claim(places: Sequence[Path]) -> tuple[Path, ...]:
    """Makes a folder ``version_N`` in each of some folders that no other process has made, or ever will.

    Args:
        places: The folders, which are made if they are missing.

    Raises:
        UserError: If it cannot be written there.
    """
    places = list(dict.fromkeys(places))
    number = max((_last_number(place) for place in places), default=-1) + 1
    while True:
        made: list[Path] = []
        try:
            for place in places:
                (place / f"version_{number}").mkdir(parents=True)
                made.append(place / f"version_{number}")
            return tuple(made)
        except FileExistsError:
            number += 1
            for folder in made:
                folder.rmdir()
        except OSError as error:
            raise UserError(
                f"`trainer.default_root_dir`: cannot make a folder for the run in {places[len(made)]} "
                f"({error.strerror}); name one that can be written"
            ) from error


def is_first_process() -> bool:
    """Whether this is rank 0 of all processes of a run, by what the variables of its launcher tell before it begins."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return bool(cast(Any, rank_zero_only).rank == 0) and int(node) == 0


def _keep_metrics(folder: Path) -> None:
    """Renames what a CSV logger has written in a folder, as another one would remove it."""
    path = folder / "metrics.csv"
    if path.is_file():
        names = (folder / f"metrics-{number}.csv" for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


def _last_number(place: Path) -> int:
    found = (re.fullmatch(r"version_(\d+)", entry.name) for entry in place.glob("version_*"))
    return max((int(match[1]) for match in found if match), default=-1)


def _class(logger: Any) -> type:
    home, _, name = logger["class_path"].rpartition(".")
    found: type = getattr(importlib.import_module(home), name)
    return found
