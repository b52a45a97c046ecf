"""Base class of the data modules: their options, loaders and state."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.loading.loader import Loader, Position
from lit_ft.data.loading.protocols import Augment, SetT, Source, Split
from lit_ft.data.loading.sampler import EpochSampler
from lit_ft.data.modules.facts import DownloadFacts, SplitFacts
from lit_ft.data.modules.hparams import as_input_spec, save_plain_hyperparameters
from lit_ft.data.modules.options import Sampling, check_options
from lit_ft.data.split import keep_fraction, keep_shots
from lit_ft.errors import UserError


class ImageDataModule(SplitFacts[SetT], DownloadFacts, L.LightningDataModule):
    """Labelled images for training, validation and test.

    A batch has images, uint8 ``(B, C, H, W)``, and targets: int64 ``(B,)`` for multiclass, int64 ``(B, K)`` of zeros
    and ones for multilabel, float64 ``(B, K)`` (float32 on MPS) for regression, and indices into `predict_paths` for
    prediction.

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
        save_plain_hyperparameters(self, inspect.currentframe())
        check_options(batch_size, augment, shots, fraction, sampling, split_seed)
        self.batch_size = batch_size
        self.augment = augment
        self.shots = shots
        self.fraction = fraction
        self.sampling = sampling
        self.split_seed = split_seed
        self.spec = as_input_spec(spec)
        self.input_spec = self.spec or InputSpec()
        self.order_seed: int | None = None
        self.position = Position(self._batches_processed, self._training_loader)
        self.splits: dict[Split, SetT] = {}
        self._is_read = False

    @property
    def hparams_initial(self) -> Any:
        """The hyperparameters for loggers, where a subclass saves its own: without the options that the model has too.

        Lightning refuses two of one name, such as ``task``, which is open here until the model settles it.
        """
        module = self.trainer.lightning_module if self.trainer else None
        known = getattr(module, "hparams", {})
        return {key: value for key, value in super().hparams_initial.items() if key not in known}

    @property
    @abstractmethod
    def predict_paths(self) -> list[str]:
        """Path or name of each image to predict; the second part of a prediction batch indexes it."""

    @abstractmethod
    def read_splits(self) -> dict[Split, SetT]:
        """Finds or reads the images, and splits them. Called once."""

    @abstractmethod
    def source(self, split: Split, augment: bool) -> Source:
        """The images of a split; those of ``predict`` come with their index as target."""

    def sampler(self, source: Any, **options: Any) -> EpochSampler:
        """The order in which a source is read; ``options`` are those of `EpochSampler`."""
        return EpochSampler(len(source), self.batch_size, **options)

    def setup(self, stage: str | None = None) -> None:
        """Reads the images, and takes the size they should have from the model.

        Args:
            stage: Not used: all splits are read together, so that `counts` is complete.
        """
        module = self.trainer.lightning_module if self.trainer else None
        self.input_spec = spec = self.spec or getattr(module, "input_spec", None) or InputSpec()
        if spec.resize < spec.size:
            raise UserError(f"`data.spec.resize`: {spec.resize} is less than `data.spec.size`, {spec.size}")
        self.read()

    def read(self) -> None:
        """Reads the images, unless that was done."""
        if not self._is_read:
            self.splits |= self.read_splits()
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            self.splits = {name: _moveable(split, device) for name, split in self.splits.items()}
            self.splits["train"] = keep_few(
                self.splits["train"], self.shots, self.fraction, self.sampling, self.split_seed, self.class_names
            )
            self._is_read = True

    def train_dataloader(self) -> Loader:
        """Shuffled batches, augmented."""
        if self.order_seed is None:
            seed = torch.initial_seed()
            # Every process must hold the same seed, else the shards overlap; without `seed_everything` they do not.
            self.order_seed = int(self.trainer.strategy.broadcast(seed)) if self.trainer else seed
        return self._loader("train", training=True)

    def val_dataloader(self) -> Loader:
        """Every validation image once, in a fixed order."""
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """Every test image once, in a fixed order; the validation images where there are none for test."""
        if not self._is_read:
            self.setup()
        if self.tested != "test":
            held_out = "to hold some out: `data.test_fraction`"
            rank_zero_warn(f"there are no test images, the validation images are tested on; {held_out}")
        return self._loader(self.tested)

    def predict_dataloader(self) -> Loader:
        """Every image to predict once, with its index into `predict_paths`."""
        return self._loader("predict")

    def state_dict(self) -> dict[str, Any]:
        """The seed of the order and the position in it, so that a resumed run continues with the next batch."""
        return {"order_seed": self.order_seed, "position": self.position.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the order of the run that is resumed."""
        self.order_seed = self.position.seed = state_dict["order_seed"]
        is_fitting = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        if is_fitting and "position" in state_dict:
            self.position.load_state_dict(state_dict["position"])

    def _loader(self, split: Split, training: bool = False) -> Loader:
        if not self._is_read:  # without a Trainer nobody called it
            self.setup()
        source = self.source(split, augment=training and self.augment != "none")
        trainer = self.trainer
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


def keep_few(
    train: SetT, shots: int | None, fraction: float | None, sampling: str, seed: int, class_names: Sequence[str]
) -> SetT:
    """The training images that ``shots`` or ``fraction`` ask for; all where neither is given.

    Raises:
        UserError: ``shots`` or balanced ``sampling`` of images without classes, or more shots than images of a class.
    """
    if (shots or sampling == "balanced") and train.targets.ndim > 1:
        key = "shots" if shots else "sampling"
        raise UserError(f"`data.{key}`: {shots or sampling} is for images of one class each")
    if shots is not None:
        return train.part(keep_shots(train.targets, shots, seed, class_names))
    if fraction is not None:
        return train.part(keep_fraction(train.targets, fraction, seed))
    return train


def _moveable(split: SetT, device: torch.device) -> SetT:
    """A set whose targets can be moved to a device: MPS has no float64."""
    if device.type == "mps" and split.targets.dtype == torch.float64:
        return cast(SetT, replace(cast(Any, split), targets=split.targets.float()))
    return split
