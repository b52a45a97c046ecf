"""Data module of a data set of torchvision, or of anybody's own, by the name of its class."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from lit_ft.assets import data_root
from lit_ft.data.datasets.classes import KEY, DatasetClass, refuse_foreign_dataset
from lit_ft.data.datasets.labelled import read_labelled
from lit_ft.data.datasets.splits import SplitArguments, check_split_args, fetch_splits, make_splits
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.loading.protocols import Augment, ImageSource, Split
from lit_ft.data.modules.arrays import ArraySources, ArraySplit, basic_shift
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.modules.options import check_choice
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.tables.tables import Columns
from lit_ft.errors import UserError
from lit_ft.tasks.monitored import MAIN_METRIC
from lit_ft.tasks.task import TaskName


class ImageDatasetDataModule(PhotoDataModule):
    """A data set of torchvision, such as FashionMNIST or Flowers102, or of your own, by the name of its class.

    Its splits are made by the argument ``train`` or ``split`` of the class; those that it has not are held out from the
    training images, stratified by class. Images in files are read as those of a folder, images in memory as arrays,
    and others item by item.

    Args:
        dataset: The class, which must be given: a name of ``torchvision.datasets``, or a dotted path of your own, with
            ``__len__`` and items ``(image, target)``; images are of Pillow, or uint8 arrays, or float from 0 to 1.
        root: The folder that the class takes (default: the environment variable LIT_FT_DATA, or ``data``).
        dataset_args: Further arguments of the class, such as ``{split: balanced}`` for EMNIST.
        split_args: Those of each split, such as ``{train: {version: 2021_train}, val: {version: 2021_valid}}``. When
            not given, by the signature of the class.
        download: Fetch the files when they are missing, as far as the class can.
        classes: The names of the classes by their number. When not given, those that the data set has, or the numbers.
        task: The task of the targets. When not given, the model's task.
        augment: ``basic``, for files and items, takes a random part of at least half the area and mirrors half of the
            images; for images in memory, shifts by up to an eighth of the side, and mirrors them if they are in colour.
        **common: The options of all sets of photos; ``cache``, ``bands`` and ``on_bad_image`` are for images in files.
    """

    group_key = KEY

    def __init__(
        self,
        dataset: str | None = None,
        root: str | None = None,
        dataset_args: dict[str, Any] | None = None,
        split_args: dict[str, dict[str, Any]] | None = None,
        download: bool = False,
        classes: list[str] | None = None,
        task: TaskName | None = None,
        augment: Augment = "basic",
        **common: Any,
    ) -> None:
        super().__init__(augment=augment, **common)
        if not dataset:
            raise UserError(f"{KEY}: is missing; name a class, such as FashionMNIST, or the dotted path of your own")
        self.task = "multiclass" if task is None else task
        check_choice("task", self.task, list(MAIN_METRIC))
        check_split_args(split_args)
        self.dataset = dataset
        self.root = root
        self.dataset_args = dataset_args or {}
        self.split_args = cast(SplitArguments | None, split_args)
        self.download = download
        self.classes = classes
        self._sources = ArraySources()

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **options: Any) -> ImageDatasetDataModule:
        """Restores the options of a checkpoint, but runs no code of somebody's own that it names.

        Raises:
            UserError: Its data set is not of torchvision, and ``dataset`` does not name it, too.
        """
        made = super().load_from_checkpoint(*args, **options)
        if "dataset" not in options:
            refuse_foreign_dataset(made.dataset, None)
        return made

    @property
    def class_names(self) -> list[str]:
        """The classes or labels in order, or what numbers are called."""
        return list(self._content[0])

    @property
    def in_files(self) -> bool:  # type: ignore[override]
        """Whether each image is a file."""
        return isinstance(self._content[1]["train"], FileSplit)

    @property
    def sees_whole_images(self) -> bool:  # type: ignore[override]
        """Whether images are evaluated as a whole, as those in memory are."""
        return isinstance(self._content[1]["train"], ArraySplit)

    @property
    def columns(self) -> Columns:  # type: ignore[override]
        """The names of the columns of the table that `write_split` writes."""
        return Columns(labels=tuple(self.class_names)) if self.task == "regression" else Columns()

    @property
    def predict_paths(self) -> list[str]:
        """The path of each image to predict, or a name such as ``FashionMNIST/test/17``."""
        if isinstance(self.splits["predict"], FileSplit):
            return super().predict_paths
        return [f"{self._class.name}/{self.tested}/{i}" for i in range(len(self.splits["predict"]))]

    def prepare_data(self) -> None:
        """Fetches the files when asked to and one is missing, and reads images as `PhotoDataModule` does."""
        if self.download and self.missing_files():
            self.fetch()
        super().prepare_data()

    def missing_files(self) -> list[Path]:
        """The folder of the files, unless all are there that the data set needs."""
        try:
            make_splits(self._class, self._arguments, self.split_args)
        except UserError as error:
            if not error.args[0].startswith("`data.root`"):
                raise
            return [data_root(self.root) / self._class.name]
        return []

    def fetch(self) -> None:
        """Fetches the files."""
        fetch_splits(self._class, data_root(self.root), self._arguments, self.split_args)

    def read_given(self) -> dict[Split, FileSplit]:
        """The images of each split that there is."""
        return dict(self._content[1])

    def source(self, split: Split, augment: bool) -> ImageSource:  # type: ignore[override]
        """The images of a split; those of ``predict`` come with their index as target."""
        images: Any = self.splits[split]
        if not isinstance(images, ArraySplit):
            return super().source(split, augment)
        augmentation = self.augment if augment else "none"
        return self._sources.make(images, self.input_spec, basic_shift(images.images), augmentation, self.trainer)

    def write_split(self, file: Path) -> None:
        """Writes which image is in which split, where images are files."""
        if self.in_files:
            super().write_split(file)

    def with_splits(self, splits: Mapping[Split, FileSplit]) -> ImageDataModule[FileSplit]:
        """See `PhotoDataModule.with_splits`."""
        other = cast(ImageDatasetDataModule, super().with_splits(splits))
        other._sources = ArraySources()
        return other

    def _to_verify(self, stage: str | None) -> list[Split]:
        return [split for split in super()._to_verify(stage) if isinstance(self.splits[split], FileSplit)]

    @cached_property
    def _class(self) -> DatasetClass:
        return DatasetClass.find(self.dataset)

    @property
    def _arguments(self) -> dict[str, Any]:
        root = None if self.root is None else str(data_root(self.root))
        return self._class.arguments(root, str(data_root()), self.dataset_args)

    @cached_property
    def _content(self) -> tuple[list[str], dict[Split, Any]]:
        """The names of the classes, and the splits that there are."""
        content = read_labelled(self._class, self._arguments, self.split_args, self.task, self.classes)
        _refuse_options_of_files(self, content[1]["train"], self._class.name)
        return content


def _refuse_options_of_files(data: PhotoDataModule, images: Any, name: str) -> None:
    """Raises `UserError` for options that images in no files have not."""
    if data.fit is not None and isinstance(images, ArraySplit):
        raise UserError(f"`data.fit`: {data.fit} is for photos, and images in memory are squeezed; leave it out")
    asked = {"cache": data.cache, "bands": data.bands, "on_bad_image": data.on_bad_image == "skip" or None}
    for key in (key for key, value in asked.items() if value is not None and not isinstance(images, FileSplit)):
        raise UserError(f"`data.{key}`: is for images in files, and those of {name} are in none; leave it out")
