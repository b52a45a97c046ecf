"""`FineTuneModule`: a pretrained backbone with a new head, fine-tuned for a task."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lit_ft.backbones import HEAD
from lit_ft.backbones.backbone import StageOutput
from lit_ft.backbones.build import NetworkName, build_backbone, input_spec
from lit_ft.backbones.freezing import FrozenNorm, Staged
from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.backbones.pooling import Pool
from lit_ft.backbones.stem import Stem
from lit_ft.backbones.weights.trust import refuse_foreign_names
from lit_ft.compat import (
    attached_trainer,
    forget_files_elsewhere,
    keep_last_batch,
    log_repeatedly,
    validate_first,
)
from lit_ft.data.loading.position import adopt_earlier_position
from lit_ft.errors import UserError
from lit_ft.model.checkpoint.content import all_hyperparameters
from lit_ft.model.checkpoint.hparams import PlainHyperparameters, as_config
from lit_ft.model.checkpoint.loading import SafeLoading
from lit_ft.model.checkpoint.trained_head import read_trained_head
from lit_ft.model.compiling import Compiling, recompiling
from lit_ft.model.fit.divergence import LossWatch
from lit_ft.model.fit.finders import finders, format_found, refuse_on_resume
from lit_ft.model.fit.first_batch import BatchCheck, check_images, refuse_no_batch, refuse_other_size
from lit_ft.model.fit.fit_state import FitState
from lit_ft.model.fit.split_metrics import SplitMetrics, refuse_unlogged
from lit_ft.model.heads import HeadConfig, build_head, set_prior_bias
from lit_ft.model.mixing import BatchMix, MixConfig
from lit_ft.model.normalisation import Normalise
from lit_ft.model.objective import Batch, Objective
from lit_ft.model.regularisation import PenaltyConfig, WeightPenalty
from lit_ft.optim.optimizers import ClassSpec, build_optimizer, build_param_groups
from lit_ft.optim.schedules import configure_schedule, enter_epoch, step_plateaus
from lit_ft.tasks.class_weight import ClassWeight, check_class_weight
from lit_ft.tasks.classes import (
    TakeClasses,
    name_classes,
    read_classes,
    read_standardisation,
    refuse_no_classes,
    refuse_other_classes,
    refuse_other_task,
)
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import MAIN_METRIC, Mode, Task, TaskName, check_precision, check_task


class FineTuneModule(SafeLoading, PlainHyperparameters, Staged, L.LightningModule):
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
        # Before anything is fetched.
        head, mix, penalty = as_config(HeadConfig, head), as_config(MixConfig, mix), as_config(PenaltyConfig, penalty)
        check_task(task, label_smoothing)
        check_class_weight(class_weight, task)
        mix.check_task(task)
        spec = as_config(InputConfig, input).applied_to(input_spec(backbone, weights))
        self.backbone = build_backbone(backbone, weights, pool, spec, stem, partial_weights, weights_key)
        self.backbone.to(memory_format=self.backbone.memory_format)
        self.backbone.gradient_checkpointing = gradient_checkpointing
        self.normalise = Normalise(spec.mean, spec.std, self.backbone.memory_format)
        self.penalty = WeightPenalty(self.backbone, penalty)
        # Plain types, so that a checkpoint loads with weights_only=True. The checkpoint has the weights and needs to
        # fetch none; the input is written out, since it followed from the weights' tag.
        self.collect_hyperparameters(
            weights=None,
            source_weights=weights,
            optimizer=optimizer or "AdamW",
            input={**asdict(spec), "channels": spec.channels},
            head=head,
            mix=mix,
            penalty=penalty,
        )
        self._trained_head = None if weights_key else read_trained_head(weights)
        self._fit_state, self._losses, self._batches = FitState(), LossWatch(), BatchCheck()
        self._has_followed = False
        self._fetched: Collection[str] = ()
        self.class_names: list[str] = []
        if classes is not None:
            self._build_for_classes(classes)

    @property
    def input_spec(self) -> InputSpec:
        """The images that the backbone expects; data modules ask for it."""
        return self.backbone.spec

    @property
    def main_metric(self) -> tuple[str, str]:
        """The metric that chooses the best model, and whether its ``min`` or ``max`` is best."""
        return MAIN_METRIC[self.hparams["task"]]

    @property
    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each stage, shallow to deep, with the head last."""
        return {**self.backbone.stage_modules(), HEAD: [self.head]}

    def monitored(self) -> dict[str, Mode]:
        """The metrics that a validation logs, and whether the least or the greatest value of each is best."""
        return {f"val/{name}": mode for name, mode in self.task.logged.items()}

    def set_trainable(self, names: Collection[str], frozen_norm: FrozenNorm = "eval") -> None:
        """Lets just these stages train; see `Staged.set_trainable`."""
        with recompiling(self):
            self.backbone.mark_frozen(names, frozen_norm)  # so that it holds for who calls its `train` alone, too
            super().set_trainable(names, frozen_norm)

    def forward(self, images: Tensor | StageOutput) -> Tensor:
        """Images ``(B, C, H, W)``, uint8 or normalised float, or cached features -> logits ``(B, K)``."""
        given = images if isinstance(images, StageOutput) else self.normalise(images)
        try:
            logits: Tensor = self.head(self.backbone(given))
        except (RuntimeError, AssertionError) as error:  # by which torch, and networks with position embeddings, refuse
            refuse_other_size(given, self.input_spec.size, error)
            raise
        return logits

    # Setup

    def configure_callbacks(self) -> list[Callback]:
        """Adds the callbacks that compile, and that build the head before other callbacks look at it or copy it."""
        TakeClasses.come_first(self.trainer)
        return [Compiling()] if self.hparams["compile"] else []

    def take_classes(self, stage: str) -> None:
        """Takes the classes from a data module that is set up, and builds the head for them.

        Args:
            stage: The trainer's function: fit, validate, test or predict.

        Raises:
            UserError: If there are none, or others than those that the module has.
        """
        if not (stage == "predict" and self.class_names):  # images to predict have no classes
            refuse_other_task(self._data, self.hparams["task"])  # which would take something else for classes
            if (classes := read_classes(self._data)) is not None:
                self._build_for_classes(classes)
        if not self.class_names:
            refuse_no_classes(self._data)

    def _build_for_classes(self, classes: int | list[str]) -> None:
        """Builds head, objective and metrics for the classes, or checks them against those it has."""
        if self.class_names:
            refuse_other_classes(self.class_names, classes)
            return
        names, task = name_classes(classes), self.hparams["task"]
        if not names:
            raise UserError("classes: must be at least 1")
        self.class_names = self.hparams["classes"] = names
        self.head = build_head(self.backbone.num_features, len(names), HeadConfig(**self.hparams["head"]), task)
        trained, self._trained_head, units = self._trained_head, None, None
        if trained is not None and trained.load_into(self.head, names, task) and task == "regression":
            units = trained.standardisation
        self.task = Task(task, len(names), self.hparams["label_smoothing"], units)
        mix = BatchMix(MixConfig(**self.hparams["mix"]), task, len(names))
        self.objective = Objective(mix, self.penalty, self.hparams["class_weight"])
        self.metrics = nn.ModuleDict({split: SplitMetrics(split, self.task) for split in ("val", "test")})

    def setup(self, stage: str) -> None:
        """Takes the classes, their shares and their weights from the data, and the seed of the run from torch."""
        # The loss that the progress bar fetches itself; noted here, as Lightning's finders run without the bar.
        self._fetched = getattr(self.trainer.progress_bar_callback, "fetches", ())
        self.take_classes(stage)
        check_precision(self.task.name, str(self.trainer.precision))
        self._losses, self._batches, self._has_followed = LossWatch(), BatchCheck(), False
        for split in self.metrics.values():
            cast(SplitMetrics, split).has_warned = False
        if stage == "fit":
            self._setup_fit()

    def _setup_fit(self) -> None:
        refuse_unlogged(cast(Any, self.trainer).callbacks, self.monitored(), self.task.name)
        self._fit_state.begin(self.trainer)
        prior_bias = self.hparams["head"]["prior_bias"]
        if self.task.name == "regression" and self.task.standardisation is None:  # else weights were trained with it
            found = read_standardisation(self._data, len(self.class_names), prior_bias)
            self.task = replace(self.task, standardisation=self.trainer.strategy.broadcast(found))
        elif self.task.name != "regression" and prior_bias:
            counts, sizes = (getattr(self._data, name, None) for name in ("counts", "sizes"))
            set_prior_bias(self.head, counts, sizes, self.task.name)
        self.objective.setup(self)

    def configure_optimizers(self) -> Any:
        """One optimizer with a group a stage and decay class, and its schedule."""
        if not self._has_followed:
            refuse_on_resume(self.trainer)
        for key in self.unverified_options:
            refuse_foreign_names(self.hparams[key], key)
        groups = build_param_groups(self.stage_modules(), self.hparams["lr"], self.hparams["lr_decay"])
        # Fused optimizers undo the scaling of float16 themselves, after callbacks have seen the gradients, and
        # Lightning refuses to clip with them, also where nothing is scaled.
        plugin = self.trainer.precision_plugin
        fused = not (isinstance(plugin, MixedPrecision) and (plugin.scaler or self.trainer.gradient_clip_val))
        optimizer = build_optimizer(self.hparams["optimizer"], groups, self.hparams["lr"], fused)
        if (spec := self.hparams["lr_scheduler"]) is None:
            return optimizer
        known = type(self) is FineTuneModule  # a subclass may log others
        plan = configure_schedule(spec, optimizer, self.trainer, self.monitored(), known, self._fit_state.resumed)
        return {"optimizer": optimizer, "lr_scheduler": plan}

    # Training

    def on_fit_start(self) -> None:
        """Follows Lightning's finders of learning rate and batch size, which callbacks of a fit begin with."""
        self.follow_finders()

    def follow_finders(self) -> None:
        """Builds optimizer and schedule anew where Lightning's finders have changed learning rate or batch size.

        They leave all groups with one rate, and a schedule that knows neither that nor the number of steps. A callback
        that looks at the groups as a fit starts calls this first; it is done once.
        """
        if finders(self.trainer) and not self._has_followed:
            self._has_followed = True
            self.trainer.strategy.setup_optimizers(self.trainer)
            self.print(format_found(self, self._data), flush=True)

    def on_train_start(self) -> None:
        """Lets the schedule go on where the run is resumed."""
        self._fit_state.resumed = None
        keep_last_batch(self.trainer)
        forget_files_elsewhere(self.trainer)
        enter_epoch(self.trainer)

    def on_train_epoch_start(self) -> None:
        """Gives the schedule the number of steps of this epoch."""
        enter_epoch(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step by its position, so that mixing and dropout are the same in a resumed run."""
        self._fit_state.seed_step(self, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch by the objective; logs ``train/loss``, and a penalty apart from it."""
        self._losses.before_step(self)
        loss, logs = self.objective(self, self._batches.pair(batch, "train", self.task, self.normalise))
        for name, value in logs.items():
            shows = name == "train/loss" and name not in self._fetched  # else Lightning would fetch it, at each step
            log_repeatedly(self, name, value, prog_bar=shows, on_step=True, on_epoch=False)
        self._losses.note(self, loss)
        return loss

    def on_train_epoch_end(self) -> None:
        """Steps a schedule that waits for a plateau, before the checkpoints of the epoch's end are written."""
        step_plateaus(self.trainer, {**self._fit_state.measured, **self.trainer.callback_metrics})

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps a schedule, unless it waits for a plateau: see `on_train_epoch_end`."""
        if metric is None:
            super().lr_scheduler_step(scheduler, metric)

    def on_fit_end(self) -> None:
        """Refuses a fit in which no batch came.

        Raises:
            UserError: If there was none.
        """
        refuse_no_batch(self.trainer)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def log(self, *args: Any, **kwargs: Any) -> None:
        """Logs as Lightning does; never compiled, as it would be for each name and phase."""
        super().log(*args, **kwargs)

    def pictured(self, batch: Batch, batch_idx: int) -> Tensor:
        """Images ``(B, C, H, W)``, uint8, of a training batch of uint8 images as the network will see them."""
        self.on_train_batch_start(batch, batch_idx)  # so that the step will draw the same numbers
        images, _ = self.objective.augment(self, self._batches.pair(batch, "train", self.task, self.normalise))
        return images if images.dtype == torch.uint8 else self.normalise.pixels(images)

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the validation metrics; callbacks get its logits, and its targets as metrics count them."""
        return self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the test metrics; callbacks get its logits, and its targets as metrics count them."""
        return self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Batch, batch_idx: int, split: str) -> dict[str, Tensor]:
        images, targets = self._batches.pair(batch, split, self.task, self.normalise)
        logits, metrics = self(images), cast(SplitMetrics, self.metrics[split])
        metrics.update(self.task, logits, targets)
        if batch_idx == 0:
            metrics.log(self, len(targets))
        return {"logits": logits, "targets": self.task.hard(targets)}

    def on_validation_model_zero_grad(self) -> None:
        """Drops the gradients before a validation, as Lightning does, but looks at them first."""
        self._losses.look_closely(self)
        super().on_validation_model_zero_grad()

    def on_validation_epoch_end(self) -> None:
        """Ends a run whose loss is not finite, and warns of classes without an image."""
        self._check_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Likewise."""
        self._check_evaluation("test")

    def _check_evaluation(self, split: str) -> None:
        self._losses.look(self)
        cast(SplitMetrics, self.metrics[split]).check(self, self._losses.largest)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Predictions ``(B, K)`` for a batch of images, or of images and their indices ``(B,)``."""
        images, *indices = batch if isinstance(batch, (tuple, list)) else (batch,)
        if batch_idx == 0:
            check_images(images, "predict", self.normalise)
        predictions = {"answers": self.task.predict(self(images))}
        return {**predictions, "indices": indices[0]} if indices else predictions

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds hyperparameters, the units of regression, and the state of the fit."""
        self._losses.look(self)  # so that no checkpoint is written after the loss was not finite
        if self.class_names and self.task.standardisation:
            checkpoint["standardisation"] = self.task.standardisation.plain()
        self.write_hyperparameters(checkpoint, FineTuneModule)
        self._fit_state.save(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the head for the classes of the checkpoint, and resumes the fit."""
        classes = all_hyperparameters(checkpoint).get("classes")
        if not self.class_names and classes:  # a subclass's own constructor may not take them
            self._build_for_classes(classes)
        units = checkpoint.get("standardisation")
        if self.class_names:
            self.task = replace(self.task, standardisation=Standardisation.from_plain(units) if units else None)
        self._fit_state.load(checkpoint)
        trainer = attached_trainer(self)
        if trainer is not None:  # else only the weights are loaded
            if trainer.state.fn == "fit":
                self._fit_state.resume(checkpoint, trainer, self.class_names)
            adopt_earlier_position(checkpoint, getattr(trainer, "datamodule", None))
            validate_first(checkpoint, trainer)
