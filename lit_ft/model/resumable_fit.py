"""The base of a module whose fit can be resumed: its seeds, its images, its schedule, and Lightning's finders."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from lit_ft.compat import attached_trainer, keep_last_batch, skip_empty_hooks, validate_first
from lit_ft.console import rank_zero_print
from lit_ft.data.fingerprint import Fingerprint, difference
from lit_ft.data.loading.loader import adopt_earlier_position
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import UserError
from lit_ft.model.checkpoint import all_hyperparameters, follow_moved_folder, forget_files_elsewhere
from lit_ft.model.first_batch import refuse_no_batch
from lit_ft.model.photo_fit import settle_fit
from lit_ft.model.sharding import share_buffers
from lit_ft.optim.effective_batch import EffectiveBatch
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.schedules import enter_epoch, step_plateaus
from lit_ft.own_code import is_overridden


class ResumableFit(L.LightningModule):
    """A module whose fit, resumed from a checkpoint, ends as an uninterrupted one.

    To weights and loops a checkpoint adds the seed of the run, from which that of each step follows, the fingerprint of
    its images, the length of its epochs, and the validation metrics that its schedule waits for.
    """

    class_names: list[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Notes the arguments of its steps, for which Lightning asks at each batch."""
        super().__init_subclass__(**kwargs)
        for name in ("training_step", "validation_step", "test_step"):
            if inspect.isfunction(step := vars(cls).get(name)):
                cast(Any, step).__signature__ = inspect.signature(step)

    def __init__(self) -> None:
        super().__init__()
        self._seed: int | None = None
        self._images: Fingerprint | None = None
        self._measured: dict[str, float] = {}  # as the checkpoint was written
        self.resumed_schedule: Mapping[str, Any] | None = None  # that in the checkpoint from which the fit resumes
        self._has_followed = False
        self._stepped: set[int] = set()  # the schedulers that Lightning has still to ask for at the end of an epoch

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; a plain one stays one, for which torch would look whether it is a parameter.

        Lightning notes in one which hook it calls, 50 times a step.
        """
        if (value is None or type(value) is str) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def run_seed(self) -> int | None:
        """The seed of the run, by which each step is seeded; None before the first fit."""
        return self._seed

    @property
    def data_module(self) -> Any:
        """The data module of the trainer, if it has one."""
        return getattr(self.trainer, "datamodule", None)

    def setup(self, stage: str) -> None:
        """Takes the seed of a fit from torch; a resume then replaces it by that of its checkpoint."""
        self._has_followed = False
        if stage == "fit" or self.trainer.ckpt_path is None:  # else that of the checkpoint counts
            settle_fit(self, self.data_module, stage == "fit")
        if stage == "fit":
            if not self.training:  # it was loaded to predict, and Lightning would train it as it is
                self.train()
            _refuse_other_checkpoints(self.trainer)
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed())
            self._images = None  # of an earlier fit

    # Lightning's finders

    def _finders(self) -> list[str]:
        callbacks = cast(Any, self.trainer).callbacks
        finders = (BatchSizeFinder, LearningRateFinder)
        return [type(callback).__name__ for callback in callbacks if isinstance(callback, finders)]

    def refuse_finders_on_resume(self) -> None:
        """Raises `UserError` if a resumed run would look for other values, by which Lightning would lose its state."""
        if not self._has_followed and self.trainer.ckpt_path is not None and (found := self._finders()):
            raise UserError(
                f"`trainer.callbacks`: {' and '.join(found)} would find other values than those of the run that is "
                "resumed; leave it out, and give `model.lr` and `data.batch_size` as the run printed them"
            )

    def follow_finders(self) -> None:
        """Builds optimizer and schedule anew where Lightning's finders have changed learning rate or batch size.

        They leave all groups with one rate, and a schedule that knows neither that nor the number of steps. A callback
        that looks at the groups as a fit starts calls this first; it is done once.
        """
        if self._finders() and not self._has_followed:
            self._has_followed = True
            self.trainer.strategy.setup_optimizers(self.trainer)
            size = getattr(self.data_module, "batch_size", None)
            found = f"model.lr {self.hparams['lr']}" + (f"  data.batch_size {size}" if size else "")
            self.print(f"Found  {found}", flush=True)

    def on_fit_start(self) -> None:
        """Follows Lightning's finders, and prints the batch of a step where several processes share it.

        Raises:
            UserError: If a subclass has a ``setup`` of its own that does not call this one's.
        """
        if self._seed is None:
            raise UserError(f"{type(self).__name__}.setup: call super().setup(stage) in it, which sets up the fit")
        self.follow_finders()
        if self.trainer.world_size > 1 and (batch := EffectiveBatch.of(self.trainer)):
            rank_zero_print(batch.format_line(self.hparams.get("lr")))

    # Training

    def on_train_start(self) -> None:
        """Lets the schedule go on where the run is resumed."""
        skip_empty_hooks(self.trainer)
        self.resumed_schedule = None
        keep_last_batch(self.trainer)
        forget_files_elsewhere(self.trainer)
        enter_epoch(self.trainer)

    def on_train_epoch_start(self) -> None:
        """Gives the schedule the number of steps of this epoch, and begins its score."""
        enter_epoch(self.trainer)
        if score := self._score():
            score.reset()

    def train_metrics(self) -> dict[str, float]:
        """The main metric over the training batches of the epoch so far, by its name; all processes must ask.

        There is none where images are mixed.
        """
        score = self._score()
        return score.compute() if score else {}

    def _score(self) -> Any:
        return getattr(getattr(self, "objective", None), "score", None)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds the step by its position, so that mixing and dropout are the same in a resumed run."""
        position = *_split_seed(cast(int, self._seed)), self.current_epoch, batch_idx, self.global_rank
        seed = int(np.random.SeedSequence(np.array(position, np.uint32)).generate_state(1)[0])
        # torch.manual_seed would also note, each with a stack trace, how to seed the kinds of GPU that are not there.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def on_train_epoch_end(self) -> None:
        """Steps a schedule that waits for a plateau, before the checkpoints of the epoch's end are written."""
        if is_overridden(self, "lr_scheduler_step", ResumableFit):
            return  # a subclass steps it in its own way, when Lightning asks for it
        measured = {**self._measured, **self.trainer.callback_metrics}
        self._stepped = {id(scheduler) for scheduler in step_plateaus(self.trainer, measured)}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps a schedule, unless `on_train_epoch_end` has just done it, which a subclass may have replaced."""
        if metric is None or id(scheduler) not in self._stepped:
            super().lr_scheduler_step(scheduler, metric)
        self._stepped.discard(id(scheduler))

    def on_validation_start(self) -> None:
        """Lets all processes validate the same model."""
        share_buffers(self)

    def on_fit_end(self) -> None:
        """Refuses a fit in which no batch came."""
        refuse_no_batch(self.trainer)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def log(self, *args: Any, **kwargs: Any) -> None:
        """Logs as Lightning does; never compiled, as it would be for each name and phase."""
        super().log(*args, **kwargs)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the fit."""
        monitors = {config.monitor for config in self.trainer.lr_scheduler_configs if config.reduce_on_plateau}
        metrics = self.trainer.callback_metrics
        checkpoint["run_seed"] = self._seed
        checkpoint["images"] = self._fingerprint()
        checkpoint["epoch_steps"] = RunLength.of(self.trainer).epoch_steps
        if (score := self._score()) and (state := score.state_dict()):
            checkpoint["train_score"] = state
        checkpoint["measured"] = {str(key): float(metrics[key]) for key in monitors if key in metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resumes the fit, and raises `UserError` if the data has other classes or images than the checkpoint's run."""
        # A subclass may have a hook of its own that adds none to its checkpoints.
        self._seed = checkpoint.get("run_seed", self._seed)
        self._measured = {str(key): float(value) for key, value in checkpoint.get("measured", {}).items()}
        trainer = attached_trainer(self)
        if trainer is None:
            return  # only the weights are loaded
        settle_fit(self, self.data_module, is_fitted_on=False)
        follow_moved_folder(checkpoint, trainer)
        if trainer.state.fn == "fit":
            self._refuse_other_data(checkpoint)
            if score := self._score():
                score.load_state_dict(checkpoint.get("train_score", {}), is_first=self.global_rank == 0)
            self.resumed_schedule = {
                key: checkpoint[key] for key in ("epoch_steps", "lr_schedulers") if key in checkpoint
            }
        adopt_earlier_position(checkpoint, self.data_module)
        validate_first(checkpoint, trainer)

    def _refuse_other_data(self, checkpoint: Mapping[str, Any]) -> None:
        saved, found = all_hyperparameters(checkpoint).get("classes"), None
        if saved not in (None, self.class_names):
            found = f"with the classes {saved}, not {self.class_names}"
        # Earlier versions saved no fingerprint.
        elif checkpoint.get("images") and (images := self._fingerprint()):
            found = difference(checkpoint["images"], images, self.class_names)
        if found is not None:
            path = self.trainer.ckpt_path
            raise UserError(
                f"`ckpt_path`: {path} is of a run {found}; give the same data, or start from its weights with "
                f"`model.weights` {path}"
            )

    def _fingerprint(self) -> Fingerprint | None:
        """The fingerprint of the fit's images, if the data module has one; computed once."""
        if self._images is None and isinstance(self.data_module, ImageDataModule):
            self._images = self.data_module.fingerprint()
        return self._images


def _split_seed(seed: int) -> tuple[int, ...]:
    """A seed in words of 32 bits, the lowest first, as numpy splits it; of an array of them it takes half the time.

    >>> _split_seed(7), _split_seed(2**32 + 7)
    ((7,), (7, 1))
    """
    return (seed,) if seed < 1 << 32 else (seed & 0xFFFFFFFF, seed >> 32)


def _refuse_other_checkpoints(trainer: Any) -> None:
    """Raises `UserError` on all processes if one of them resumes from another checkpoint, or from none."""
    if trainer.world_size == 1 or not dist.is_initialized():
        return
    paths: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(paths, trainer.ckpt_path and str(trainer.ckpt_path))
    other = next((rank for rank, path in enumerate(paths) if path != paths[0]), None)
    if other is not None:
        raise UserError(
            f"`trainer.default_root_dir`: the first process resumes from {paths[0] or 'the start'}, that of rank "
            f"{other} from {paths[other] or 'the start'}; name a folder that all machines share"
        )
