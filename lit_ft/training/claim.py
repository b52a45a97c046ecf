"""The claim of a run's folder by one process, and the loggers that are directed there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_only
from lit_ft.runs import Run, find_run_of_checkpoint

FOLDER_VARIABLE = "LIT_FT_RUN"
"""Names the claimed folder to the processes of the other ranks, which Lightning starts by the same command."""

_UNNAMED = "lightning_logs"
"""The name that Lightning's loggers give to runs without one."""


def begin_run(folder: Path, loggers: Iterable[Any], checkpoint: str | None, earlier: Run | None = None) -> Run | None:
    """Claims the folder of a run, or finds that of a checkpoint, and directs the loggers there.

    It is a new ``version_N`` where the first logger that writes files would have it, or, without such a one, in the
    folder of all runs. Loggers of services name the run likewise, as far as the user has not. The number is one that no
    run has in any of the loggers' folders: Lightning's loggers find it by looking, and two runs that look at once find
    the same. There is none on a process that cannot know it.

    Args:
        folder: The folder of all runs of that name.
        loggers: The configs of the user's loggers; those that write files get ``save_dir``, ``name`` and ``version``.
        checkpoint: The checkpoint that is resumed or evaluated; what comes of it goes to the run that wrote it.
        earlier: The run to go on with, where that has no checkpoint yet; a fold is within the run of all.

    Raises:
        UserError: If the folder cannot be made or written.
    """
    loggers = list(loggers)
    writers = [one for one in loggers if issubclass(resolve_name(one["class_path"]), (TensorBoardLogger, CSVLogger))]
    options = [writer["init_args"] for writer in writers]
    for given in options:
        if given.get("name") == _UNNAMED:
            given["name"] = folder.name
    # Absolute, and without links, so that a resumed run finds its best score again, which is kept with the path.
    places = [Path(given["save_dir"], given.get("name") or "").resolve() for given in options] or [folder.resolve()]
    if earlier is None or earlier.whole is None:
        earlier = find_run_of_checkpoint(checkpoint) or earlier
    asked = [version for given in options if (version := given.get("version")) is not None]
    name: str | None = None
    claimed: tuple[Path, ...] = ()
    above: tuple[Path, ...] = ()
    if earlier is not None:
        if options and not os.access(earlier.folder, os.W_OK):  # else TensorBoard fails in a thread of its own
            raise UserError(f"{earlier.folder}: cannot be written; give write permission, or copy the run and use that")
        places[0] = (earlier.whole or earlier).folder.parent
        name, claimed = str(earlier.folder.relative_to(places[0])), earlier.claimed
    elif asked:  # the user has chosen it, and may want to add to it
        name = f"version_{asked[0]}" if isinstance(asked[0], int) else str(asked[0])
    elif is_first_process():
        above = tuple(one for place in places for one in (place, *place.parents) if not one.exists())
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
    return Run(places[0] / name, claimed, above, earlier.whole if earlier else None)


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
