"""The table ``split.csv`` of a run: which image is in which split."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.loading.protocols import Split
from lit_ft.data.tables.formulas import escape_formula


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a table of images.

    Args:
        path: Path of each image.
        labels: Its labels.
        split: Train, val or test.
        group: What no two splits may share.
    """

    path: str = "path"
    labels: tuple[str, ...] = ("label",)
    split: str = "split"
    group: str = "group"


def write_split_table(
    file: Path,
    splits: Mapping[Split, FileSplit],
    columns: Columns,
    label_cells: Callable[[Tensor], Iterable[Sequence[str]]],
    group_names: Sequence[str] = (),
) -> None:
    """Writes a row for each image, as `ImageTableDataModule` reads it.

    Cells that a spreadsheet would run as a formula are escaped, but not the paths: these are absolute.

    Args:
        file: The table to write.
        splits: All images of each split.
        columns: The names of the columns.
        label_cells: Gives the cells of the label columns for targets.
        group_names: Name of each group, where there are any.
    """
    # Names of files need not be valid text.
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened)
        header = [columns.path, *columns.labels, columns.split, *([columns.group] if group_names else [])]
        writer.writerow(map(escape_formula, header))
        for split, images in splits.items():
            numbers = images.groups.tolist() if images.groups is not None else [0] * len(images)
            rows = zip(images.paths.absolute(), label_cells(images.targets), numbers, strict=True)
            for path, labels, number in rows:
                cells = [*labels, split, *([group_names[number]] if group_names else [])]
                writer.writerow([path, *map(escape_formula, cells)])
