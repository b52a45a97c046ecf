"""Names of the results of an evaluation: those of other images or another model are kept apart from a run's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.files.folders import find_path
from lit_ft.data.loading.protocols import Split
from lit_ft.data.tables.tables import read_table
from lit_ft.errors import UserError
from lit_ft.model.checkpoint import read_checkpoint
from lit_ft.runs import Run
from lit_ft.training.evaluated import find_images
from lit_ft.training.handed_back import is_refitted

_MOST_CHARACTERS = 40
"""Characters of a folder that the name of results takes, as a file name has an end."""


def name_results(trainer: Any, run: Run, split: Split, known: Mapping[str, Any]) -> tuple[str, str | None]:
    """What the results of an evaluation are called, and where the images are, unless they are the run's own.

    Those of the model that the run hands back, on its own images of the split, are called as the split. Else the name
    of the checkpoint follows, and that of the folder or table; and a number, if other results have that name. Those of
    a refit on validation images, which it was trained on, are kept apart, too.

    Args:
        trainer: The trainer of the evaluation.
        run: The run whose folder they go to.
        split: What is evaluated.
        known: The metrics that the run has, by name.
    """
    checkpoint = trainer.ckpt_path
    if checkpoint is None or getattr(trainer, "tests_own", False):
        return split, None
    parts: list[str] = [split]
    if _is_another(run, checkpoint, known):
        parts.append(Path(checkpoint).stem)
    place = (
        None
        if _is_whole(trainer, split) and _is_own(run, trainer.datamodule, split, checkpoint)
        else find_place(trainer.datamodule)
    )
    if place is not None:
        parts.append(name_place(place))
    elif split == "val" and is_refitted(checkpoint):
        parts.append("refit")
    return _number("_".join(parts), run, {"checkpoint": name_checkpoint(run, checkpoint), "data": place}, known), place


def name_place(place: str) -> str:
    """What the images of a folder or table are called in the name of results."""
    return (Path(place).stem if os.path.isfile(place) else Path(place).name)[:_MOST_CHARACTERS]


def _number(name: str, run: Run, own: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The name, with the first number by which nothing else has it; some file systems know no capital letters."""
    if name in ("val", "test"):  # the run's own, whichever checkpoint an earlier version has written there
        return name
    taken = {key.casefold(): entry for key, entry in known.items()}
    for tried in chain([name], (f"{name}_{number}" for number in count(2))):
        entry = taken.get(tried.casefold())
        if isinstance(entry, dict) and all(entry.get(key) == value for key, value in own.items()):
            break
        if entry is None and not run.result_table("predictions", tried).exists():
            break
    return tried


def name_checkpoint(run: Run, checkpoint: str | Path) -> str:
    """The path of a checkpoint from the folder of a run."""
    return Path(os.path.relpath(Path(checkpoint).resolve(), run.folder.resolve())).as_posix()


def describe_images(trainer: Any, split: Split) -> dict[str, Any]:
    """The split that the images of an evaluation are of, and their number, as far as that is known.

    A test is on the validation images where there are no test images.
    """
    data: Any = getattr(trainer, "datamodule", None)
    images = find_images(data, split)
    if images is None:
        return {}
    number = {"images": len(images)} if _is_whole(trainer, split) else {}
    return {"split": data.tested if split == "test" else split, **number}


def describe_rest(data: Any, facts: Mapping[str, Any]) -> str:
    """How many photos of a folder or table a validation has left out, as the rest of a sentence; nothing if none.

    Args:
        data: The data module.
        facts: What `describe_images` gives.
    """
    if "images" not in facts or not isinstance(find_images(data, "val"), FileSplit):
        return ""
    num, total = int(facts["images"]), sum(data.sizes().values())
    if num == total:
        return ""
    return f"has {total:,} images, of which its {num:,} of val are validated; lit-ft test is for all"


def count_trained_on(run: Run, data: Any, split: Split, checkpoint: str) -> int:
    """The number of images of an evaluation that a model was trained on, by their paths.

    These are the training images of its run, and those of validation, too, if it is of a refit.
    """
    images = find_images(data, split)
    known = _read_paths(run, data) if isinstance(images, FileSplit) else {}
    trained_on = known.get("train", set()) | (known.get("val", set()) if is_refitted(checkpoint) else set())
    return sum(os.path.abspath(path) in trained_on for path in images.paths.absolute()) if trained_on else 0


def _is_whole(trainer: Any, split: Split) -> bool:
    """Whether an evaluation is of all images; a whole number is one of batches."""
    limit = getattr(trainer, f"limit_{split}_batches")
    return isinstance(limit, float) and limit == 1.0


def _is_another(run: Run, checkpoint: str, known: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is not that which a run hands back; the user may have named that one."""
    best = run.checkpoint("best")
    if not best.is_file():
        entries = [known.get(name) for name in ("refit", "val")]
        named = [entry["checkpoint"] for entry in entries if isinstance(entry, dict) and entry.get("checkpoint")]
        best = next((path for name in named if (path := run.folder / str(name)).is_file()), Path(checkpoint))
    return best.resolve() != Path(checkpoint).resolve()


def _is_own(run: Run, data: Any, split: Split, checkpoint: str) -> bool:
    """Whether images are those of a run's own split, by their paths, or else by names and content; a copy's are, too.

    Those of a data module of the user's are taken for it.
    """
    images = find_images(data, split)
    if images is None:
        return True
    tested = data.tested if split == "test" else split
    if isinstance(images, FileSplit):
        known = _read_paths(run, data)
        if split == "test" and known and tested != ("test" if "test" in known else "val"):
            return False
        own, left_out = known.get(tested, set()), getattr(data, "left_out", {}).get(tested, ())
        is_whole = len(own) == len(images) + len(left_out)
        if is_whole and all(os.path.abspath(path) in own for path in images.paths.absolute()):
            return True
    then = read_checkpoint(checkpoint).get("images")
    if not then:  # of an earlier version
        return True
    if split == "test" and tested != ("test" if "test" in then["splits"] else "val"):
        return False
    now = data.fingerprint()
    return bool(then["first"] == now["first"] and then["splits"].get(tested) == now["splits"].get(tested))


def _read_paths(run: Run, data: Any) -> dict[str, set[str]]:
    """The paths of the images of each split of a run, as far as its table says."""
    columns = data.columns
    try:
        table = read_table(run.split_table, "`ckpt_path`", errors="surrogateescape")
        paths, splits = (table.column(name, "`ckpt_path`") for name in (columns.path, columns.split))
    except UserError:  # there is none, or it was edited; the content of images decides
        return {}
    found: dict[str, set[str]] = {}
    for path, split in zip(paths, splits, strict=True):
        found.setdefault(split, set()).add(os.path.abspath(path))
    return found


def find_place(data: Any) -> str:
    """The folder, table or data set of the images, in full; where there is none, the name of their data module."""
    options = dict(getattr(data, "hparams", {}))
    if options.get("dataset"):
        return str(options["dataset"])
    given = options.get("table") or options.get("root")
    try:
        return str(find_path(str(given), "`data.root`").resolve()) if given else type(data).__name__
    except UserError:  # images that are in no folder
        return type(data).__name__
