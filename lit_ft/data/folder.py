"""Decides how a folder of photos, one folder a class, is read: which folders are splits, and which are classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_ft.data.base import Augment, Split
from lit_ft.data.files import class_folders, find_folder, images_within, subfolders
from lit_ft.data.paths import PackedPaths
from lit_ft.data.photo_data import PhotoDataModule
from lit_ft.data.photos import FileSplit
from lit_ft.errors import UserError, unknown

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


class ImageFolderDataModule(PhotoDataModule):
    """Photos in ``ROOT/train/CLASS/...``, ``ROOT/val/CLASS/...`` and ``ROOT/test/CLASS/...``, or in ``ROOT/CLASS/...``.

    What has no folder of its own is split off from the training images, each class in proportion.

    Args:
        root: The folder; when not given, ``data``. A relative one may also lie in the folder that the environment
            variable LIT_FT_DATA names.
        augment: ``basic`` takes a random part of at least half the area and mirrors half of the images.
        **common: The options of all sets of photos.
    """

    def __init__(self, root: str = "data", augment: Augment = "basic", **common: Any) -> None:
        super().__init__(augment=augment, **common)
        self.root = root
        self._class_names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the class folders of the training images, sorted."""
        if self._class_names is None:
            self._class_names = [folder.name for folder in class_folders(self._train_folder())]
        return list(self._class_names)

    def read_given(self) -> dict[Split, FileSplit]:
        """Finds the images of each split that has a folder."""
        root = find_folder(self.root, "--data.root")
        splits: dict[Split, FileSplit] = {"train": self._labelled(self._train_folder(), of="train")}
        if self._train_folder() != root:
            others: tuple[Split, ...] = ("val", "test")
            splits |= {split: self._labelled(root / split, of=split) for split in others if (root / split).is_dir()}
        return splits

    def _train_folder(self) -> Path:
        root = find_folder(self.root, "--data.root")
        parts = {folder.name for folder in subfolders(root)}
        # What is meant for a split must not be taken for a class, or be passed over.
        strange = sorted(part for part in parts - {"train", "val", "test"} if part.lower() in _SPLITS)
        if strange:
            raise UserError(f"--data.root: {root} has {', '.join(strange)}; call the folders train, val and test")
        return root / "train" if "train" in parts else root

    def _labelled(self, folder: Path, of: str) -> FileSplit:
        names = self.class_names
        found = {path.name: images_within(path) for path in subfolders(folder)}
        for name in found:
            if name not in names:
                raise unknown(f"class of the {of} images", name, names, key="--data.root")
        empty = [name for name in names if not found.get(name)]
        if empty and of == "train":
            raise UserError(f"--data.root: no images in {', '.join(str(folder / name) for name in empty)}")
        if empty:
            rank_zero_warn(f"{folder}: no images of: {', '.join(empty)}")
        paths = [path for name in names for path in found.get(name, [])]
        if not paths:
            raise UserError(f"--data.root: no images in {folder}")
        sizes = torch.tensor([len(found.get(name, [])) for name in names])
        return FileSplit(PackedPaths.pack("", paths), torch.arange(len(names)).repeat_interleave(sizes))
