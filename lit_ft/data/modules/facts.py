"""Facts about the splits and files of a data module, for other parts of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic

from torch import Tensor

from lit_ft.data.files.idx import find_idx
from lit_ft.data.fingerprint import Fingerprint, fingerprint
from lit_ft.data.loading.protocols import SetT, Split
from lit_ft.data.split import class_counts
from lit_ft.tasks.task import TaskName


class SplitFacts(ABC, Generic[SetT]):
    """Task, classes and numbers of images; all but the first two need `setup`."""

    splits: dict[Split, SetT]

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of each class, in the order of the targets; known before `setup`."""

    @property
    def task(self) -> TaskName:
        """The task that the targets are for."""
        return "multiclass"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def tested(self) -> Split:
        """The split that is tested on: the validation images where there are no test images."""
        return "test" if "test" in self.splits else "val"

    def counts(self) -> dict[str, list[int]]:
        """Number of images of each class, or with each label or number, by split."""
        return {n: class_counts(s.targets, self.num_classes) for n, s in self.splits.items() if n != "predict"}

    def sizes(self) -> dict[str, int]:
        """Number of images, by split."""
        return {n: len(s) for n, s in self.splits.items() if n != "predict"}

    def train_targets(self) -> Tensor:
        """The targets of the training images, ``(N,)`` or ``(N, K)``."""
        return self.splits["train"].targets

    def fingerprint(self) -> Fingerprint:
        """Shows whether a run is resumed with the same images in the same splits."""
        return fingerprint(self.splits, self.num_classes)


class DownloadFacts:
    """The files that a data module can download. One that names any has ``root``, their folder, and ``download``."""

    def files(self) -> dict[Path, str | None]:
        """Path, without ``.gz``, and address of each file that `prepare_data` can download; none unless overridden."""
        return {}

    @staticmethod
    def find_file(path: Path) -> Path | None:
        """The file itself, or its gzipped form, or nothing."""
        return find_idx(path)

    def missing_files(self) -> list[Path]:
        """Those of `files` that are not on this machine."""
        return [path for path in self.files() if self.find_file(path) is None]
