"""Splits of image files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lit_ft.data.files.folders import find_folder
from lit_ft.data.files.image_index import index_images, warn_passed_over
from lit_ft.data.files.packed_paths import PackedPaths
from lit_ft.data.fingerprint import digest
from lit_ft.errors import UserError


@dataclass(frozen=True)
class FileSplit:
    """The images of one split.

    Args:
        paths: Path of each image, ``N`` of them.
        targets: Class of each, int64 ``(N,)``, or the labels or numbers of each, ``(N, K)``.
        groups: The group of each, such as the patient, by number, int64 ``(N,)``; none where none are known.
    """

    paths: PackedPaths
    targets: Tensor
    groups: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def part(self, rows: Tensor) -> FileSplit:
        """The split of these images of this one."""
        groups = None if self.groups is None else self.groups[rows]
        return FileSplit(self.paths.part(rows), self.targets[rows], groups)

    def names_digest(self) -> str:
        """A hash of the names, independent of the folder that the images are in."""
        names = (os.path.join(*Path(name).parts[-2:]) if os.path.isabs(name) else name for name in self.paths.names())
        return digest(map(os.fsencode, names))

    def first_image(self) -> tuple[str, bytes]:
        """Name and content of the first image."""
        return self.paths.name(0), self.paths[0].read_bytes()

    def indexed(self) -> FileSplit:
        """The same images, with their position as the target."""
        return replace(self, targets=torch.arange(len(self)))


def find_images_to_predict(given: str) -> FileSplit:
    """The image, or all images below the folder, that ``data.predict`` names, with their index as the target.

    Raises:
        UserError: There is no such file or folder, or no image in it.
    """
    path = Path(given).expanduser()
    if path.is_file():
        paths = PackedPaths.pack("", [path])
    else:
        path = find_folder(given, "`data.predict`")
        index = index_images(path, "`data.predict`")
        warn_passed_over(path, "`data.predict`", index.passed_over)
        paths = index.paths
    if not len(paths):
        raise UserError(f"`data.predict`: no images in {path}")
    return FileSplit(paths, torch.arange(len(paths)))
