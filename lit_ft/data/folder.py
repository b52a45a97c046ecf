"""Decides how a folder of photos, one folder a class, is split into training, validation and test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_ft.data.base import Augment, ImageDataModule, Split, check_fraction
from lit_ft.data.files import class_folders, find_folder, images_within, subfolders
from lit_ft.data.loader import Loader
from lit_ft.data.photos import FileSplit, PhotoSource, suggested_workers
from lit_ft.data.split import class_counts, hold_out
from lit_ft.data.transforms import train_transform
from lit_ft.errors import UserError, unknown

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


class ImageFolderDataModule(ImageDataModule):
    """Photos in ``ROOT/train/CLASS/...``, ``ROOT/val/CLASS/...`` and ``ROOT/test/CLASS/...``, or in ``ROOT/CLASS/...``.

    What has no folder of its own is split off from the training images, each class in proportion.

    Args:
        root: The folder; when not given, ``data``. A relative one may also lie in the folder that the environment
            variable LIT_FT_DATA names.
        val_fraction: Fraction of the images for validation, where there is no ``val`` folder.
        test_fraction: Fraction of the images for test, where there is no ``test`` folder. With 0 the validation
            images are tested on, and a warning says so.
        predict: An image, or a folder with images at any depth, to predict. When not given, the test images.
        num_workers: Number of processes that read images, for each training process. When not given, chosen by the
            number of CPUs.
        augment: ``basic`` takes a random part of at least half the area and mirrors half of the images.
        **common: The options of every data module.
    """

    def __init__(
        self,
        root: str = "data",
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        predict: str | None = None,
        num_workers: int | None = None,
        augment: Augment = "basic",
        **common: Any,
    ) -> None:
        super().__init__(augment=augment, **common)
        check_fraction("val_fraction", val_fraction)
        check_fraction("test_fraction", test_fraction, zero=True)
        if val_fraction + test_fraction >= 1:
            given = f"{test_fraction} and --data.val_fraction {val_fraction}"
            raise UserError(f"--data.test_fraction: {given} leave nothing to train on")
        if num_workers is not None and num_workers < 0:
            raise UserError(f"--data.num_workers: {num_workers} is less than 0")
        self.root = root
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.predict = predict
        self.num_workers = num_workers
        self._class_names: list[str] | None = None
        self._splits: dict[Split, FileSplit] = {}

    @property
    def class_names(self) -> list[str]:
        """Names of the class folders of the training images, sorted."""
        if self._class_names is None:
            self._class_names = [folder.name for folder in class_folders(self._train_folder())]
        return list(self._class_names)

    @property
    def predict_paths(self) -> list[str]:
        """The path of each image to predict."""
        return [str(path) for path in self._splits["predict"].paths]

    def counts(self) -> dict[str, list[int]]:
        """Number of images of each class, by split. Needs `setup`."""
        return {n: class_counts(s.targets, self.num_classes) for n, s in self._splits.items() if n != "predict"}

    def setup(self, stage: str | None = None) -> None:
        """Finds the images; those to predict need no training images beside them.

        Args:
            stage: What will be done with them.
        """
        if stage == "predict" and self.predict is not None:
            self._splits["predict"] = self._to_predict()
            self._is_read = True
        super().setup(stage)

    def read(self) -> None:
        """Finds the images and splits them."""
        root = find_folder(self.root, "--data.root")
        self._splits = {"train": self._labelled(self._train_folder(), of="train")}
        if self._train_folder() != root:
            for split in ("val", "test"):
                if (root / split).is_dir():
                    self._splits[split] = self._labelled(root / split, of=split)
        total = len(self._splits["train"].paths)  # both fractions are of all images, whichever is split off first
        self._split_off("test", round(self.test_fraction * total))
        self._split_off("val", max(1, round(self.val_fraction * total)))
        self._splits["predict"] = self._to_predict()

    def test_dataloader(self) -> Loader:
        """Every test image once; the validation images where none were held out for test."""
        loader = super().test_dataloader()
        if "test" not in self._splits:
            told = "there are no test images, the validation images are tested on"
            rank_zero_warn(f"{self.root}: {told}; to hold some out: --data.test_fraction")
        return loader

    def source(self, split: Split, augment: bool) -> PhotoSource:
        """The images of a split; those of ``predict`` come with their index as target."""
        spec = self.input_spec
        if spec.resize < spec.size:
            raise UserError(f"--data.spec.resize: {spec.resize} is less than --data.spec.size, {spec.size}")
        files = self._splits[split] if split in self._splits else self._splits["val"]
        workers = self.num_workers
        if workers is None:
            workers = suggested_workers(self.trainer.num_devices if self.trainer else 1)
        # A handful of images is read before as many processes have started.
        workers = min(workers, math.ceil(len(files.paths) / self.batch_size))
        return PhotoSource(files, train_transform(spec) if augment else spec.geometry(), workers)

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
        return FileSplit(paths, torch.arange(len(names)).repeat_interleave(sizes))

    def _split_off(self, split: Split, count: int) -> None:
        if split in self._splits or not count:
            return
        train = self._splits["train"]
        rows = torch.arange(len(train.paths))
        kept, held = hold_out(train.targets, rows, count, self.split_seed, f"--data.{split}_fraction")
        self._splits["train"], self._splits[split] = (
            FileSplit([train.paths[i] for i in part.tolist()], train.targets[part]) for part in (kept, held)
        )

    def _to_predict(self) -> FileSplit:
        if self.predict is None:
            paths = self._splits["test" if "test" in self._splits else "val"].paths
        else:
            given = Path(self.predict).expanduser()
            paths = [given] if given.is_file() else images_within(find_folder(self.predict, "--data.predict"))
            if not paths:
                raise UserError(f"--data.predict: no images in {given}")
        return FileSplit(paths, torch.arange(len(paths)))
