"""Base of the data modules of photos in files; splits that are not given are held out from the training images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_ft.backbones.input_spec import Bands, Fit, InputSpec, check_bands
from lit_ft.data.bands.npy import format_doubt
from lit_ft.data.bands.reader import BandReader, count_bands, refuse_missing_bands
from lit_ft.data.bands.statistics import measure_bands
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.files.image_index import find_images_to_predict
from lit_ft.data.images.photo_cache import PhotoCache, SplitCaches
from lit_ft.data.images.transforms import train_transform
from lit_ft.data.images.verification import OnBadImage, Verification, splits_to_verify
from lit_ft.data.loading.photo_source import PhotoSource
from lit_ft.data.loading.protocols import Augment, Split
from lit_ft.data.loading.workers import check_workers, workers_for
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.modules.held_out import TEST_ADVICE, HeldOutFractions, check_groups
from lit_ft.data.modules.options import check_choice
from lit_ft.data.tables.labels import format_label_cells
from lit_ft.data.tables.tables import Columns, write_split_table
from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn


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
        fit: How a photo becomes the square that the network takes, in evaluation and prediction: ``crop`` cuts out the
            centre; ``pad`` sees the whole photo, with a rim of the mean colour; ``squash`` squeezes it. The checkpoint
            records it. When not given, that of the model: ``crop``, but for a few of timm's networks.
        on_bad_image: What to do with images that cannot be read: ``error`` stops and names them, ``skip`` leaves them
            out with a warning. Each image is read once, before it is first used and again when it has changed; not
            with ``trainer.fast_dev_run``.
        bands: Numbers of the bands to read of each image, such as [4, 3, 2], or all: raw values at their full depth, of
            TIFF, NumPy arrays, DICOM and photos. Their mean and standard deviation are those of the training images.
            When not given, images are photos, in 8 bits of three colours.
        **common: The options of every data module.
    """

    in_files = True
    reads_bands = True
    measures_bands = True
    """Whether mean and standard deviation of bands are computed; a plan does without."""
    group_key: str
    """The option that names groups."""
    columns = Columns()
    """The names of the columns of the table that `write_split` writes."""
    label_separator: str | None = None
    """What stands between several labels in one of its cells."""
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
        bands: list[int] | Literal["all"] | None = None,
        fit: Fit | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_choice("fit", fit, get_args(Fit))
        self.fit = fit
        self.bands = None if bands is None else check_bands(bands, "`data.bands`")
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
        self._has_warned = False  # of arrays that may be read either way
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
        return format_label_cells(targets, self.task, self.class_names, len(self.columns.labels), self.label_separator)

    def prepare_data(self) -> None:
        """Reads all images once and writes the cache of a fit, on one process of each machine; the others use both."""
        stage = self.trainer.state.fn if self.trainer else TrainerFn.FITTING
        self.read(stage)
        self.input_spec = self._with_bands(self.find_spec())
        found = [self._verification.find(split, self.splits[split], self.reader) for split in self._to_verify(stage)]
        if stage != TrainerFn.FITTING or (self.on_bad_image != "skip" and any(found)):
            return  # what is refused is refused in `setup`, by all processes alike
        if self.cache is not None or self.reader is not None:
            self.setup("fit")
            self.measured_spec()
            self._cached("train")

    def setup(self, stage: str | None = None) -> None:
        """Finds the images; raises `UserError` where some cannot be read, and are not to be left out."""
        super().setup(stage)
        self.input_spec = self._with_bands(self.input_spec)
        if self.bands is not None and stage in (None, "fit"):
            refuse_missing_bands(self.splits["train"].paths, BandReader(self.bands))
            self._warn_of_doubt(self.bands)
        if self.reader is not None and stage == "fit" and self.augment not in ("none", "basic"):
            rank_zero_warn(f"`data.augment`: {self.augment} changes colours; raw values of bands get basic alone")
            self.augment = "basic"
        used = {split: self.splits[split] for split in self._to_verify(stage)}
        names = self.class_names if "train" in used else []
        self.splits |= self._verification.apply(used, self.on_bad_image, names, self.reader)

    def read(self, stage: str | None = None) -> None:
        """Finds the images, unless that was done; to predict those that are given, these alone, and each time anew."""
        if stage == "predict" and self.predict is not None:
            self.splits["predict"] = find_images_to_predict(self.predict, raw=self.is_raw)
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
            splits["predict"] = find_images_to_predict(self.predict, raw=self.is_raw)
        return splits

    @property
    def is_raw(self) -> bool:
        """Whether raw values of bands are read, by the options or for the model."""
        return self.bands is not None or self.find_spec().bands is not None

    @property
    def reader(self) -> BandReader | None:
        """How raw values of bands are read, where they are; before `setup`, it is not known how many there are."""
        own = None if self.bands is None else BandReader(self.bands)
        return BandReader.of(self.input_spec) or own

    def find_spec(self) -> InputSpec:
        """See `ImageDataModule.find_spec`; raises `UserError` for other bands than the model's."""
        spec = super().find_spec()
        if self.bands is not None and spec.bands not in (None, self.bands):
            own, given = ("all" if bands == "all" else list(bands or ()) for bands in (spec.bands, self.bands))
            raise UserError(f"`data.bands`: {given}, but the model takes {own}; leave it out")
        return spec

    def measured_spec(self) -> InputSpec:
        """See `ImageDataModule.measured_spec`; the model's own, or of the training images that there are.

        Raises:
            UserError: An image cannot be read.
        """
        spec = self.find_spec()
        if self.bands is None or spec.bands is not None:
            return spec
        spec = self._with_bands(spec)
        reader = BandReader.of(spec)
        if reader is None or not self.measures_bands:
            return spec
        found = measure_bands(self.splits["train"].paths, reader)
        return replace(spec, mean=found.mean, std=found.std)

    def source(self, split: Split, augment: bool) -> PhotoSource:
        """The images of a split; those of ``predict`` come with their index as target."""
        spec, files = self.input_spec, self.splits[split]
        kind: Augment = self.augment if spec.bands is None else "basic"
        transform = train_transform(spec, kind) if augment else spec.geometry()
        image_bytes = spec.size**2 * (3 if spec.bands is None else 4 * spec.channels)
        workers = workers_for(self.trainer, len(files), self.batch_size, image_bytes, self.num_workers)
        return PhotoSource(files, transform, workers, self._cached(split), self.reader)

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

    def _with_bands(self, spec: InputSpec) -> InputSpec:
        """The spec with the bands that are asked for; mean and deviation are 0 and 1 until they are computed."""
        if self.bands is None or spec.bands is not None:
            return spec
        number = self._count_bands() if self.bands == "all" else len(self.bands)
        return replace(spec, bands=self.bands, mean=(0.0,) * number, std=(1.0,) * number)

    def _warn_of_doubt(self, bands: Bands) -> None:
        """Warns once of arrays that may be read either way, unless the model says how many bands they have."""
        if self._has_warned or self.find_spec().bands is not None:
            return
        if doubt := format_doubt(self.splits["train"].paths, bands):
            self._has_warned = True
            rank_zero_warn(doubt)

    def _count_bands(self) -> int:
        splits: list[Split] = ["train", "val", "test", "predict"]
        return count_bands(next((self.splits[name].paths for name in splits if len(self.splits.get(name, ()))), ()))

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
