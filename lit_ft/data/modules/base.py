"""Base class of the data modules: options, splits, loaders and state, and checks of options in common."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Generic, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_ft.backbones.input_spec import Fit, InputSpec
from lit_ft.backbones.weights.torch_files import is_plain, plain
from lit_ft.compat import collect_constructor_arguments
from lit_ft.data.files.idx import find_idx
from lit_ft.data.fingerprint import Fingerprint, fingerprint
from lit_ft.data.loading.loader import Loader, Position
from lit_ft.data.loading.protocols import Augment, ImageSource, SetT, Split
from lit_ft.data.loading.sampler import EpochSampler
from lit_ft.data.modules.options import Sampling, check_options
from lit_ft.data.split import class_counts, keep_fraction, keep_shots, warn_without_test
from lit_ft.errors import UserError
from lit_ft.tasks.task import TaskName


class DataFacts(ABC, Generic[SetT]):
    """What other parts of a run ask of a data module; numbers of images and ``tested`` need `setup`."""

    splits: dict[Split, SetT]
    task: TaskName = "multiclass"
    """The task that the targets are for."""
    in_files = False
    """Whether each image is a file."""
    reads_bands = False
    """Whether raw values of bands can be read."""
    sees_whole_images = False
    """Whether images are square, and enter the network as they are, whatever its fit."""
    fit: Fit | None = None
    """How photos become the squares that a network takes; where it is not said here, the model has it."""
    test_advice: str = "hold some out"
    """How to get test images, where there are none."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Name of each class, in the order of the targets; known before `setup`."""

    @property
    @abstractmethod
    def predict_paths(self) -> list[str]:
        """Path or name of each image to predict; the second part of a prediction batch indexes it."""

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

    def files(self) -> dict[Path, str | None]:
        """Path, without ``.gz``, and address of each file that `prepare_data` can download into ``root``, if any."""
        return {}

    find_file = staticmethod(find_idx)
    """The file itself, or its gzipped form, or nothing."""

    def missing_files(self) -> list[Path]:
        """Those of `files` that are not on this machine."""
        return [path for path in self.files() if self.find_file(path) is None]


