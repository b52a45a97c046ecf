"""A streamed set in a folder or bucket: its small files, and ``set.json`` with its task, classes and splits."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lit_ft.assets import is_offline
from lit_ft.compat import download_from_bucket
from lit_ft.data.files.folders import find_folder
from lit_ft.errors import UserError, unknown
from lit_ft.tasks.task import MAIN_METRIC, TaskName

SET_FILE = "set.json"
TARGETS_FILE = "targets.npy"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class StreamSet:
    """Content of ``set.json``.

    Args:
        task: The task that the targets are for.
        class_names: In the order of the targets.
        images: Number of images, by split.
        names: Path that each image came from, for the splits that are predicted.
    """

    task: TaskName
    class_names: list[str]
    images: dict[str, int]
    names: dict[str, list[str]]

    @classmethod
    def read(cls, root: str) -> StreamSet:
        """Reads it from a folder or bucket; raises `UserError` if there is none, or it is damaged."""
        content = read_set_file(root, SET_FILE)
        try:
            found = cls(**json.loads(content))
            found._check()
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"`data.root`: {root}/{SET_FILE} is damaged ({error}); convert the set again") from error
        if strange := [split for split in found.images if split not in SPLITS]:
            raise unknown("split", strange[0], SPLITS, f"`data.root`: {root}/{SET_FILE}")
        return found

    def _check(self) -> None:
        """Raises an error where a part is not what its annotation says: JSON holds anything."""
        if self.task not in MAIN_METRIC:
            raise ValueError(f"its task is {self.task}")
        names_of = {f"names of {split}": names for split, names in self.names.items()}
        for what, names in {"class_names": self.class_names, **names_of}.items():
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError(f"its {what} are no list of text")
        for split, number in self.images.items():
            if type(number) is not int or number < 1:
                raise ValueError(f"its number of images of {split} is {number!r}")
            if split in ("val", "test") and (named := len(self.names.get(split, ()))) != number:
                raise ValueError(f"it names {named} of {number} images of {split}")


def check_litdata(key: str) -> None:
    """Raises `UserError` where litdata is not installed."""
    try:
        import litdata as _  # noqa: F401
    except ImportError as error:
        raise UserError(f"{key}: streaming needs {error.name}; run: pip install 'lit_ft[stream]'") from error


def is_bucket(root: str) -> bool:
    """Whether a set lies where litdata must fetch it from; ``local:FOLDER`` is a folder that is treated so."""
    return "://" in root or root.startswith("local:")


def read_set_file(root: str, name: str) -> bytes:
    """Content of a small file of a set in a folder or bucket; raises `UserError` if it cannot be read."""
    if not is_bucket(root):
        file = find_folder(root, "`data.root`") / name
        try:
            return file.read_bytes()
        except FileNotFoundError as error:
            above = file.parent.parent
            is_part = name == SET_FILE and (above / SET_FILE).is_file()
            hint = f"give {above}" if is_part else "make one of a folder of photos with: lit-ft convert"
            raise UserError(f"`data.root`: {file.parent} is no converted set, it has no {name}; {hint}") from error
        except OSError as error:
            raise UserError(f"`data.root`: cannot read {file} ({format_reason(error)})") from error
    if is_offline() and not root.startswith("local:"):
        raise UserError(f"`offline`: `data.root` {root} is streamed over the network; give a folder")
    check_litdata("`data.root`")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            download_from_bucket(root, name, temporary)
            return Path(temporary, name).read_bytes()
        except Exception as error:  # each kind of bucket has errors of its own
            raise UserError(f"`data.root`: cannot read {root}/{name} ({format_reason(error)})") from error


def format_reason(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
