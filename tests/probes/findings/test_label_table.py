"""The table of labels to be corrected."""

from __future__ import annotations

import csv
from pathlib import Path

from probe_sets import read_photos, write_photos

from lit_ft import ImageTableDataModule
from lit_ft.probes.findings.image_findings import Ranking
from lit_ft.probes.findings.label_table import write_label_table


def test_table_is_read_after_an_edit_with_the_same_splits_and_groups(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", {"dots": 20, "lines": 20})
    images = read_photos(root, groups="([0-9]+)[.]png", test_fraction=0.2)
    first = [len(images) - 1, 3]
    items = [
        {"row": row, "suggested": "lines", "margin": -0.5, "class": images.samples[row].label, "split": ""}
        for row in first
    ]
    file = tmp_path / "label_issues.csv"
    write_label_table(file, images, Ranking(items, 1))
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["path"] for row in rows[:2]] == [images.samples[row].path for row in first]
    assert [(row["suggested_label"], row["label_margin"]) for row in rows[:3]] == [("lines", "-0.500")] * 2 + [("", "")]
    assert len(rows) == 40
    assert {row["split"] for row in rows[-8:]} == {"test"}

    edited = rows[1]["label"] = "lines" if rows[1]["label"] == "dots" else "dots"
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    data = ImageTableDataModule(table=str(file), group_column="group")
    data.setup()
    for split in ("train", "val", "test"):
        ours, theirs = (dict(_by_path(module.splits[split])) for module in (images.data, data))
        changed = {path for path in ours if ours[path] != theirs[path]}
        assert ours.keys() == theirs.keys()
        assert changed == ({images.samples[3].path} if split == "train" else set())
    train = dict(_by_path(data.splits["train"]))
    assert train[images.samples[3].path] == data.class_names.index(edited)


def _by_path(split: object) -> list[tuple[str, int]]:
    return list(zip(split.paths.absolute(), split.targets.tolist(), strict=True))
