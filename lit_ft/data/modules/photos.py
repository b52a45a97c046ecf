"""Base of the data modules of photos in files; splits that are not given are held out from the training images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.files.image_index import find_images_to_predict
from lit_ft.data.images.photo_cache import PhotoCache, SplitCaches
from lit_ft.data.images.transforms import train_transform
from lit_ft.data.images.verification import OnBadImage, Verification, splits_to_verify
from lit_ft.data.loading.photo_source import PhotoSource
from lit_ft.data.loading.protocols import Split
from lit_ft.data.loading.workers import check_workers, workers_for
from lit_ft.data.modules.base import ImageDataModule, check_choice
from lit_ft.data.modules.held_out import TEST_ADVICE, HeldOutFractions, check_groups
from lit_ft.data.tables.tables import Columns, write_split_table
from lit_ft.errors import UserError


class PhotoDataModule(ImageDataModule[FileSplit]):
    """Photos in files, decoded when they are needed.

    Args:
        val_fraction: Fraction of the images held out for validation, where no validation split is given.
        test_fraction: Fraction of the images held out for test, where no test split is given. With 0 the validation
            images are tested on, with a warning.
        folds: Divide the images to train and validate on into this many folds, and not by ``val_fraction``: each class
            in proportion, and groups whole. lit-ft finetune then trains a model for each fold, on all others, and
            measures each image by the model that has not seen it. Test images stay apart.
        fold: The fold that is held out, from 1, where one alone is to be trained for.
        predict: An image, or a folder with images at any depth, to predict. When not given, the test images.
        num_workers: Number of processes that read images, for each training process. When not given, chosen by the
            number of CPUs and the shared memory.
        cache: A folder for resized copies of the images, so that they are decoded once and not in every epoch. It is
            written when training first starts, and again when images change, and may be deleted at any time. Scores
            are the same as without; training crops are cut from the copies.
        on_bad_image: What to do with images that cannot be read: ``error`` stops and names them, ``skip`` leaves them
            out with a warning. Each image is read once, before it is first used and again when it has changed; not
            with ``trainer.fast_dev_run``.
        **common: The options of every data module.
    """

    in_files = True
    group_key: str
    """The option that names groups."""
    columns = Columns()
    """The names of the columns of the table that `write_split` writes."""

    test_advice = TEST_ADVICE

    def __init__(
        self,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        folds: int | None = None,
        fold: int | None = None,
        predict: str | None = None,
        num_workers: int | None = None,
        cache: str | None = None,
        on_bad_image: OnBadImage = "error",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.folds = folds
        self.fold = fold
        self.held_out = HeldOutFractions(val_fraction, test_fraction, folds, fold)
        check_workers(num_workers)
        if cache is not None and not cache.strip():
            raise UserError(f"`data.cache`: {cache!r} names no folder; name one, or leave the option out")
        check_choice("on_bad_image", on_bad_image, get_args(OnBadImage))
        self.predict = predict
        self.num_workers = num_workers
        self.cache = cache
        self.on_bad_image = on_bad_image
        self.verifies = True
        self.group_numbers: dict[str, int] = {}
        """Number of each group, by its name: what is the same for each image of a patient, a video, …"""
        self._caches = SplitCaches()
        self._verification = Verification()
        self._whole: dict[Split, FileSplit] = {}

    @abstractmethod
    def read_given(self) -> dict[Split, FileSplit]:
        """Finds the images of each split that is given: those to train on, and perhaps others."""

    @property
    def left_out(self) -> dict[Split, list[str]]:
        """By split, the images that cannot be read and are left out, and why; only for splits that were used."""
        return self._verification.left_out

    @property
    def predict_paths(self) -> list[str]:
        """The path of each image to predict."""
        return [str(path) for path in self.splits["predict"].paths]

    def label_cells(self, targets: Tensor) -> Iterator[list[str]]:
        """The cells of the label columns in that table, for each target."""
        names = self.class_names
        return ([names[target]] for target in targets.tolist())

    def prepare_data(self) -> None:
        """Reads all images once and writes the cache of a fit, on one process of each machine; the others use both."""
        stage = self.trainer.state.fn if self.trainer else TrainerFn.FITTING
        self.read(stage)
        found = [self._verification.find(split, self.splits[split]) for split in self._to_verify(stage)]
        # What is refused is refused in `setup`, by all processes alike.
        if self.cache is not None and stage == TrainerFn.FITTING and (self.on_bad_image == "skip" or not any(found)):
            self.setup("fit")
            self._cached("train")

    def setup(self, stage: str | None = None) -> None:
        """Finds the images; raises `UserError` where some cannot be read, and are not to be left out."""
        super().setup(stage)
        used = {split: self.splits[split] for split in self._to_verify(stage)}
        self.splits |= self._verification.apply(used, self.on_bad_image, self.class_names if "train" in used else [])

    def read(self, stage: str | None = None) -> None:
        """Finds the images, unless that was done; to predict those that are given, these alone, and each time anew."""
        if stage == "predict" and self.predict is not None:
            self.splits["predict"] = find_images_to_predict(self.predict)
            self.left_out.pop("predict", None)
        else:
            super().read(stage)

    def read_splits(self) -> dict[Split, FileSplit]:
        """Finds the images, and holds out what is not given."""
        splits = self.held_out.pool(self.read_given())
        check_groups(splits, list(self.group_numbers), self.group_key)
        splits = self.held_out.apply(splits, self.split_seed, self.class_names, self.group_key)
        self._whole = dict(splits)
        if self.predict is None:
            splits["predict"] = splits["test" if "test" in splits else "val"].indexed()
        elif "predict" not in self.splits:  # else an earlier prediction has found them, and verified them
            splits["predict"] = find_images_to_predict(self.predict)
        return splits

    def source(self, split: Split, augment: bool) -> PhotoSource:
        """The images of a split; those of ``predict`` come with their index as target."""
        spec, files = self.input_spec, self.splits[split]
        transform = train_transform(spec, self.augment) if augment else spec.geometry()
        workers = workers_for(self.trainer, len(files), self.batch_size, spec.size**2 * 3, self.num_workers)
        return PhotoSource(files, transform, workers, self._cached(split))

    def write_split(self, file: Path) -> None:
        """Writes which image is in which split, as a table that `ImageTableDataModule` reads; needs `setup`.

        Each image is in it once, also those that ``shots`` or ``fraction`` leave out.
        """
        write_split_table(file, self._whole.items(), self.columns, self.label_cells, list(self.group_numbers))

    def with_splits(self, splits: Mapping[Split, FileSplit]) -> ImageDataModule[FileSplit]:
        """See `ImageDataModule.with_splits`; the images have been verified, and a cache would replace that of all."""
        other = cast(PhotoDataModule, super().with_splits(splits))
        other.cache, other.verifies = None, False
        return other

    def number_groups(self, names: Iterable[str]) -> Tensor:
        """The numbers of groups, int64 ``(N,)``, for their names."""
        numbers = self.group_numbers
        return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.long)

    def _cached(self, split: Split) -> PhotoCache | None:
        """What is read instead of the images of a split; nothing where these are decoded."""
        if self.cache is None or (split == "predict" and self.predict is not None):
            return None
        # To evaluate once, it would not pay to write it.
        write = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        caches = self._caches.open(self.cache, self.splits, self.input_spec, write, self.num_workers)
        return caches.get(self.tested if split == "predict" else split)

    def _to_verify(self, stage: str | None) -> list[Split]:
        """The splits that are used for the first time."""
        if not self.verifies or getattr(self.trainer, "fast_dev_run", False):
            return []
        return [split for split in splits_to_verify(stage, self.splits, self.tested) if split not in self.left_out]
