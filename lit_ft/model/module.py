"""`FineTuneModule`: a pretrained backbone with a new head, fine-tuned for a task."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lit_ft.backbones.build import NetworkName, Pool
from lit_ft.backbones.freezing import FrozenNorm, TrainedNorm
from lit_ft.backbones.input_spec import InputConfig
from lit_ft.backbones.stem import Stem
from lit_ft.backbones.weights.trust import refuse_foreign_names
from lit_ft.compat import log_repeatedly
from lit_ft.model.checkpoint import as_config
from lit_ft.model.compiling import Compiling, recompiling
from lit_ft.model.first_batch import BatchCheck
from lit_ft.model.heads import HeadConfig, read_trained_head, set_prior_bias
from lit_ft.model.hyperparameters import PlainHyperparameters
from lit_ft.model.image_model import ImageModel
from lit_ft.model.input_bands import TakesBands, plain_input
from lit_ft.model.monitoring import LossWatch, SplitMetrics, refuse_unlogged
from lit_ft.model.objective import Batch, Objective, PenaltyConfig, WeightPenalty
from lit_ft.model.preprocessing import BatchMix, MixConfig
from lit_ft.model.resumable_fit import ResumableFit
from lit_ft.model.sharding import is_sharding, refuse_strategy, shard_stages
from lit_ft.optim.optimizers import ClassSpec, build_optimizer, build_param_groups, check_rates
from lit_ft.optim.schedules import configure_schedule
from lit_ft.own_code import is_overridden
from lit_ft.tasks.classes import name_classes, settle_classes
from lit_ft.tasks.monitored import Mode
from lit_ft.tasks.standardisation import read_standardisation
from lit_ft.tasks.task import ClassWeight, TaskName, check_precision, check_task


class TakeClasses(Callback):
    """Gives a module its head as soon as the data module is set up, for callbacks that look at its stages then."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the head."""
        if hasattr(pl_module, "take_classes"):  # the trainer may be given another module later
            cast(Any, pl_module).take_classes(stage)


