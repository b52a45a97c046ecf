"""Table of labels to be corrected, which a data module reads after the user's edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.tables.tables import write_split_table
from lit_ft.probes.findings.image_findings import Ranking
from lit_ft.probes.images import ProbeImages


def write_label_table(file: Path, images: ProbeImages, issues: Ranking) -> None:
    """Writes all photos, those with the most suspect labels first, as `ImageTableDataModule` reads them.

    Further columns have the label that is suggested, and the margin of the given one. Test photos come last.

    Args:
        file: The file.
        images: Photos of a `PhotoDataModule`.
        issues: The ranking of the labels.
    """
    data = images.data
    assert isinstance(data, PhotoDataModule)
    notes = {
        "suggested_label": [item["suggested"] for item in issues.items],
        "label_margin": [f"{item['margin']:.3f}" for item in issues.items],
    }
    parts = order_parts(images.splits, [item["row"] for item in issues.items], data.splits.get("test"))
    write_split_table(file, parts, data.columns, data.label_cells, list(data.group_numbers), notes)


def order_parts(
    splits: Mapping[Split, FileSplit], first: list[int], test: FileSplit | None
) -> Iterator[tuple[Split, FileSplit]]:
    """Parts of splits: some rows, which are counted through all splits, one by one, then the others of each, then test.

    Args:
        splits: The splits.
        first: The rows that come first.
        test: Images that come last, if there are any.
    """
    homes = [(split, row) for split, images in splits.items() for row in range(len(images))]
    for split, row in (homes[row] for row in first):
        yield split, splits[split].part(torch.tensor([row]))
    taken = {homes[row] for row in first}
    for split, images in splits.items():
        rest = [row for row in range(len(images)) if (split, row) not in taken]
        yield split, images.part(torch.tensor(rest, dtype=torch.long))
    if test is not None:
        yield "test", test
