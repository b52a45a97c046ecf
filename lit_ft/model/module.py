"""Decides what a training, validation, test and prediction step is: `FineTuneModule`, backbone + head + task."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any, TypeVar, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection

from lit_ft.backbones import HEAD
from lit_ft.backbones.backbone import StageOutput
from lit_ft.backbones.build import NetworkName, build_backbone, input_spec
from lit_ft.backbones.freezing import FrozenNorm, Staged
from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.backbones.pooling import Pool
from lit_ft.backbones.stem import Stem
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.backbones.weights.trust import refuse_foreign, refuse_foreign_names
from lit_ft.compat import forget_files_elsewhere, keep_last_batch, validate_first
from lit_ft.data.fingerprint import Fingerprint, difference
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import UserError, unknown
from lit_ft.model.checkpoints import TrainedHead, all_hyperparameters, read_checkpoint, saved_arguments, trained_head
from lit_ft.model.compiling import Compiling
from lit_ft.model.divergence import LossWatch, diverged
from lit_ft.model.finders import finders, format_found, refuse_on_resume
from lit_ft.model.first_batch import BatchCheck, check_images, refuse_no_batch, refuse_other_size
from lit_ft.model.heads import HeadConfig, build_head, check_head, set_prior_bias
from lit_ft.model.hparams import PlainHyperparameters
from lit_ft.model.mixing import BatchMix, MixConfig
from lit_ft.model.normalisation import Normalise
from lit_ft.model.regularisation import PenaltyConfig, WeightPenalty
from lit_ft.optim.optimizers import ClassSpec, build_optimizer, build_scheduler, param_groups, settle_plateau
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.schedules import continue_schedule, enter_epoch
from lit_ft.tasks.class_weight import ClassWeight, balanced_weights, check_class_weight
from lit_ft.tasks.classes import (
    TakeClasses,
    classes_of,
    names_of,
    refuse_no_classes,
    refuse_other_task,
    standardisation_of,
    told,
    warn_of_absent,
)
from lit_ft.tasks.metrics import MeanLoss
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import MAIN_METRIC, METRICS, Mode, Task, TaskName

Batch = tuple[Any, Tensor]  # images, or in the frozen part's place what it gave: a `StageOutput`
ConfigT = TypeVar("ConfigT")
ModuleT = TypeVar("ModuleT", bound="FineTuneModule")


class FineTuneModule(PlainHyperparameters, Staged, L.LightningModule):
    """A pretrained backbone with a new head, fine-tuned for a task.

    Images may come as uint8, and are then scaled and normalised here, or as float, and are then taken as they are.
    The number and the names of the classes come from the data module, unless ``classes`` names them.

    For regression it trains on targets of mean 0 and standard deviation 1, by those of the training images, where the
    data module gives them by ``train_targets()``. Losses are of these, answers and metrics in the targets' own units.

    Args:
        backbone: Name of the pretrained network, or class_path, init_args, stages and classifier of your own.
        weights: A tag of its published weights, a .pth, .pt, .safetensors or checkpoint file, or null for random ones.
            A lit_ft checkpoint of the same classes and task gives its trained head, too.
        partial_weights: Load what fits of the weights and warn of the rest, rather than refuse.
        stem: The network's own, or small for images of 28 to 64 pixels: stride 1 and no pooling.
        pool: From the last stage to the features: the network's own, the avg over all places, flatten, or class token.
        input: Where the images differ from what the backbone's weights expect.
        head: The new layers.
        task: What is learnt: one class an image, any number of classes, or numbers.
        label_smoothing: Share of the target that is spread over all classes; for multiclass, else it is left out.
        class_weight: With balanced, rare classes count more in the training loss: n / (K n_k), or for multilabel the
            positives by negatives / positives. The losses of validation and test are not weighted, so that they can be
            compared between runs.
        mix: How the images of a training batch are erased and mixed, on the device; never in an evaluation.
        lr: Learning rate of the head.
        lr_decay: Factor from the learning rate of a stage to that of the next shallower one.
        optimizer: A torch optimizer, by name or as class_path and init_args; null is AdamW.
        lr_scheduler: A torch learning-rate scheduler, likewise, its functions by dotted path, and from Python alone its
            schedulers as a list of the same; null keeps the rates constant.
        penalty: What the objective adds for the size of the weights.
        gradient_checkpointing: Compute activations again in the backward pass, which takes less memory and more time.
        compile: Compile backbone and head in a fit; each phase's first step takes longer, by seconds to minutes.
        classes: The number or the names of the classes (or regression targets); null takes them from the data.
        weights_key: Where in a file with several state dicts the weights are, such as teacher or model_ema.

    Raises:
        UserError: If a name, a file or a number is wrong.
    """

    def __init__(
        self,
        backbone: NetworkName,
        weights: str | None = "DEFAULT",
        partial_weights: bool = False,
        stem: Stem = "own",
        pool: Pool = "own",
        input: InputConfig = InputConfig(),  # noqa: B008 - never changed here
        head: HeadConfig = HeadConfig(),  # noqa: B008
        task: TaskName = "multiclass",
        label_smoothing: float = 0.0,
        class_weight: ClassWeight | None = None,
        mix: MixConfig = MixConfig(),  # noqa: B008
        lr: float = 1e-3,
        lr_decay: float = 1.0,
        optimizer: ClassSpec | None = None,
        lr_scheduler: ClassSpec | None = "WarmupCosine",
        penalty: PenaltyConfig = PenaltyConfig(),  # noqa: B008
        gradient_checkpointing: bool = False,
        compile: bool = False,
        classes: int | list[str] | None = None,
        weights_key: str | None = None,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise UserError(f"`model.lr`: must be above 0, got {lr}")
        if not 0.0 < lr_decay <= 1.0:
            raise UserError(f"`model.lr_decay`: must be above 0 and at most 1, got {lr_decay}")
        self._head_config = _config(HeadConfig, head)
        # These refuse before anything is fetched.
        Task(task, 2, label_smoothing)
        check_head(self._head_config)
        check_class_weight(class_weight, task)
        self._mix_config = _config(MixConfig, mix)
        BatchMix(self._mix_config, task, 2)
        spec = _config(InputConfig, input).applied_to(input_spec(backbone, weights))
        penalty = _config(PenaltyConfig, penalty)
        self.backbone = build_backbone(backbone, weights, pool, spec, stem, partial_weights, weights_key)
        self._trained_head = trained_head(weights) if weights and is_file_name(weights) and not weights_key else None
        self._is_head_trained = False
        self.backbone.to(memory_format=self.backbone.memory_format)
        self.backbone.gradient_checkpointing = gradient_checkpointing
        self.penalty = WeightPenalty(self.backbone, penalty)
        # Plain types, so that a checkpoint loads with weights_only=True. The checkpoint has the weights and needs to
        # fetch none; what the images must be like is written out, since it followed from the weights' tag.
        self.collect_hyperparameters(
            weights=None,
            source_weights=weights,
            optimizer=optimizer or "AdamW",
            input={**asdict(spec), "channels": spec.channels},
            head=self._head_config,
            mix=self._mix_config,
            penalty=penalty,
        )
        self.normalise = Normalise(spec.mean, spec.std, self.backbone.memory_format)
        self._of_checkpoint: list[str] = []
        # No buffer: those that average weights copy a module's before its setup, and would count one more then.
        self._class_weight: Tensor | None = None
        self._run_seed: int | None = None
        self._standardisation: Standardisation | None = None
        self._measured: dict[str, float] = {}
        self._losses = LossWatch()
        self._batches = BatchCheck()
        self._closed: set[str] = set()  # the splits whose absent classes were told
        self._resumed: dict[str, Any] | None = None
        self._images: Fingerprint | None = None
        # What the progress bar fetches by itself; noted here, as Lightning's finders log without it.
        self._fetched: Collection[str] = ()
        self._has_followed = False
        self.class_names: list[str] = []
        if classes is not None:
            self._set_classes(classes)

    @classmethod
    def load_from_checkpoint(
        cls: type[ModuleT],
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **options: Any,
    ) -> ModuleT:
        """The module that a checkpoint holds, as `lightning.pytorch.LightningModule.load_from_checkpoint` makes it.

        The checkpoint runs no code of its own: it opens no file of weights, and a network, an optimizer or a schedule
        of your own must be named here, too, as in ``backbone={...}``, unless a subclass names it.

        Args:
            checkpoint_path: The checkpoint.
            map_location: The devices that its tensors go to.
            hparams_file: A file of arguments that take the place of those in the checkpoint.
            strict: Whether each tensor must be there.
            weights_only: False lets a checkpoint that you trust run code.
            options: Arguments that take the place of those in the checkpoint.

        Raises:
            UserError: If the checkpoint names a network that is not of lit_ft, torch, torchvision or timm.
        """
        checkpoint = read_checkpoint(checkpoint_path, weights_only is not False)
        saved = {} if hparams_file else saved_arguments(checkpoint, inspect.signature(cls).parameters)
        if "backbone" not in options:
            refuse_foreign(saved.get("backbone"), None)
        if saved.get("weights") is not None:
            options.setdefault("weights", None)
        options["_instantiator"] = None  # else Lightning imports and calls what a checkpoint names so
        if weights_only is not None:  # older releases of Lightning do not know it
            options["weights_only"] = weights_only
        module = super().load_from_checkpoint(checkpoint_path, map_location, hparams_file, strict, **options)
        module._of_checkpoint = [key for key in ("optimizer", "lr_scheduler") if key in saved and key not in options]
        return module

    @property
    def input_spec(self) -> InputSpec:
        """The images that the backbone expects; data modules ask for it."""
        return self.backbone.spec

    @property
    def main_metric(self) -> tuple[str, str]:
        """The metric that chooses the best model, and whether its ``min`` or ``max`` is best."""
        return MAIN_METRIC[self.hparams["task"]]

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each stage, shallow to deep, with the head last."""
        return {**self.backbone.stage_modules(), HEAD: [self.head]}

    def set_trainable(self, names: Collection[str], frozen_norm: FrozenNorm = "eval") -> None:
        """Lets just these stages train; see `Staged.set_trainable`."""
        compiled = self._is_compiled()
        if compiled and self.backbone.gradient_checkpointing and torch.__version__ < "2.15":
            # Seen with 2.8, and not with 2.15; those between were not tried.
            raise UserError(
                f"`model.gradient_checkpointing`: torch {torch.__version__} counts batch norm twice where that is "
                "compiled; leave one out, or use torch 2.15 or newer"
            )
        trained = [parameter.requires_grad for parameter in self.parameters()]
        self.backbone.mark_frozen(names, frozen_norm)  # so that it holds for who calls its `train` alone, too
        super().set_trainable(names, frozen_norm)
        if compiled and trained != [parameter.requires_grad for parameter in self.parameters()]:
            # What was compiled for the last phase fits no more, but would count to torch's limit of 8 versions, past
            # which all runs uncompiled: a ResNet that is unfrozen stage by stage has 12.
            torch.compiler.reset()

    def forward(self, images: Tensor | StageOutput) -> Tensor:
        """Images ``(B, C, H, W)``, uint8 or normalised float, or what the first stages gave -> logits ``(B, K)``."""
        given = images if isinstance(images, StageOutput) else self.normalise(images)
        try:
            logits: Tensor = self.head(self.backbone(given))
        except (RuntimeError, AssertionError) as error:  # by which torch, and networks with position embeddings, refuse
            refuse_other_size(given, self.input_spec.size, error)
            raise
        return logits

    def configure_callbacks(self) -> list[Callback]:
        """Adds what compiles, and what makes the head before other callbacks look at it or copy it."""
        TakeClasses.come_first(self.trainer)
        return [Compiling()] if self.hparams["compile"] else []

    def take_classes(self, stage: str) -> None:
        """Takes the classes from a data module that is set up, and makes the head for them.

        Args:
            stage: What is run: fit, validate, test or predict.

        Raises:
            UserError: If there are none, or others than those that the module has.
        """
        if not (stage == "predict" and self.class_names):  # images to predict have no classes
            refuse_other_task(self._data, self.hparams["task"])  # which would take something else for classes
            if (classes := classes_of(self._data)) is not None:
                self._set_classes(classes)
        if not self.class_names:
            refuse_no_classes(self._data)

    def setup(self, stage: str) -> None:
        """Takes the classes, their shares and their weights from the data, and the seed of the run from torch."""
        self._fetched = getattr(self.trainer.progress_bar_callback, "fetches", ())
        self.take_classes(stage)
        if self.hparams["task"] == "regression" and self.trainer.precision in ("16-true", "bf16-true"):
            raise UserError(  # as Lightning rounds them before the module sees them
                f"`trainer.precision`: {self.trainer.precision} would round the numbers that are to be learnt; give "
                f"{str(self.trainer.precision).replace('true', 'mixed')}"
            )
        self._losses, self._batches, self._closed = LossWatch(), BatchCheck(), set()
        self._has_followed = False
        if stage == "fit":
            self._refuse_unlogged()
            # A resume then puts the seed of its checkpoint in its place.
            self._run_seed = self.trainer.strategy.broadcast(torch.initial_seed())
            self._images = None  # of an earlier fit
            if (smoothing := self.hparams["label_smoothing"]) and self.hparams["task"] != "multiclass":
                reason = f"as it is for `model.task` multiclass, not {self.hparams['task']}"
                rank_zero_warn(f"`model.label_smoothing`: {smoothing} is left out, {reason}")
            if self.hparams["task"] == "regression":
                self._standardise()
            elif self._head_config.prior_bias and not self._is_head_trained:
                counts, sizes = (getattr(self._data, name, None) for name in ("counts", "sizes"))
                set_prior_bias(self.head, counts, sizes, self.task.name)
            if self.hparams["class_weight"] is not None:
                weight = balanced_weights(self.hparams["task"], self._data, self.class_names)
                self._class_weight = weight.to(self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        """Follows Lightning's finders of learning rate and batch size, which callbacks of a fit begin with."""
        self.follow_finders()

    def follow_finders(self) -> None:
        """Makes optimizer and schedule anew where Lightning's finders have changed learning rate or batch size.

        They leave all groups with one rate, and a schedule that knows neither that nor the number of steps. A callback
        that looks at the groups as a fit starts calls this first; it is done once.
        """
        if finders(self.trainer) and not self._has_followed:
            self._has_followed = True
            self.trainer.strategy.setup_optimizers(self.trainer)
            self.print(format_found(self, self._data), flush=True)

    def on_train_start(self) -> None:
        """Lets the schedule go on where the run is resumed."""
        self._resumed = None
        keep_last_batch(self.trainer)
        forget_files_elsewhere(self.trainer)
        enter_epoch(self.trainer)

    def on_train_epoch_start(self) -> None:
        """Tells the schedule how long this epoch is."""
        enter_epoch(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes what is random in this step, as mixing and dropout, a function of its position, for a resumed run."""
        position = [cast(int, self._run_seed), self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(position).generate_state(1)[0])
        # Without a GPU torch.manual_seed would note at each step, with a stack trace, how to seed one that may come.
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)

    def on_train_epoch_end(self) -> None:
        """Steps what waits for a plateau, before the checkpoints of the epoch's end are written.

        Lightning would step it after that, so that a run that is resumed from there would lose the step, and would not
        step it at all in an epoch that is resumed in the middle (fit_loop.py, on_advance_end).
        """
        for config in self.trainer.lr_scheduler_configs:
            measured = {**self._measured, **self.trainer.callback_metrics}
            validates = (self.current_epoch + 1) % config.frequency == 0
            if config.reduce_on_plateau and config.monitor in measured and validates:
                cast(Any, config.scheduler).step(measured[config.monitor])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps a schedule, unless it waits for a plateau: see `on_train_epoch_end`."""
        if metric is None:
            super().lr_scheduler_step(scheduler, metric)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def log(self, *args: Any, **kwargs: Any) -> None:
        """Logs as Lightning does; never compiled, as it would be for each name and phase."""
        super().log(*args, **kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _log_again(self, name: str, value: Tensor | Metric, **options: Any) -> None:
        """Logs what is logged at each batch with the same options, in an epoch once as Lightning does.

        It checks every time whatever can be wrong, which takes as long as a tenth of a small network's step.
        """
        results: Any = self._trainer and self._trainer._results
        known = results.get(f"{self._current_fx_name}.{name}") if results else None
        if known is None or known.has_reset:
            # Lightning fetches from the device, at each step, what its bar could show; lit_ft's fetch what they show.
            if name in self._fetched:
                options["prog_bar"] = False
            self.log(name, value, **options)
        elif isinstance(value, Tensor):
            known.forward(value.detach(), 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch, erased and mixed, with weighted classes, as ``train/loss`` tells it, and the penalty."""
        self._losses.before_step(self)
        images, targets = self._mixed(self._batches.pair(batch, "train", self.task, self.normalise))
        loss = self.task.loss(self(images), targets, self._class_weight)
        self._log_again("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        if self.hparams["penalty"]["kind"] != "none":
            penalty = self.penalty(self.backbone, self.head)
            self._log_again("train/penalty", penalty, on_step=True, on_epoch=False)
            loss = loss + penalty
        self._losses.note(self, loss)
        return loss

    def on_validation_model_zero_grad(self) -> None:
        """Drops the gradients before a validation, as Lightning does, but looks at them first."""
        self._losses.look_closely(self)
        super().on_validation_model_zero_grad()

    def on_validation_epoch_end(self) -> None:
        """Ends a run whose loss is not finite, and tells which classes have no image."""
        self._close("val")

    def on_test_epoch_end(self) -> None:
        """Likewise."""
        self._close("test")

    def on_fit_end(self) -> None:
        """Refuses a fit in which no batch came.

        Raises:
            UserError: If there was none.
        """
        refuse_no_batch(self.trainer)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the validation metrics; callbacks get its logits, and its targets as metrics count them."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the test metrics; callbacks get its logits, and its targets as metrics count them."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Answers ``(B, K)`` for a batch of images, or of images and their indices ``(B,)``."""
        images, *indices = batch if isinstance(batch, (tuple, list)) else (batch,)
        if batch_idx == 0:
            check_images(images, "predict", self.normalise)
        answers = {"answers": self.task.answers(self(images))}
        return {**answers, "indices": indices[0]} if indices else answers

    def pictured(self, batch: Batch, batch_idx: int) -> Tensor:
        """Images ``(B, C, H, W)``, uint8, of a training batch of uint8 images as the network will see them."""
        self.on_train_batch_start(batch, batch_idx)  # so that the step will draw the same numbers
        images, _ = self._mixed(self._batches.pair(batch, "train", self.task, self.normalise))
        return images if images.dtype == torch.uint8 else self.normalise.pixels(images)

    def configure_optimizers(self) -> Any:
        """One optimizer with a group a stage and decay class, and its schedule."""
        if not self._has_followed:
            refuse_on_resume(self.trainer)
        for key in self._of_checkpoint:
            refuse_foreign_names(self.hparams[key], key)
        groups = param_groups(self.stage_modules(), self.hparams["lr"], self.hparams["lr_decay"])
        optimizer = build_optimizer(self.hparams["optimizer"], groups, self.hparams["lr"], self._may_fuse())
        if self.hparams["lr_scheduler"] is None:
            return optimizer
        self.trainer.fit_loop.setup_data()  # tells how long an epoch is
        if self.trainer.ckpt_path is not None:
            # Its loader would be kept, and never told where the resumed run is within its epoch.
            self.trainer.fit_loop._combined_loader = None
        # One that is derived from this may log others.
        is_known = type(self) is FineTuneModule
        spec, monitor = settle_plateau(self.hparams["lr_scheduler"], self.monitored(), known=is_known)
        scheduler, interval = build_scheduler(spec, optimizer, RunLength.of(self.trainer))
        continue_schedule(scheduler, interval, self.trainer, self._resumed)
        plan = {"scheduler": scheduler, "interval": interval, "monitor": getattr(scheduler, "monitor", monitor)}
        if isinstance(scheduler, ReduceLROnPlateau):
            if not self.trainer.enable_validation:
                raise UserError("`lr_scheduler`: ReduceLROnPlateau waits for validations, and the run has none")
            plan["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return {"optimizer": optimizer, "lr_scheduler": plan}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what tells a run from others, and what its schedule waits for, as the step of that may be next."""
        self._losses.look(self)  # so that no checkpoint is written after the loss was not finite
        checkpoint["run_seed"] = self._run_seed
        if self._standardisation is not None:
            checkpoint["standardisation"] = self._standardisation.plain()
        self.write_hyperparameters(checkpoint, FineTuneModule)
        checkpoint["images"] = self._fingerprint()
        checkpoint["epoch_steps"] = RunLength.of(self.trainer).epoch_steps
        monitors = {config.monitor for config in self.trainer.lr_scheduler_configs if config.reduce_on_plateau}
        metrics = self.trainer.callback_metrics
        checkpoint["measured"] = {str(key): float(metrics[key]) for key in monitors if key in metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up both, the head's classes and units, and the validation that the checkpoint was written before."""
        classes = all_hyperparameters(checkpoint).get("classes")
        if not self.class_names and classes:  # a subclass's own constructor may not take them
            self._set_classes(classes)
        units = checkpoint.get("standardisation")
        self._set_standardisation(None if units is None else Standardisation.from_plain(units))
        self._run_seed = checkpoint.get("run_seed")
        self._measured = {str(key): float(value) for key, value in checkpoint.get("measured", {}).items()}
        if self._trainer is not None:  # else only the weights are loaded
            if self._trainer.state.fn == "fit":
                self._refuse_other_data(checkpoint)
                self._resumed = {key: checkpoint[key] for key in ("epoch_steps", "lr_schedulers") if key in checkpoint}
            validate_first(checkpoint, self._trainer)

    @property
    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    def _fingerprint(self) -> Fingerprint | None:
        """What tells the images of a fit from others, if the data module knows; worked out once."""
        if self._images is None and isinstance(self._data, ImageDataModule):
            self._images = self._data.fingerprint()
        return self._images

    def _refuse_other_data(self, checkpoint: dict[str, Any]) -> None:
        path, names = self.trainer.ckpt_path, all_hyperparameters(checkpoint).get("classes")
        told = None if names in (None, self.class_names) else f"with the classes {names}, not {self.class_names}"
        # Earlier versions saved nothing of the images.
        if told is None and checkpoint.get("images") and (now := self._fingerprint()):
            told = difference(checkpoint["images"], now, self.class_names)
        if told is not None:
            raise UserError(
                f"`ckpt_path`: {path} is of a run {told}; give the same data, or start from its weights with "
                f"`model.weights` {path}"
            )

    def _may_fuse(self) -> bool:
        """Whether gradients are whole when an optimizer gets them: fused ones undo the scaling of float16 themselves.

        Lightning refuses to clip with those, also where nothing is scaled, and other callbacks would see scaled ones.
        """
        plugin = self.trainer.precision_plugin
        return not (isinstance(plugin, MixedPrecision) and (plugin.scaler or self.trainer.gradient_clip_val))

    def _is_compiled(self) -> bool:
        """Whether the module, or one within it, is compiled, in place or by the trainer."""
        parts = any(isinstance(part, OptimizedModule) or part._compiled_call_impl for part in self.modules())
        return self._compiler_ctx is not None or parts

    def monitored(self) -> dict[str, Mode]:
        """What a validation logs, and whether its least or its greatest value is best."""
        logged = {"loss", *cast(MetricCollection, self.metrics["val_"]).keys(keep_base=True)}
        return {f"val/{name}": mode for name, mode in METRICS[self.hparams["task"]].items() if name in logged}

    def _refuse_unlogged(self) -> None:
        """Refuses to watch a metric that the task logs for other numbers of classes."""
        others = {f"val/{name}" for name in METRICS[self.hparams["task"]]} - self.monitored().keys()
        for callback in cast(Any, self.trainer).callbacks:
            if (monitor := getattr(callback, "monitor", None)) in others:
                raise unknown("metric", monitor, self.monitored(), f"{type(callback).__name__}.monitor")

    def _standardise(self) -> None:
        """Takes mean and scale of the training targets, unless weights were trained with others."""
        if self._standardisation is None:
            found = standardisation_of(self._data, len(self.class_names), self._head_config.prior_bias)
            self._set_standardisation(self.trainer.strategy.broadcast(found))

    def _set_standardisation(self, standardisation: Standardisation | None) -> None:
        self._standardisation = standardisation
        if self.class_names:
            self.task: Task = replace(self.task, standardisation=standardisation)

    def _set_classes(self, classes: int | list[str]) -> None:
        """Makes head and metrics for the classes, or checks them against those it has."""
        names = names_of(classes)
        if self.class_names:
            if len(names) != len(self.class_names) or (not isinstance(classes, int) and names != self.class_names):
                raise UserError(
                    f"the model has {told(self.class_names)}, but the data has {told(names)}; give the data the "
                    "model was trained on, or start from the backbone alone with `model.weights` CHECKPOINT"
                )
            return
        if not names:
            raise UserError("classes: must be at least 1")
        self.class_names = names
        self.hparams["classes"] = names
        config = self._head_config
        if self.hparams["task"] == "regression" and config.kind == "linear":
            # At the mean: what random weights make of features that are large is far from it, and partly stays.
            config = replace(config, zero_init=True)
        self.head = build_head(self.backbone.num_features, len(names), config)
        if self._trained_head is not None:
            self._take_over(self._trained_head, names)
            self._trained_head = None
        self.task = Task(self.hparams["task"], len(names), self.hparams["label_smoothing"], self._standardisation)
        self.mix = BatchMix(self._mix_config, self.hparams["task"], len(names))
        splits = ("val", "test")
        self.metrics = nn.ModuleDict({f"{split}_": self.task.metrics(f"{split}/") for split in splits})
        # Not Lightning's own mean: with another number of images in each process it divides by a rounded mean of them.
        self.losses = nn.ModuleDict({f"{split}_": MeanLoss() for split in splits})

    def _take_over(self, trained: TrainedHead, names: list[str]) -> None:
        """Fills the head from a checkpoint of the same classes, which for regression answers in that run's units."""
        if not trained.is_for(names, self.hparams["task"]):
            return
        self._is_head_trained = trained.load_into(self.head)
        if self._is_head_trained:
            if self.hparams["task"] == "regression":
                self._standardisation = trained.standardisation
            told = f"that of {trained.path}, which was trained for the same {len(names)} classes"
        else:
            told = f"new, as that of {trained.path} has other layers"
        rank_zero_only(print)(f"Head  {told}")

    def _mixed(self, batch: Batch) -> Batch:
        """A training batch as the network gets it; in eval mode, in which gradients are compared, as it is."""
        images, targets = batch
        if not (self.training and self.mix.is_on):
            return images, targets
        mixed: Batch = self.mix(self.normalise(images), targets)
        return mixed

    def _close(self, split: str) -> None:
        self._losses.look(self)
        if self.trainer.sanity_checking or cast(Any, self.trainer).fast_dev_run:
            return  # batch norm has not yet settled after so few steps
        mean_loss = cast(MeanLoss, self.losses[f"{split}_"])
        if not self.trainer.strategy.reduce_boolean_decision(mean_loss.update_called, all=False):
            return
        if not bool(mean_loss.compute().isfinite()):
            step = self.global_step if self.trainer.state.fn == "fit" else None
            raise diverged(self, f"{split}/loss", step, self._losses.largest)
        if split not in self._closed:
            self._closed.add(split)
            warn_of_absent(cast(MetricCollection, self.metrics[f"{split}_"]), split, self.class_names)

    def _evaluate(self, batch: Batch, split: str) -> dict[str, Tensor]:
        images, targets = self._batches.pair(batch, split, self.task, self.normalise)
        logits = self(images)
        self._count(logits, targets, split)
        return {"logits": logits, "targets": self.task.hard(targets)}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the same is true of metrics
    def _count(self, logits: Tensor, targets: Tensor, split: str) -> None:
        metrics = cast(MetricCollection, self.metrics[f"{split}_"])
        self.task.update(metrics, logits, targets)
        size = len(targets)
        mean_loss = cast(MeanLoss, self.losses[f"{split}_"])
        mean_loss.update(self.task.loss(logits, targets).expand(size))
        self._log_again(f"{split}/loss", mean_loss, batch_size=size, prog_bar=True)
        main = self.main_metric[0].removeprefix("val/")
        for name, metric in metrics.items(keep_base=True):
            self._log_again(f"{split}/{name}", metric, prog_bar=name == main, batch_size=size)


def _config(cls: type[ConfigT], given: Any) -> ConfigT:
    """The dataclass itself, or made from the dict that a checkpoint holds."""
    return cls(**given) if isinstance(given, dict) else cast(ConfigT, given)
