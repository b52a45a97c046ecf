"""Table of the data on the first screen of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_ft.console import format_table
from lit_ft.errors import printable
from lit_ft.runs import Run
from lit_ft.tasks.classes import name_classes, read_classes

MAX_LABELS = 100
MAX_NAMES = 10
SKIPPED = Run(Path()).skipped_images.name

# What each task predicts, singular and plural.
_NOUNS = {"multiclass": ("class", "classes"), "multilabel": ("label", "labels"), "regression": ("number", "numbers")}


def format_data_table(data: Any) -> str:
    """The classes of a data module, and the number of images of each split and class.

    Args:
        data: The data module, or ``None`` if loaders were given.
    """
    if data is None or not hasattr(data, "counts"):
        return "Data: given as loaders"
    names, counts = name_classes(read_classes(data) or 0), data.counts()
    sizes = data.sizes() if hasattr(data, "sizes") else {split: sum(numbers) for split, numbers in counts.items()}
    noun, nouns = _NOUNS[getattr(data, "task", "multiclass")]
    first = ", ".join(map(printable, names[:MAX_NAMES])) + (", …" if len(names) > MAX_NAMES else "")
    lines = [f"Data  {type(data).__name__}: {len(names)} {noun if len(names) == 1 else nouns} ({first})"]
    rows = []
    for split, numbers in counts.items():
        spread = f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
        per_class = "" if noun == "number" else f", {spread} a {noun}"
        rows.append((f"  {split}", f"{sizes[split]:,}", f"images{per_class}"))
    lines += format_table(rows, ("<8", ">8"), gap=" ").splitlines()
    if noun == "label":  # each, so that cells that were split otherwise than meant are seen
        labels = [f"{name!r} {number:,}" for name, number in zip(names, counts["train"], strict=True)]
        more = f", and {len(labels) - MAX_LABELS:,} more" if len(labels) > MAX_LABELS else ""
        lines.append(f"  labels  {', '.join(labels[:MAX_LABELS])}{more}")
    if skipped := format_skipped(data):
        lines.append(f"  left out  {len(skipped):,} image(s) that cannot be read, see {SKIPPED}")
    return "\n".join(lines)


def format_skipped(data: Any) -> list[str]:
    """One line for each image that cannot be read, with its split and the reason."""
    left_out: dict[str, list[str]] = getattr(data, "left_out", {})
    return [f"{split}: {line}" for split, lines in left_out.items() for line in lines]
