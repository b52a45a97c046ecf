"""Decides which image files can be read, by reading each once in several processes, and remembers it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lit_ft.data.decode import decode
from lit_ft.data.kept import find, keep, stamp_number
from lit_ft.data.paths import PackedPaths
from lit_ft.data.workers import usable_cpus
from lit_ft.errors import UserError

T = TypeVar("T")
_FEW = 64  # fewer files for each process are read before it has started


def problem_or_pixels(path: Path) -> str | Tensor:
    """Why an image cannot be read, in a line, or its pixels, uint8 ``(3, H, W)``, as training gets them."""
    try:
        return decode(path)
    except UserError as error:
        cause = error.__cause__ or error
        return " ".join(str(cause).replace(f" {str(path)!r}", "").split()) or type(cause).__name__


def problem(path: Path) -> str:
    """Why an image cannot be read, in a line, or nothing."""
    found = problem_or_pixels(path)
    return found if isinstance(found, str) else ""


def sweep(paths: Sequence[Path], look: Callable[[Path], T], doing: str) -> Iterator[T]:
    """Looks at each of many files, in as many processes as there are CPUs; in a terminal, a bar shows how far it is.

    Args:
        paths: The files.
        look: What to do with each; it must be possible to pickle it.
        doing: What the bar says.
    """
    workers = min(usable_cpus(), len(paths) // _FEW)
    batches: DataLoader[T] = DataLoader(
        _Files(paths, look),
        batch_size=16,
        collate_fn=list,
        num_workers=workers if workers > 1 else 0,
        generator=torch.Generator(),  # one of its own: a run must not depend on whether its files were read before
    )
    with tqdm(total=len(paths), desc=doing, unit=" images", disable=None, leave=False) as bar:
        for batch in batches:
            yield from batch
            bar.update(len(batch))


def unreadable(paths: PackedPaths) -> dict[int, str]:
    """The rows of the files that cannot be read, and why; files that are not there are among them.

    What was found to be readable before, and has not changed, is not read again. What was not is: a permission, a
    library or a limit may have been the reason.
    """
    if not len(paths):
        return {}
    key = os.path.abspath(paths.root)
    stamps = np.fromiter((_stamp(os.path.join(key, name)) for name in paths.names()), np.int64, len(paths))
    kept = find("verified", key)
    good = kept[0]["good"].numpy() if kept else np.zeros(0, np.int64)
    unknown = np.flatnonzero(~np.isin(stamps, good))
    if not len(unknown):
        return {}
    reasons = list(sweep(paths.part(torch.from_numpy(unknown)), problem, "reading each image once"))
    fine = stamps[unknown[[not why for why in reasons]]]
    if len(fine):
        keep("verified", key, ({"good": torch.from_numpy(np.union1d(good, fine))}, {}))
    return {int(row): why for row, why in zip(unknown, reasons, strict=True) if why}


def _stamp(path: str) -> int:
    """A number that changes when a file does; 0 where there is none."""
    try:
        return stamp_number(path)
    except OSError:
        return 0


class _Files(Dataset[T], Generic[T]):
    def __init__(self, paths: Sequence[Path], look: Callable[[Path], T]) -> None:
        self._paths = paths
        self._look = look

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> T:
        return self._look(self._paths[index])
