"""Decides what all sets of photos offer: what is split off, what is predicted, and how many processes read."""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.files.folders import find_folder, listed
from lit_ft.data.files.formulas import escape_formula
from lit_ft.data.files.image_index import index_images, warn_passed_over
from lit_ft.data.files.packed_paths import PackedPaths
from lit_ft.data.images.cache_writer import photo_cache
from lit_ft.data.images.photo_cache import PhotoCache, PhotoFiles
from lit_ft.data.images.transforms import train_transform
from lit_ft.data.images.verify import unreadable
from lit_ft.data.loading.photo_source import FileSplit, PhotoSource
from lit_ft.data.loading.protocols import Split
from lit_ft.data.loading.workers import check_workers, usable_cpus, workers_for
from lit_ft.data.modules.base import ImageDataModule, check_choice, check_fraction
from lit_ft.data.split import class_counts, hold_out
from lit_ft.errors import UserError

OnBadImage = Literal["error", "skip"]
_NAMED = 10


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a table of images.

    Args:
        path: Where each image is.
        labels: What is to be learnt of it.
        split: Train, val or test.
        group: What no two splits may share.
    """

    path: str = "path"
    labels: tuple[str, ...] = ("label",)
    split: str = "split"
    group: str = "group"


class PhotoDataModule(ImageDataModule[FileSplit]):
    """Photos in files, decoded when they are needed.

    Args:
        val_fraction: Fraction of the images for validation, where no split of them is given.
        test_fraction: Fraction of the images for test, where no split of them is given. With 0 the validation images
            are tested on, and a warning says so.
        predict: An image, or a folder with images at any depth, to predict. When not given, the test images.
        num_workers: Number of processes that read images, for each training process. When not given, chosen by the
            number of CPUs and the shared memory.
        cache: A folder for copies of the images in the size that they are evaluated at, so that they are decoded once
            and not in every epoch. Written when training first starts, and again when images change; evaluating gives
            the same numbers as without, and training crops are cut from the copies. It may be deleted at any time.
        on_bad_image: Every image is read once before a run, or an evaluation, that uses it for the first time, and
            again when it has changed. If some cannot be read, ``error`` stops and names them, ``skip`` leaves them out
            and says so. Not with ``trainer.fast_dev_run``.
        **common: The options of every data module.
    """

    def __init__(
        self,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        predict: str | None = None,
        num_workers: int | None = None,
        cache: str | None = None,
        on_bad_image: OnBadImage = "error",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_fraction("val_fraction", val_fraction)
        check_fraction("test_fraction", test_fraction, zero=True)
        if val_fraction + test_fraction >= 1:
            given = f"{test_fraction} and `data.val_fraction` {val_fraction}"
            raise UserError(f"`data.test_fraction`: {given} leave nothing to train on")
        check_workers(num_workers)
        if cache is not None and not cache.strip():
            raise UserError(f"`data.cache`: {cache!r} names no folder; name one, or leave the option out")
        check_choice("on_bad_image", on_bad_image, get_args(OnBadImage))
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.predict = predict
        self.num_workers = num_workers
        self.cache = cache
        self._caches: tuple[InputSpec, dict[Split, PhotoCache]] | None = None
        self.on_bad_image = on_bad_image
        self.verifies = True
        self._bad: dict[Split, dict[int, str]] = {}
        self.left_out: dict[Split, list[str]] = {}
        """The images of each split that cannot be read, and why; those of a split that was not used yet are missing."""
        # What is the same for each image of a patient, a video, …: its number, by its name.
        self.group_numbers: dict[str, int] = {}
        self._whole: dict[Split, FileSplit] = {}

    @abstractmethod
    def read_given(self) -> dict[Split, FileSplit]:
        """Finds the images of each split that is given: those to train on, and perhaps others."""

    @property
    @abstractmethod
    def group_key(self) -> str:
        """The option that tells groups."""

    @property
    def columns(self) -> Columns:
        """The names of the columns of the table that `write_split` writes."""
        return Columns()

    def label_cells(self, targets: Tensor) -> Iterator[list[str]]:
        """The cells of the label columns in that table, for each target."""
        names = self.class_names
        return ([names[target]] for target in targets.tolist())

    @property
    def predict_paths(self) -> list[str]:
        """The path of each image to predict."""
        return [str(path) for path in self.splits["predict"].paths]

    def prepare_data(self) -> None:
        """Reads all images once and writes the cache of a fit, on one process of each machine; the others use both."""
        stage = self.trainer.state.fn if self.trainer else TrainerFn.FITTING
        self._find(stage and stage.value)
        found = [self._unreadable(split) for split in self._to_verify(stage and stage.value)]
        # What is refused is refused in `setup`, by all processes alike.
        if self.cache is not None and stage == TrainerFn.FITTING and (self.on_bad_image == "skip" or not any(found)):
            self.setup("fit")
            self._cached("train")

    def setup(self, stage: str | None = None) -> None:
        """Finds the images; those to predict need no training images beside them.

        Args:
            stage: What will be done with them.

        Raises:
            UserError: Some cannot be read, and are not to be left out.
        """
        self._find(stage)
        super().setup(stage)
        self._leave_out(self._to_verify(stage))

    def _find(self, stage: str | None) -> None:
        if stage == "predict" and self.predict is not None:
            self.splits["predict"] = self._to_predict(self.predict)
            self._is_read = True
        self.read()

    def read_splits(self) -> dict[Split, FileSplit]:
        """Finds the images, and splits off what is not given."""
        splits = self.read_given()
        self._refuse_shared_groups(splits)
        total = len(splits["train"])  # both fractions are of all images, whichever is split off first
        self._split_off(splits, "test", round(self.test_fraction * total))
        self._split_off(splits, "val", max(1, round(self.val_fraction * total)))
        self._whole = dict(splits)
        if self.predict is not None:
            splits["predict"] = self._to_predict(self.predict)
        else:
            splits["predict"] = splits["test" if "test" in splits else "val"].indexed()
        return splits

    def source(self, split: Split, augment: bool) -> PhotoSource:
        """The images of a split; those of ``predict`` come with their index as target."""
        spec, files = self.input_spec, self.splits[split]
        transform = train_transform(spec, self.augment) if augment else spec.geometry()
        workers = workers_for(self.trainer, len(files), self.batch_size, spec.size**2 * 3, self.num_workers)
        return PhotoSource(files, transform, workers, self._cached(split))

    def _is_fitting(self) -> bool:
        return self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING

    def _cached(self, split: Split) -> PhotoCache | None:
        """What is read in the place of the images of a split; nothing where these are decoded."""
        if self.cache is None or (split == "predict" and self.predict is not None):
            return None
        splits: list[Split] = [name for name in ("train", "val", "test") if name in self.splits]
        if self._caches is None or self._caches[0] != self.input_spec:
            files = [PhotoFiles.of(self.splits[name].paths) for name in splits]
            workers = usable_cpus() if self.num_workers is None else self.num_workers
            # To evaluate once, it would not pay to write it.
            found = photo_cache(self.cache, files, self.input_spec, write=self._is_fitting(), workers=workers)
            if found is None:
                return None
            self._caches = (self.input_spec, dict(zip(splits, found, strict=True)))
        if split == "predict":
            split = self.tested
        return self._caches[1][split]

    def _to_verify(self, stage: str | None) -> list[Split]:
        """The splits that are used for the first time."""
        if not self.verifies or getattr(self.trainer, "fast_dev_run", False):
            return []
        used: dict[str | None, list[Split]] = {"validate": ["val"], "test": [self.tested], "predict": ["predict"]}
        every: list[Split] = [split for split in self.splits if split != "predict"]
        return [split for split in used.get(stage, every) if split not in self.left_out]

    def _unreadable(self, split: Split) -> dict[int, str]:
        """The rows of a split that cannot be read, and why; a process that has prepared the data has looked already."""
        if split not in self._bad:
            self._bad[split] = unreadable(self.splits[split].paths)
        return self._bad[split]

    def _leave_out(self, splits: list[Split]) -> None:
        found = {split: self._unreadable(split) for split in splits}
        num = sum(len(self.splits[split]) for split in splits)
        listed = [f"{self.splits[split].paths[row]} ({why})" for split in splits for row, why in found[split].items()]
        some = f"{len(listed):,} of {num:,} images cannot be read: {', '.join(listed[:_NAMED])}"
        some += f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else ""
        if listed and self.on_bad_image == "error":
            hint = "mend or remove them, or leave them out with `data.on_bad_image` skip; lit-ft check lists all"
            raise UserError(f"`data.on_bad_image`: {some}; {hint}")
        for split, bad in found.items():
            files = self.splits[split]
            self.left_out[split] = [f"{files.paths[row]}: {why}" for row, why in bad.items()]
            if bad:
                rows = torch.tensor([row for row in range(len(files)) if row not in bad], dtype=torch.long)
                rest = files.part(rows)
                self._refuse_empty(split, files, rest)
                self.splits[split] = rest.indexed() if split == "predict" else rest
        if listed:
            rank_zero_warn(f"`data.on_bad_image` skip: {some}; they are left out")

    def _refuse_empty(self, split: Split, before: FileSplit, after: FileSplit) -> None:
        """Refuses a split of which nothing is left, or training images of which a class has none left."""
        gone = f"`data.on_bad_image`: skip leaves no images of {split}"
        if not len(after):
            raise UserError(f"{gone}, as none of {len(before):,} can be read; mend them")
        if split == "train" and after.targets.ndim == 1 and not after.targets.is_floating_point():
            lost = [self.class_names[k] for k in sorted(set(before.targets.tolist()) - set(after.targets.tolist()))]
            if lost:
                raise UserError(f"{gone} of {', '.join(lost)}, as none can be read; mend them")

    def write_split(self, file: Path) -> None:
        """Writes which image is in which split, as a table that `ImageTableDataModule` reads; needs `setup`.

        Each image is in it once, with its label, split and group: also those that ``shots`` or ``fraction`` leave out.
        What a spreadsheet would run as a formula has an apostrophe before it, which that takes away again.
        """
        names, groups = self.columns, list(self.group_numbers)
        # Names of files need not be valid text.
        with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
            writer = csv.writer(opened)
            header = [names.path, *names.labels, names.split, *([names.group] if groups else [])]
            writer.writerow(map(escape_formula, header))
            for split, images in self._whole.items():
                numbers = images.groups.tolist() if images.groups is not None else [0] * len(images)
                for path, labels, number in zip(
                    images.paths.absolute(), self.label_cells(images.targets), numbers, strict=True
                ):
                    # Not the path, which is absolute.
                    writer.writerow(
                        [path, *map(escape_formula, (*labels, split, *([groups[number]] if groups else [])))]
                    )

    def number_groups(self, names: Iterable[str]) -> Tensor:
        """The numbers of groups, int64 ``(N,)``, for their names."""
        numbers = self.group_numbers
        return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.long)

    def _refuse_shared_groups(self, splits: dict[Split, FileSplit]) -> None:
        names, home = list(self.group_numbers), dict[int, str]()
        for split, images in splits.items():
            for number in set(images.groups.tolist()) if images.groups is not None else ():
                if home.setdefault(number, split) != split:
                    raise UserError(
                        f"{self.group_key}: group {names[number]!r} is both in {home[number]} and in {split}; move all "
                        "its images into one of them"
                    )

    def _split_off(self, splits: dict[Split, FileSplit], split: Split, count: int) -> None:
        if split in splits or not count:
            return
        train = splits["train"]
        self._refuse_single(train, split)
        kept, held = hold_out(train.targets, count, self.split_seed, f"`data.{split}`_fraction", train.groups)
        splits["train"], splits[split] = train.part(kept), train.part(held)
        if train.groups is not None and train.targets.ndim == 1:
            counts = class_counts(splits[split].targets, self.num_classes)
            if without := [name for name, n in zip(self.class_names, counts, strict=True) if not n]:
                rank_zero_warn(
                    f"{self.group_key}: no images of {', '.join(without)} in {split}, as too few groups have any"
                )

    def _refuse_single(self, train: FileSplit, split: Split) -> None:
        """Refuses a class that cannot be both trained on and held out."""
        if train.groups is not None or train.targets.ndim > 1:
            return
        counts = class_counts(train.targets, self.num_classes)
        if single := [name for name, count in zip(self.class_names, counts, strict=True) if count == 1]:
            these = f"the class {single[0]!r} has" if len(single) == 1 else f"the classes {listed(single)} have"
            raise UserError(
                f"`data.{split}`_fraction: {these} one image, and two are needed, one to train on and one for {split}; "
                "add images, or leave the class out"
            )

    @staticmethod
    def _to_predict(given: str) -> FileSplit:
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