class FineTuneModule(PlainHyperparameters, TakesBands, ImageModel, ResumableFit):
    """A pretrained backbone with a new head, fine-tuned for a task.

    Images may come as uint8, and are then scaled and normalised here, or as float, and are then taken as they are; raw
    values of bands are always normalised. The number and names of classes are the data's, unless ``classes`` has them.

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
        label_smoothing: Share of the target that is spread over all classes in the training loss; for multiclass, else
            it is left out. The losses of validation and test are without it, so that runs can be compared.
        class_weight: With balanced, rare classes count more in the training loss: n / (K n_k), or for multilabel the
            positives by negatives / positives. The losses of validation and test are not weighted, so that they can be
            compared between runs.
        mix: How the images of a training batch are erased and mixed, on the device; never in an evaluation.
        lr: Learning rate of the head.
        lr_decay: Factor from the learning rate of a stage to that of the next shallower one.
        lr_backbone: Learning rate of the deepest stage of the backbone; null takes lr times lr_decay.
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

    _fetched: Collection[str] = ()

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
        lr_backbone: float | None = None,
    ) -> None:
        check_rates(lr, lr_decay, lr_backbone)  # as all of these options, before anything is fetched
        head, mix, penalty = as_config(HeadConfig, head), as_config(MixConfig, mix), as_config(PenaltyConfig, penalty)
        check_task(task, label_smoothing, class_weight, mix.cutmix)
        super().__init__(backbone, weights, pool, input, stem, partial_weights, weights_key)
        self.backbone.gradient_checkpointing = gradient_checkpointing
        self.penalty = WeightPenalty(self.backbone, penalty)
        # The checkpoint has the weights and needs to fetch none; the input followed from their tag, and is written out.
        settled = {"input": plain_input(self.backbone.spec), "head": head, "mix": mix, "penalty": penalty}
        self.collect_hyperparameters(**settled, weights=None, source_weights=weights, optimizer=optimizer or "AdamW")
        self._trained_head = None if weights_key else read_trained_head(weights)
        self._losses, self._batches = LossWatch(), BatchCheck()
        if classes is not None:
            self.build_for_classes(name_classes(classes))

    def monitored(self) -> dict[str, Mode]:
        """The metrics that a validation logs, and whether the least or the greatest value of each is best."""
        return {f"val/{name}": mode for name, mode in self.task.logged.items()}

    def set_trainable(
        self, names: Collection[str], frozen_norm: FrozenNorm = "eval", norm: TrainedNorm = "train"
    ) -> None:
        """Lets just these stages train; see `Staged.set_trainable`."""
        with recompiling(self):
            self.backbone.mark_frozen(names, frozen_norm, norm)  # so that it holds for who calls its `train` alone, too
            super().set_trainable(names, frozen_norm, norm)

    # Setup

    def configure_callbacks(self) -> list[Callback]:
        """Adds the callbacks that compile, and that build the head before other callbacks look at it or copy it."""
        callbacks = cast(Any, self.trainer).callbacks
        if not any(isinstance(callback, TakeClasses) for callback in callbacks):
            callbacks.insert(0, TakeClasses())  # Lightning has no place for a module's own before the others
        return [Compiling()] if self.hparams["compile"] else []

    def take_classes(self, stage: str) -> None:
        """Takes bands and classes from data that is set up for a stage of the trainer, and builds their head."""
        self.take_bands(self.data_module, stage == "fit")
        if stage == "predict" and self.class_names:  # images to predict have no classes
            return
        names = settle_classes(self.data_module, self.hparams["task"], self.class_names)
        if not self.class_names:
            self.build_for_classes(names)

    def build_for_classes(self, names: list[str]) -> None:
        """Builds the head for classes, that of the weights if it was trained for the same, and what trains it."""
        super().build_for_classes(names)
        self.hparams["classes"], task = names, self.hparams["task"]
        trained, self._trained_head = self._trained_head, None
        if trained and (units := trained.load_into(self.head, names, task)):
            self.task = replace(self.task, standardisation=units)
        mix = BatchMix(MixConfig(**self.hparams["mix"]), task, len(names))
        self.objective = Objective(mix, self.penalty, self.hparams["class_weight"])
        self.metrics: Any = nn.ModuleDict({split: SplitMetrics(split, self.task) for split in ("val", "test")})

    def setup(self, stage: str) -> None:
        """Takes the classes, their shares and their weights from the data, and the seed of the run from torch."""
        # The loss that the progress bar fetches itself; noted here, as Lightning's finders run without the bar.
        self._fetched = getattr(self.trainer.progress_bar_callback, "fetches", ())
        self.take_classes(stage)
        refuse_strategy(self.trainer, self)
        if is_sharding(self.trainer.strategy):  # else Lightning's averaging would warn of the method
            vars(self)["configure_model"] = partial(shard_stages, self)
        check_precision(self.task.name, str(self.trainer.precision))
        self._losses, self._batches = LossWatch(), BatchCheck()
        super().setup(stage)
        if stage == "fit":
            self.calibration = None  # of an earlier fit
            refuse_unlogged(cast(Any, self.trainer).callbacks, self.monitored(), self.task.name)
            prior_bias = self.hparams["head"]["prior_bias"]
            if self.task.name == "regression" and not self.task.standardisation:  # else weights were trained with it
                found = read_standardisation(self.data_module, len(self.class_names), prior_bias)
                self.task = replace(self.task, standardisation=self.trainer.strategy.broadcast(found))
            elif self.task.name != "regression" and prior_bias:
                set_prior_bias(self.head, self.data_module, self.task.name)
            self.objective.setup(self)

    def configure_optimizers(self) -> Any:
        """One optimizer with a group a stage and decay class, and its schedule."""
        self.refuse_finders_on_resume()
        for key in self.unverified_options:
            refuse_foreign_names(self.hparams[key], key)
        rates = (self.hparams[name] for name in ("lr", "lr_decay", "lr_backbone"))
        groups = build_param_groups(self.stage_modules(), *rates)
        # Fused optimizers undo the scaling of float16 themselves, after callbacks have seen the gradients, and
        # Lightning refuses to clip with them, also where nothing is scaled.
        plugin = self.trainer.precision_plugin
        fused = not (isinstance(plugin, MixedPrecision) and (plugin.scaler or self.trainer.gradient_clip_val))
        fused = fused and not is_sharding(self.trainer.strategy)  # torch 2.14 has no fused SGD for sharded weights
        optimizer = build_optimizer(self.hparams["optimizer"], groups, self.hparams["lr"], fused)
        if (spec := self.hparams["lr_scheduler"]) is None:
            return optimizer
        known = type(self) is FineTuneModule  # a subclass may log others
        plan = configure_schedule(spec, optimizer, self.trainer, self.monitored(), known, self.resumed_schedule)
        return {"optimizer": optimizer, "lr_scheduler": plan}

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch by the objective; logs ``train/loss``, and a penalty apart from it."""
        self._losses.before_step(self)
        loss, logs = self.objective(self, self._batches.pair(batch, "train", self.task, self.normalise))
        for name, value in logs.items():
            shows = name == "train/loss" and name not in self._fetched  # else Lightning would fetch it, at each step
            log_repeatedly(self, name, value, prog_bar=shows, on_step=True, on_epoch=False)
        self._losses.note(self, loss)
        return loss

    def pictured(self, batch: Batch, batch_idx: int) -> Batch:
        """A training batch of images as the network will see it, uint8 ``(B, C, H, W)``, and its targets."""
        self.on_train_batch_start(batch, batch_idx)  # so that the step will draw the same numbers
        images, targets = self.objective.augment(self, self._batches.pair(batch, "train", self.task, self.normalise))
        return self.normalise.pixels(images), targets

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the validation metrics; callbacks get its logits, and its targets as metrics count them."""
        return self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the test metrics; callbacks get its logits, and its targets as metrics count them."""
        return self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Batch, batch_idx: int, split: str) -> dict[str, Tensor]:
        images, targets = self._batches.pair(batch, split, self.task, self.normalise)
        logits = self(images)
        # A step of the user's own may leave batches out, or hand on parts of them.
        step = "validation_step" if split == "val" else "test_step"
        all_come = not is_overridden(self, step, FineTuneModule)
        self.metrics[split].update(self, logits, targets, batch_idx, all_come)
        return {"logits": logits, "targets": self.task.hard(targets)}

    def on_validation_model_zero_grad(self) -> None:
        """Drops the gradients before a validation, as Lightning does, but looks at them first."""
        self._losses.look_closely(self)
        super().on_validation_model_zero_grad()

    def on_validation_epoch_start(self) -> None:
        """Begins to count images."""
        self.metrics["val"].reset()

    def on_test_epoch_start(self) -> None:
        """Likewise."""
        self.metrics["test"].reset()

    def on_validation_epoch_end(self) -> None:
        """Ends a run whose loss is not finite, and warns of classes without an image."""
        self.metrics["val"].check(self, self._losses)

    def on_test_epoch_end(self) -> None:
        """Likewise."""
        self.metrics["test"].check(self, self._losses)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds hyperparameters, the units of regression, what is known of predictions, and the state of the fit."""
        self._losses.look(self)  # so that no checkpoint is written after the loss was not finite
        if self.class_names and self.task.standardisation:
            checkpoint["standardisation"] = self.task.standardisation.plain()
        if self.calibration is not None:
            checkpoint["calibration"] = self.calibration.plain()
        self.write_hyperparameters(checkpoint, FineTuneModule)
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the head for the classes of the checkpoint, and resumes the fit."""
        self.restore(checkpoint)
        super().on_load_checkpoint(checkpoint)
