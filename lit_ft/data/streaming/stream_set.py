"""The file ``set.json`` of a streamed set: its task, classes and splits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_ft.data.streaming.set_files import SET_FILE, read_set_file
from lit_ft.errors import UserError, unknown
from lit_ft.tasks.task import MAIN_METRIC, TaskName

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

    def write(self, folder: Path) -> None:
        """Writes the file."""
        (folder / SET_FILE).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def _check_types(self) -> None:
        """Raises ``ValueError`` where a part is not what its annotation says: JSON holds anything."""
        listed = {
            "class_names": self.class_names,
            **{f"names of {split}": names for split, names in self.names.items()},
        }
        for what, names in listed.items():
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError(f"its {what} are no list of text")
        for split, number in self.images.items():
            if type(number) is not int or number < 1:
                raise ValueError(f"its number of images of {split} is {number!r}")
            if split in ("val", "test") and len(self.names.get(split, ())) != number:
                raise ValueError(f"it names {len(self.names.get(split, ()))} of {number} images of {split}")

    @classmethod
    def read(cls, root: str) -> StreamSet:
        """Reads it from a folder or bucket.

        Raises:
            UserError: If there is none, or it is damaged.
        """
        content = read_set_file(root, SET_FILE)
        try:
            found = cls(**json.loads(content))
            strange = [split for split in found.images if split not in SPLITS]
            if found.task not in MAIN_METRIC:
                raise ValueError(f"its task is {found.task}")
            found._check_types()
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"`data.root`: {root}/{SET_FILE} is damaged ({error}); convert the set again") from error
        if strange:
            raise unknown("split", strange[0], SPLITS, f"`data.root`: {root}/{SET_FILE}")
        return found