class ImageDataModule(DataFacts[SetT], L.LightningDataModule):
    """Labelled images for training, validation and test.

    A batch has images, uint8 or raw float32 ``(B, C, H, W)``, and targets: int64 ``(B,)`` for multiclass, int64
    ``(B, K)`` of zeros and ones for multilabel, float64 ``(B, K)`` (float32 on MPS) for regression, and indices into
    `predict_paths` for prediction.

    Args:
        batch_size: Number of images in a batch, in each process.
        augment: Random changes of the training images: ``none``; ``basic``, those that are safe for this data set; or
            ``basic`` followed by torchvision's TrivialAugmentWide (``trivial``: one strong change), RandAugment
            (``rand``: two moderate ones) or AugMix (``augmix``: a blend of weak ones). These three turn, shear and
            move images and change their contrast. They take one image at a time, which is slower.
        shots: Train on this many images per class, chosen by ``split_seed``; fewer are always a subset of more.
        fraction: Train on this share of the images of each class instead, likewise.
        sampling: ``shuffle`` takes every image once an epoch. ``balanced`` takes as many images of each class, those of
            small classes more than once and not all of large ones; an epoch is as long.
        split_seed: Seed of every random split and choice of images. It is apart from the seed of training, so that
            runs with different seeds are tested on the same images.
        spec: Size and interpolation of the images. When not given, what the backbone wants.

    Raises:
        UserError: An option is out of range.
    """

    def __init__(
        self,
        batch_size: int = 32,
        augment: Augment = "basic",
        shots: int | None = None,
        fraction: float | None = None,
        sampling: Sampling = "shuffle",
        split_seed: int = 0,
        spec: InputSpec | None = None,
    ) -> None:
        super().__init__()
        _save_hyperparameters(self, cast(FrameType, inspect.currentframe()))
        check_options(batch_size, augment, shots, fraction, sampling, split_seed)
        self.batch_size = batch_size
        self.augment = augment
        self.shots, self.fraction = shots, fraction
        self.sampling = sampling
        self.split_seed = split_seed
        self.spec = InputSpec.read(spec)
        self.input_spec = self.spec or InputSpec()
        self.order_seed: int | None = None
        self.position = Position(self._batches_processed, self._training_loader)
        self.splits: dict[Split, SetT] = {}

    @property
    def hparams_initial(self) -> Any:
        """The hyperparameters for loggers: without those of the model, as Lightning refuses two of one name."""
        known = getattr(self.trainer.lightning_module, "hparams", {}) if self.trainer else {}
        return {key: value for key, value in super().hparams_initial.items() if key not in known}

    @abstractmethod
    def read_splits(self) -> dict[Split, SetT]:
        """Finds or reads the images, and splits them. Called once."""

    def with_splits(self, splits: Mapping[Split, SetT]) -> ImageDataModule[SetT]:
        """The same data module with other images, for a fit of its own."""
        other = copy(self)
        other.splits, other.position = dict(splits), Position(other._batches_processed, other._training_loader)
        return other

    @abstractmethod
    def source(self, split: Split, augment: bool) -> ImageSource:
        """The images of a split; those of ``predict`` come with their index as target."""

    def sampler(self, source: Any, **options: Any) -> EpochSampler:
        """The order in which a source is read; ``options`` are those of `EpochSampler`."""
        return EpochSampler(len(source), self.batch_size, **options)

    def find_spec(self) -> InputSpec:
        """The images as the model wants them, or as the options have them.

        Raises:
            UserError: The model takes raw values of bands, and these images have none.
        """
        module = self.trainer.lightning_module if self.trainer else None
        spec = getattr(module, "input_spec", None) or InputSpec()
        if spec.bands is not None and not self.reads_bands:
            raise UserError(
                f"`data`: the model takes raw values of bands, and {type(self).__name__} gives photos of 8 bits; give "
                "ImageFolderDataModule or ImageTableDataModule"
            )
        return self._adapted(spec)

    def take_spec(self, spec: InputSpec) -> None:
        """Takes what a model expects of images, but for what the options say."""
        self.input_spec = self._adapted(spec)

    def _adapted(self, spec: InputSpec) -> InputSpec:
        return (self.spec.with_channels_of(spec) if self.spec else spec).with_fit(self.fit)

    def measured_spec(self) -> InputSpec:
        """The images as the network takes them; where they are raw values, with their mean and standard deviation."""
        return self.input_spec

    def setup(self, stage: str | None = None) -> None:
        """Takes the size of the images from the model, and reads all splits, so that `counts` is complete."""
        self.input_spec = spec = self.find_spec()
        if spec.resize < spec.size:
            raise UserError(f"`data.spec.resize`: {spec.resize} is less than `data.spec.size`, {spec.size}")
        self.read(stage)

    def read(self, stage: str | None = None) -> None:
        """Reads the images of all splits, for whichever stage of the Trainer, unless that was done."""
        if "train" in self.splits:
            return
        splits = self.read_splits()
        if self.trainer and self.trainer.strategy.root_device.type == "mps":  # which has no float64
            for name, split in splits.items():
                if split.targets.dtype == torch.float64:
                    splits[name] = cast(SetT, replace(cast(Any, split), targets=split.targets.float()))
        splits["train"] = self._keep_few(splits["train"])
        self.splits |= splits

    def _keep_few(self, train: SetT) -> SetT:
        """The training images that ``shots`` or ``fraction`` ask for; all where neither is given."""
        if len(train) and (self.shots or self.sampling == "balanced") and train.targets.ndim > 1:
            key = "shots" if self.shots else "sampling"
            raise UserError(f"`data.{key}`: {self.shots or self.sampling} is for images of one class each")
        if self.shots is not None and len(train):  # else there are those to test alone
            return train.part(keep_shots(train.targets, self.shots, self.split_seed, self.class_names))
        if self.fraction is not None and len(train):
            return train.part(keep_fraction(train.targets, self.fraction, self.split_seed))
        return train

    def train_dataloader(self) -> Loader:
        """Shuffled batches, augmented."""
        if self.order_seed is None:
            seed = torch.initial_seed()
            # Every process must hold the same seed, else the shards overlap; without `seed_everything` they do not.
            self.order_seed = int(self.trainer.strategy.broadcast(seed)) if self.trainer else seed
        return self._loader("train")

    def val_dataloader(self) -> Loader:
        """Every validation image once, in a fixed order."""
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """Every test image once, in a fixed order; the validation images where there are none for test."""
        return self._loader("test")

    def predict_dataloader(self) -> Loader:
        """Every image to predict once, with its index into `predict_paths`."""
        return self._loader("predict")

    def state_dict(self) -> dict[str, Any]:
        """The seed of the order and the position in it, so that a resumed run continues with the next batch."""
        return {"order_seed": self.order_seed, "position": self.position.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the order of the run that is resumed."""
        self.order_seed = self.position.seed = state_dict["order_seed"]
        if "position" in state_dict and (self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING):
            self.position.load_state_dict(state_dict["position"])

    def _loader(self, split: Split) -> Loader:
        if not {"train", split} & self.splits.keys():  # without a Trainer nobody called it
            self.setup()
        if split == "test" and self.tested != "test":
            split = self.tested
            warn_without_test(self.test_advice)
        training, trainer = split == "train", self.trainer
        source = self.source(split, augment=training and self.augment != "none")
        sampler = self.sampler(
            source,
            training=training,
            # ``trainer.overfit_batches`` means the same few batches in every epoch.
            shuffle=training and not getattr(trainer, "overfit_batches", 0),
            classes=self.splits["train"].targets if training and self.sampling == "balanced" else None,
            seed=self.order_seed or 0,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return Loader(source, sampler, self.position if training else None)

    def _training_loader(self) -> Loader | None:
        loader = self.trainer.train_dataloader if self.trainer else None
        return loader if isinstance(loader, Loader) else None

    def _batches_processed(self) -> int | None:
        trainer: Any = self.trainer
        return int(trainer.fit_loop.epoch_loop.batch_progress.current.processed) if trainer else None


def _save_hyperparameters(module: L.LightningDataModule, constructor: FrameType) -> None:
    """Saves the arguments of a constructor, and of those of its subclasses, which checkpoints then contain.

    What is no plain value is left out: the checkpoint could not be read without running code. Loggers get none of
    them, as the model has options of the same name.
    """
    given = {name: value for level in collect_constructor_arguments(constructor) for name, value in level.items()}
    others = [name for name, value in given.items() if not is_plain(plain(value))]
    module.save_hyperparameters(logger=False, frame=constructor, ignore=others)
    module.hparams.update(plain(dict(module.hparams)))
