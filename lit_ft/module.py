"""Decides what a training, validation, test and prediction step is: `FineTuneModule`, backbone + head + task."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict
from types import FunctionType
from typing import Any, TypeVar, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric, MetricCollection

from lit_ft.backbones import (
    InputConfig,
    InputSpec,
    NetworkName,
    Pool,
    StageOutput,
    Stem,
    build_backbone,
    input_spec,
)
from lit_ft.class_weight import ClassWeight, balanced_weights, check_class_weight
from lit_ft.compiling import Compiling
from lit_ft.errors import UserError, unknown
from lit_ft.finders import finders, format_found, refuse_on_resume
from lit_ft.freezing import NORMS, FrozenNorm, Staged
from lit_ft.heads import HeadConfig, build_head, check_head, set_prior_bias
from lit_ft.mixing import BatchMix, MixConfig
from lit_ft.normalise import Normalise
from lit_ft.optim import ClassSpec, build_optimizer, build_scheduler, param_groups, settle_plateau
from lit_ft.penalty import PenaltyConfig, WeightPenalty
from lit_ft.plan import HEAD
from lit_ft.resume import validate_first
from lit_ft.tasks import MAIN_METRIC, METRICS, Mode, Task, TaskName

Batch = tuple[Any, Tensor]  # images, or in the frozen part's place what it gave: a `StageOutput`
ConfigT = TypeVar("ConfigT")


class FineTuneModule(Staged, L.LightningModule):
    """A pretrained backbone with a new head, fine-tuned for a task.

    Images may come as uint8, and are then scaled and normalised here, or as float, and are then taken as they are.
    The number and the names of the classes come from the data module, unless ``classes`` names them.

    Args:
        backbone: Name of the pretrained network, or class_path, init_args, stages and classifier of your own.
        weights: A tag of its published weights, a .pth, .pt, .safetensors or checkpoint file, or null for random ones.
        partial_weights: Load what fits of the weights and warn of the rest, rather than refuse.
        stem: The network's own, or small for images of 28 to 64 pixels: stride 1 and no pooling.
        pool: From the last stage to the features: the network's own, the avg over all places, flatten, or class token.
        input: Where the images differ from what the backbone's weights expect.
        head: The new layers.
        task: What is learnt: one class an image, any number of classes, or numbers.
        label_smoothing: Share of the target that is spread over all classes.
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
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise UserError(f"--model.lr: must be above 0, got {lr}")
        if not 0.0 < lr_decay <= 1.0:
            raise UserError(f"--model.lr_decay: must be above 0 and at most 1, got {lr_decay}")
        self._head_config = _config(HeadConfig, head)
        # These refuse before anything is fetched.
        Task(task, 2, label_smoothing)
        check_head(self._head_config, task)
        check_class_weight(class_weight, task)
        self._mix_config = _config(MixConfig, mix)
        BatchMix(self._mix_config, task, 2)
        spec = _config(InputConfig, input).applied_to(input_spec(backbone, weights))
        penalty = _config(PenaltyConfig, penalty)
        self.backbone = build_backbone(backbone, weights, pool, spec, stem, partial_weights)
        self.backbone.to(memory_format=self.backbone.memory_format)
        self.backbone.gradient_checkpointing = gradient_checkpointing
        self.penalty = WeightPenalty(self.backbone, penalty)
        # Plain types, so that a checkpoint loads with weights_only=True. The checkpoint has the weights and needs to
        # fetch none; what the images must be like is written out, since it followed from the weights' tag.
        self.save_hyperparameters()
        self.hparams.update(weights=None, source_weights=weights, optimizer=optimizer or "AdamW")
        self.hparams.update(
            input={**asdict(spec), "channels": spec.channels},
            head=asdict(self._head_config),
            mix=asdict(self._mix_config),
            penalty=asdict(penalty),
        )
        self.hparams.update(_plain(dict(self.hparams)))
        self.normalise = Normalise(spec.mean, spec.std, self.backbone.memory_format)
        # No buffer: those that average weights copy a module's before its setup, and would count one more then.
        self._class_weight: Tensor | None = None
        self._run_seed: int | None = None
        self._measured: dict[str, float] = {}
        # What the progress bar fetches by itself; noted here, as Lightning's finders log without it.
        self._fetched: Collection[str] = ()
        self._has_followed = False
        self.class_names: list[str] = []
        if classes is not None:
            self._set_classes(classes)

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
                f"--model.gradient_checkpointing: torch {torch.__version__} counts batch norm twice where that is "
                "compiled; leave one out, or use torch 2.15 or newer"
            )
        trained = [parameter.requires_grad for parameter in self.parameters()]
        self.backbone.set_trainable(names, frozen_norm)  # so that it holds for who calls its `train` alone, too
        super().set_trainable(names, frozen_norm)
        if compiled and trained != [parameter.requires_grad for parameter in self.parameters()]:
            # What was compiled for the last phase fits no more, but would count to torch's limit of 8 versions, past
            # which all runs uncompiled: a ResNet that thaws stage by stage has 12.
            torch.compiler.reset()

    def forward(self, images: Tensor | StageOutput) -> Tensor:
        """Images ``(B, C, H, W)``, uint8 or normalised float, or what the first stages gave -> logits ``(B, K)``."""
        given = images if isinstance(images, StageOutput) else self.normalise(images)
        logits: Tensor = self.head(self.backbone(given))
        return logits

    def configure_callbacks(self) -> list[Callback]:
        """Adds what compiles; callbacks that copy the model (weight averaging) do so before `setup`, with its head."""
        if not self.class_names:
            self._refuse_other_task()  # before the data names what another task would take for classes
        if not self.class_names and getattr(self._data, "class_names", None):
            self._set_classes(self._data.class_names)
        return [Compiling()] if self.hparams["compile"] else []

    def setup(self, stage: str) -> None:
        """Takes the classes, their shares and their weights from the data, and the seed of the run from torch."""
        self._fetched = getattr(self.trainer.progress_bar_callback, "fetches", ())
        if not (stage == "predict" and self.class_names):  # images to predict have no classes
            self._refuse_other_task()
            names = getattr(self._data, "class_names", None) or getattr(self._data, "num_classes", None)
            if names is not None:
                self._set_classes(names)
        if self.hparams["task"] == "regression" and self.trainer.precision in ("16-true", "bf16-true"):
            raise UserError(  # as Lightning rounds them before the module sees them
                f"--trainer.precision: {self.trainer.precision} would round the numbers that are to be learnt; give "
                f"{str(self.trainer.precision).replace('true', 'mixed')}"
            )
        if not self.class_names:
            raise UserError("classes: the data module names no classes; give FineTuneModule(classes=...)")
        self._has_followed = False
        if stage == "fit":
            self._refuse_unlogged()
            # A resume then puts the seed of its checkpoint in its place.
            self._run_seed = self.trainer.strategy.broadcast(torch.initial_seed())
            if self._head_config.prior_bias:
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
        images, targets = self._mixed(batch)
        loss = self.task.loss(self(images), targets, self._class_weight)
        self._log_again("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        if self.hparams["penalty"]["kind"] != "none":
            penalty = self.penalty(self.backbone, self.head)
            self._log_again("train/penalty", penalty, on_step=True, on_epoch=False)
            loss = loss + penalty
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the validation metrics; callbacks get its logits, and its targets as metrics count them."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the test metrics; callbacks get its logits, and its targets as metrics count them."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Answers ``(B, K)`` for a batch of images, or of images and their indices ``(B,)``."""
        images, *indices = batch if isinstance(batch, (tuple, list)) else (batch,)
        answers = {"answers": self.task.answers(self(images))}
        return {**answers, "indices": indices[0]} if indices else answers

    def pictured(self, batch: Batch, batch_idx: int) -> Tensor:
        """Images ``(B, C, H, W)``, uint8, of a training batch of uint8 images as the network will see them."""
        self.on_train_batch_start(batch, batch_idx)  # so that the step will draw the same numbers
        images, _ = self._mixed(batch)
        return images if images.dtype == torch.uint8 else self.normalise.pixels(images)

    def configure_optimizers(self) -> Any:
        """One optimizer with a group a stage and decay class, and its schedule."""
        if not self._has_followed:
            refuse_on_resume(self.trainer)
        groups = param_groups(self.stage_modules(), self.hparams["lr"], self.hparams["lr_decay"], NORMS)
        optimizer = build_optimizer(self.hparams["optimizer"], groups, self.hparams["lr"], self._may_fuse())
        if self.hparams["lr_scheduler"] is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if self.trainer.ckpt_path is not None:
            # The loader of that estimate would be kept, and never told where the resumed run is within its epoch.
            self.trainer.fit_loop._combined_loader = None
        modes = self._monitored()
        # One that is derived from this may log others.
        spec, monitor = settle_plateau(self.hparams["lr_scheduler"], modes, known=type(self) is FineTuneModule)
        scheduler, interval = build_scheduler(spec, optimizer, steps)
        plan = {"scheduler": scheduler, "interval": interval, "monitor": getattr(scheduler, "monitor", monitor)}
        if isinstance(scheduler, ReduceLROnPlateau):
            if not self.trainer.enable_validation:
                raise UserError("--lr_scheduler: ReduceLROnPlateau waits for validations, and the run has none")
            plan["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return {"optimizer": optimizer, "lr_scheduler": plan}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the seed of the run, and what a schedule waits for, as the next step of it may be all that is left."""
        checkpoint["run_seed"] = self._run_seed
        monitors = {config.monitor for config in self.trainer.lr_scheduler_configs if config.reduce_on_plateau}
        metrics = self.trainer.callback_metrics
        checkpoint["measured"] = {str(key): float(metrics[key]) for key in monitors if key in metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up both, and the validation that the checkpoint was written before."""
        self._run_seed = checkpoint.get("run_seed")
        self._measured = checkpoint.get("measured", {})
        if self._trainer is not None:  # else only the weights are loaded
            validate_first(checkpoint, self._trainer)

    @property
    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

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

    def _monitored(self) -> dict[str, Mode]:
        """What a validation logs, and whether its least or its greatest value is best."""
        logged = {"loss", *cast(MetricCollection, self.metrics["val_"]).keys(keep_base=True)}
        return {f"val/{name}": mode for name, mode in METRICS[self.hparams["task"]].items() if name in logged}

    def _refuse_unlogged(self) -> None:
        """Refuses to watch a metric that the task logs for other numbers of classes."""
        others = {f"val/{name}" for name in METRICS[self.hparams["task"]]} - self._monitored().keys()
        for callback in cast(Any, self.trainer).callbacks:
            if (monitor := getattr(callback, "monitor", None)) in others:
                raise unknown("metric", monitor, self._monitored(), f"{type(callback).__name__}.monitor")

    def _refuse_other_task(self) -> None:
        task, own = getattr(self._data, "task", None), self.hparams["task"]
        if task in MAIN_METRIC and task != own:
            raise UserError(
                f"--model.task: {own}, but the targets of {type(self._data).__name__} are for {task}; give "
                f"--model.task {task}, or other data"
            )

    def _set_classes(self, classes: int | list[str]) -> None:
        """Makes head and metrics for the classes, or checks them against those it has."""
        names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        if self.class_names:
            if len(names) != len(self.class_names) or (not isinstance(classes, int) and names != self.class_names):
                raise UserError(
                    f"the model has {_listed(self.class_names)}, but the data has {_listed(names)}; give the data the "
                    "model was trained on, or start from the backbone alone with --model.weights CHECKPOINT"
                )
            return
        if not names:
            raise UserError("classes: must be at least 1")
        self.class_names = names
        self.hparams["classes"] = names
        self.head = build_head(self.backbone.num_features, len(names), self._head_config)
        self.task = Task(self.hparams["task"], len(names), self.hparams["label_smoothing"])
        self.mix = BatchMix(self._mix_config, self.hparams["task"], len(names))
        splits = ("val", "test")
        self.metrics = _OfOwnTypes({f"{split}_": self.task.metrics(f"{split}/") for split in splits})
        # Not Lightning's own mean: with another number of images in each process it divides by a rounded mean of them.
        self.losses = _OfOwnTypes({f"{split}_": _MeanLoss(nan_strategy="disable") for split in splits})

    def _mixed(self, batch: Batch) -> Batch:
        """A training batch as the network gets it; in eval mode, in which gradients are compared, as it is."""
        images, targets = batch
        if not (self.training and self.mix.is_on):
            return images, targets
        mixed: Batch = self.mix(self.normalise(images), targets)
        return mixed

    def _evaluate(self, batch: Batch, split: str) -> dict[str, Tensor]:
        images, targets = batch
        logits = self(images)
        self._count(logits, targets, split)
        return {"logits": logits, "targets": self.task.hard(targets)}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the same is true of metrics
    def _count(self, logits: Tensor, targets: Tensor, split: str) -> None:
        metrics = cast(MetricCollection, self.metrics[f"{split}_"])
        # As with --trainer.precision bf16-true a loss has three digits.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        self.task.update(metrics, logits, targets)
        size = len(targets)
        mean_loss = cast(MeanMetric, self.losses[f"{split}_"])
        # Repeated, as with "disable" torchmetrics passes over weights; but otherwise over losses that are nan.
        mean_loss.update(self.task.loss(logits, targets).expand(size))
        self._log_again(f"{split}/loss", mean_loss, batch_size=size, prog_bar=True)
        main = self.main_metric[0].removeprefix("val/")
        for name, metric in metrics.items(keep_base=True):
            self._log_again(f"{split}/{name}", metric, prog_bar=name == main, batch_size=size)


class _OfOwnTypes(nn.ModuleDict):
    """Metrics that a module with weights of another type leaves as they are, as their sums would lose all digits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _OfOwnTypes:
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)  # type: ignore[no-untyped-call]
        return self


class _MeanLoss(MeanMetric):
    """A mean in float32, whatever torch's default type is when something is added, as with ``bf16-true``."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that values are summed in."""
        return torch.float32


def _config(cls: type[ConfigT], given: Any) -> ConfigT:
    """The dataclass itself, or made from the dict that a checkpoint holds."""
    return cls(**given) if isinstance(given, dict) else cast(ConfigT, given)


def _plain(value: Any) -> Any:
    """A value with tuples as lists, numpy's numbers as Python's and functions as their paths, as YAML has them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _listed(names: list[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
