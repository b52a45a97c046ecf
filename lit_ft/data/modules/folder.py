"""Data module of a folder of photos with one folder a class."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.files.folders import class_folders, find_folder, format_some, subfolders
from lit_ft.data.files.image_index import ImageIndex, index_images, warn_passed_over
from lit_ft.data.loading.protocols import Augment, Split
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.tables.labels import check_names, check_same_form, class_order, names_of_folders
from lit_ft.errors import UserError, unknown
from lit_ft.rank_zero import rank_zero_warn

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


class ImageFolderDataModule(PhotoDataModule):
    """Photos in ``ROOT/train/CLASS/...``, ``ROOT/val/CLASS/...`` and ``ROOT/test/CLASS/...``, or in ``ROOT/CLASS/...``.

    Splits without a folder are held out from the training images, stratified by class. Classes come in the
    order of their names, by number where all are whole numbers.

    Args:
        root: The folder; when not given, ``data``. A relative one may also lie in the folder that the environment
            variable LIT_FT_DATA names.
        augment: ``basic`` takes a random part of at least half the area and mirrors half of the images.
        class_names_from: A file with the name of the class of each folder: JSON or YAML such as
            ``{n01440764: tench}``, or CSV or TSV with the columns ``folder`` and ``class``. When not given, classes are
            called as their folders.
        groups: A regular expression for the path of an image within its split, such as ``patient([0-9]+)``. Images for
            which it finds the same text (that of its first group in parentheses which finds any, else all that it
            matches) are kept in the same split.
        tested_classes: Names of the classes of a model that is only tested on these photos: all below ``ROOT/test``, or
            below ROOT, which need not have photos of each. ``lit-ft test CHECKPOINT --data.root NEW`` gives it.
        **common: The options of all sets of photos.
    """

    group_key = "`data.groups`"

    def __init__(
        self,
        root: str = "data",
        augment: Augment = "basic",
        class_names_from: str | None = None,
        groups: str | None = None,
        tested_classes: list[str] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(augment=augment, **common)
        try:
            self._group = re.compile(groups) if groups is not None else None
        except re.error as error:
            raise UserError(f"`data.groups`: {groups} is not a regular expression ({error})") from error
        self.root = root
        self.class_names_from = class_names_from
        self.tested_classes = tested_classes
        self._folders: dict[str, str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in order: those of the folders of the training images, or what a file calls these."""
        return list(self._class_folders() if self.tested_classes is None else self.tested_classes)

    def read_splits(self) -> dict[Split, FileSplit]:
        """Finds the images, and holds out what is not given; to test a model, those alone."""
        if self.tested_classes is None:
            return super().read_splits()
        root = find_folder(self.root, "`data.root`")
        folder = root / "test" if (root / "test").is_dir() else root
        if folder == root and (root / "train").is_dir():
            raise UserError(f"`data.root`: {root} has train and no test; name the folder that has the class folders")
        index = index_images(folder, "`data.root`", self.is_raw)
        warn_passed_over(folder, "`data.root`", index.passed_over)
        self._folders = {name: name for name in self.tested_classes}
        if self.class_names_from is not None:
            found = {_as_text(part.name): part.name for part in subfolders(folder)}
            names = names_of_folders(self.class_names_from, found, needs_all=False)
            self._folders |= {names[text]: name for text, name in found.items()}
        test = self._labelled(folder, index, of="test")
        return {"train": test.part(torch.arange(0)), "test": test, "predict": test.indexed()}

    def read_given(self) -> dict[Split, FileSplit]:
        """Finds the images of each split that has a folder."""
        root, train = find_folder(self.root, "`data.root`"), self._train_folder()
        folders: dict[Split, Path] = {"train": train}
        if train != root:
            others: tuple[Split, ...] = ("val", "test")
            folders |= {split: root / split for split in others if (root / split).is_dir()}
            if unused := [folder.name for folder in subfolders(root) if folder not in folders.values()]:
                rank_zero_warn(f"`data.root`: not used, as neither train, val nor test: {', '.join(unused)} in {root}")
        found = {split: index_images(folder, "`data.root`", self.is_raw) for split, folder in folders.items()}
        warn_passed_over(root, "`data.root`", sum((index.passed_over for index in found.values()), Counter[str]()))
        for split in [split for split, index in found.items() if split != "train" and self._is_unlabelled(index)]:
            count = len(found.pop(split).paths)
            rank_zero_warn(
                f"`data.root`: {count:,} images not used, as {folders[split]} has no folders of the classes; to "
                f"predict them: `data.predict` {folders[split]}"
            )
        return {split: self._labelled(folders[split], index, of=split) for split, index in found.items()}

    def _train_folder(self) -> Path:
        root = find_folder(self.root, "`data.root`")
        parts = {folder.name for folder in subfolders(root)}
        # What is meant for a split must not be taken for a class, or be passed over.
        strange = sorted(part for part in parts - {"train", "val", "test"} if part.lower() in _SPLITS)
        if strange:
            raise UserError(
                f"`data.root`: {root} has {', '.join(strange)}; call the folders of splits train, val and test, and a "
                "class otherwise"
            )
        others = [name for name in sorted(parts) if name.lower() not in _SPLITS]
        if "train" not in parts:
            if splits := sorted(parts & {"val", "test"}):
                beside = f"beside {format_some(others)} but" if others else "and"
                raise UserError(
                    f"`data.root`: {root} has {' and '.join(splits)} {beside} no train; move the class folders into "
                    f"{root / 'train'}, or, if {splits[0]} is a class, rename it"
                )
            return root
        if others and not subfolders(root / "train"):
            raise UserError(
                f"`data.root`: {root} has {format_some(others)} beside train, which has no class folders; if train is "
                f"a class, rename it, else move the class folders into {root / 'train'}"
            )
        return root / "train"

    def _class_folders(self) -> dict[str, str]:
        """The folder of each class, in the order of the targets; its names are checked once."""
        if self._folders is None:
            folder_of = {_as_text(folder.name): folder.name for folder in class_folders(self._train_folder())}
            if self.class_names_from is not None:
                names = names_of_folders(self.class_names_from, folder_of)
                folder_of = {name: folder_of[folder] for folder, name in names.items()}
            self._folders = {name: folder_of[name] for name in class_order(folder_of)}
            key = "`data.root`" if self.class_names_from is None else "`data.class_names_from`"
            # A table, such as that of the split of a run, takes these for spaces beside the name.
            if spaced := [name for name in self._folders if name != name.strip()]:
                raise UserError(f"{key}: the class {spaced[0]!r} begins or ends with a space; rename it")
            check_names(self._folders, key)
        return self._folders

    def _is_unlabelled(self, index: ImageIndex) -> bool:
        """Whether there are images, but none in a folder, or all in one that is no class."""
        filled = [name for name, (first, last) in index.folders.items() if first < last]
        return len(index.paths) > 0 and not (filled[1:] or set(filled) & set(self._class_folders().values()))

    def _labelled(self, folder: Path, index: ImageIndex, of: str) -> FileSplit:
        folders = list(self._class_folders().values())
        for name in index.folders:
            if name not in folders:
                check_same_form(name, folders, "`data.root`")
                raise unknown(f"class of the {of} images", name, folders, key="`data.root`")
        found = [range(*index.folders.get(name, (0, 0))) for name in folders]
        empty = [name for name, rows in zip(folders, found, strict=True) if not rows]
        if empty and of == "train":
            raise UserError(f"`data.root`: no images in {format_some([str(folder / name) for name in empty])}")
        if not any(found):
            raise UserError(f"`data.root`: no images in {folder}")
        if empty:
            rank_zero_warn(f"{folder}: no images of: {', '.join(empty)}")
        if loose := len(index.paths) - sum(map(len, found)):
            rank_zero_warn(f"`data.root`: {loose:,} images not used, as in no class folder, but in {folder} itself")
        paths = index.paths.part(torch.cat([torch.arange(rows.start, rows.stop) for rows in found]))
        targets = torch.arange(len(folders)).repeat_interleave(torch.tensor([len(rows) for rows in found]))
        return FileSplit(paths, targets, self._grouped(paths))

    def _grouped(self, paths: PackedPaths) -> Tensor | None:
        if self._group is None:
            return None
        names = list(paths.names())
        found = [_text(self._group.search(name)) for name in names]
        if strange := [name for name, text in zip(names, found, strict=True) if not text]:
            raise UserError(
                f"`data.groups`: {self._group.pattern} is not found in {len(strange)} of {len(names)} paths, such as "
                f"{', '.join(strange[:3])}; change it so that it finds the group of each image"
            )
        return self.number_groups(found)


def _as_text(folder: str) -> str:
    """The name of a folder, whatever encoding Python takes names of files to be in."""
    try:
        return os.fsencode(folder).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"`data.root`: the name of the class folder {os.fsencode(folder)!r} is not in UTF-8; rename it, as with "
            "convmv"
        ) from error


def _text(match: re.Match[str] | None) -> str:
    """Group of an image; empty where there is none, as a group in parentheses may match nothing."""
    if match is None:
        return ""
    return next(filter(None, match.groups()), "") if match.re.groups else match[0]
