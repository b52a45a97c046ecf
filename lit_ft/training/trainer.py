"""Lightning's trainer with ``finetune`` and ``plan``, its options, and early stopping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from copy import copy
from datetime import timedelta
from functools import partial
from textwrap import indent
from types import MappingProxyType
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import callbacks
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_ft.compat import leave_signals
from lit_ft.console import format_table, format_value, rank_zero_print
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.errors import UserError
from lit_ft.memory import keep_freed_memory
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run, find_best_path
from lit_ft.training.calibrated_model import calibrate_best
from lit_ft.training.checkpoint_io import AtomicCheckpointIO
from lit_ft.training.launch import refuse_idle_processes, refuse_missing_srun, take_processes
from lit_ft.training.refit import Refit
from lit_ft.training.scale import Cluster, format_scale
from lit_ft.training.selected import report_refitted, report_selected
from lit_ft.training.selection import select_best
from lit_ft.training.signals import current_watch
from lit_ft.training.trainer_options import refuse_options


class Trainer(L.Trainer):
    """Lightning's trainer, with the main job as one call, and checkpoints that no kill can tear.

    On CUDA it lets float32 matrices be multiplied in TF32, unless another precision than torch's default is set. On a
    CPU, where that is Linux, the process keeps memory that it frees for its next step.

    Args:
        *args: As of Lightning's trainer.
        limit_train_batches: A number of batches of an epoch, such as 1, or a share of them, such as 1.0, all.
        limit_val_batches: Likewise, of a validation.
        limit_test_batches: Likewise, of a test.
        limit_predict_batches: Likewise, of a prediction.
        overfit_batches: Likewise, to train and validate on the same few.
        val_check_interval: The batches after which to validate: a number of them, or a share of an epoch.
        **kwargs: As of Lightning's trainer. A plugin for checkpoints replaces `AtomicCheckpointIO`.

    Raises:
        UserError: If an option is out of range, or of no strategy or GPU that there is.
    """

    run: Run | None = None
    is_plan = False
    """Whether a fit only shows its plan."""
    tests_own = False
    """Whether a test is of the model that was fitted, and on its own images."""
    test_metrics: Mapping[str, float] = MappingProxyType({})
    """The metrics of that test."""

    # Listed, so that the command line tries whole numbers first: for Lightning's `Union[int, float]` typing may give
    # `Union[float, int]`, which it takes for the same and had in its cache, and 1 would then be read as 1.0.
    def __init__(
        self,
        *args: Any,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs |= {
            "limit_train_batches": limit_train_batches,
            "limit_val_batches": limit_val_batches,
            "limit_test_batches": limit_test_batches,
            "limit_predict_batches": limit_predict_batches,
            "overfit_batches": overfit_batches,
            "val_check_interval": val_check_interval,
        }
        refuse_options(kwargs)
        refuse_missing_srun(kwargs.get("devices"))
        take_processes(kwargs)
        self._options = {**kwargs}  # a copy: else the parser would look for its uses in all methods, which takes long
        super().__init__(*args, **kwargs)
        refuse_idle_processes(self)
        if current_watch() is not None:
            leave_signals(self)
        if isinstance(self.accelerator, CUDAAccelerator) and torch.get_float32_matmul_precision() == "highest":
            torch.set_float32_matmul_precision("high")  # matrices in TF32, as cuDNN has its convolutions anyway
        if isinstance(self.accelerator, CPUAccelerator):
            keep_freed_memory()
            if kwargs.get("sync_batchnorm") and isinstance(self.strategy, DDPStrategy):
                raise UserError("`trainer.sync_batchnorm`: torch has it on GPUs alone; give false on a CPU")
        if type(cast(Any, self).profiler) is PassThroughProfiler:
            self.profiler = _NoProfiler()
        # Not as a default of `plugins`, which the user's own would replace, whatever they are for; nor for strategies
        # that have a way of their own.
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = AtomicCheckpointIO()

    @property
    def log_dir(self) -> str | None:
        """The folder of the run that ``lit-ft`` has claimed, whatever the logger; else that of the first logger."""
        if self.run is None:
            return super().log_dir
        return self.strategy.broadcast(str(self.run.folder))  # not all processes know it

    def again(self, callbacks: list[callbacks.Callback], max_steps: int = -1) -> Trainer:
        """A trainer with the same options for a further fit, without validation, logs and checkpoints.

        Nor has it a least length or a limit of time: those were of the first fit, and a callback says when it ends.

        Args:
            callbacks: Its callbacks.
            max_steps: Optimizer steps after which it ends; -1 for no such end.
        """
        without: dict[str, Any] = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "logger": False}
        without |= {"enable_checkpointing": False, "min_epochs": None, "min_steps": None, "max_time": None}
        quiet = {"enable_model_summary": False, "enable_progress_bar": self.progress_bar_callback is not None}
        return type(self)(**{**self._options, **without, **quiet, "callbacks": callbacks, "max_steps": max_steps})

    def finetune(
        self, model: L.LightningModule, datamodule: Any = None, ckpt_path: str | None = None, refit: bool = False
    ) -> None:
        """Fits, then tests the best checkpoint.

        If the head was solved, that is the best of the linear probe, single epochs, and blends; see `select_best`.
        It is calibrated on the validation images; see `calibrate_best`.

        Args:
            model: The module to fine-tune.
            datamodule: Its data.
            ckpt_path: Checkpoint of an interrupted run to resume.
            refit: Whether the model that was chosen is fitted again on training and validation images, for as many
                epochs, and handed back. Where the validation images are tested on, it is tested before that.
        """
        self.refuse_lost_processes()
        again = Refit(self, model, datamodule) if refit and not cast(Any, self).fast_dev_run else None
        if again is not None:
            cast(Any, self).callbacks.append(again)
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        selected = select_best(self, model)
        outputs = calibrate_best(self, model)
        report_selected(self, model, selected.share, outputs)
        is_tested_on_val = again is not None and datamodule.tested != "test"
        if is_tested_on_val:
            self._test_best(model, datamodule)
        if again is not None:
            again.fit(self, model, selected)
            report_refitted(self)
        if not is_tested_on_val:
            self._test_best(model, datamodule)

    def refuse_lost_processes(self) -> None:
        """Raises `UserError` for a strategy whose processes end with a fit, and with them what follows it here."""
        given, launcher = self._options.get("strategy"), self.strategy.launcher
        is_spawned = isinstance(given, str) and given.startswith("ddp_spawn")
        if is_spawned or (launcher is not None and launcher.is_interactive_compatible):
            name = given if isinstance(given, str) else type(given).__name__
            raise UserError(
                f"`trainer.strategy`: the processes of {name} end with the fit, before the best model is chosen and "
                "tested; give ddp, or `trainer.devices` 1"
            )

    def _test_best(self, model: L.LightningModule, datamodule: Any) -> None:
        best = find_best_path(self)
        if best is None and not cast(Any, self).fast_dev_run:
            rank_zero_warn("no epoch was validated and saved, so the last weights are tested")
        if not has_test_loader(model, datamodule):
            owner = model if datamodule is None else datamodule
            rank_zero_warn(f"nothing is tested, as {type(owner).__name__} has no test_dataloader()")
            return
        own = cast(Any, self)
        before = own.callbacks  # of which one that averages looks for its averages in the checkpoint
        own.callbacks = [one for one in before if not isinstance(one, callbacks.WeightAveraging)]
        self.tests_own = True
        try:
            results = self.test(model, datamodule=datamodule, ckpt_path=best, verbose=False)
            self.test_metrics = {name: value for scores in results for name, value in scores.items()}
            print_scores(results)
        finally:
            own.callbacks = before
            self.tests_own = False

    def plan(
        self, model: L.LightningModule, datamodule: Any = None, nodes: int | None = None, devices: int | None = None,
        precision: str | None = None, bandwidth: float = 10.0, step_seconds: float | None = None,
    ) -> None:  # fmt: skip
        """Prints what a fit would do, phase by phase, and refuses what it would refuse, without training.

        Args:
            model: The module to fine-tune.
            datamodule: Its data.
            nodes: Machines of a cluster that the run is imagined on; null takes trainer.num_nodes.
            devices: Devices of each of them, which need not be at hand; null takes trainer.devices, or else 1.
            precision: Precision there; null takes trainer.precision.
            bandwidth: GB/s at which a device there sends gradients, the bus bandwidth of nccl-tests.
            step_seconds: Seconds of a step of one device there, without communication, where all stages of the last
                phase train; null measures a few steps here.
        """
        if isinstance(datamodule, PhotoDataModule):
            datamodule = copy(datamodule)
            datamodule.cache = None
            datamodule.verifies = datamodule.measures_bands = False  # nothing of the images is shown
        own = cast(Any, self)
        before = list(own.callbacks)
        cluster = None
        if nodes is not None or devices is not None:
            if devices is None:
                rank_zero_warn("`devices`: 1 in each node is assumed; give their number, or `trainer.devices`")
            nodes, devices = (1 if given is None else given for given in (nodes, devices))
            cluster = Cluster(nodes, devices, precision or str(self.precision), bandwidth, step_seconds)
        own.callbacks.append(callbacks.LambdaCallback(on_train_start=partial(_end_plan, cluster)))
        self.is_plan = True
        try:
            with suppress(_PlanShown):
                self.fit(model, datamodule=datamodule)
        finally:
            own.callbacks = before  # also without those that the module added
            self.is_plan = False


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's early stopping, of which no option must be given.

    Args:
        monitor: What to watch.
        mode: Whether its min or max is best.
        patience: Checks without improvement after which the run ends.
        min_delta: The least change that counts as an improvement.
        kwargs: As for Lightning's.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        patience: int = 5,
        min_delta: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(monitor=monitor, mode=mode, patience=patience, min_delta=min_delta, **kwargs)


def print_scores(results: Iterable[Mapping[str, float]]) -> None:
    """Prints the metrics of a test or a validation, those of each loader."""
    for scores in results:
        rows = [(name, format_value(value)) for name, value in sorted(scores.items())]
        rank_zero_print(f"Metrics\n{indent(format_table(rows, ('<', '>')), '  ')}")


def has_test_loader(model: L.LightningModule, datamodule: Any) -> bool:
    """Whether a module or its data has a loader for a test."""
    return any(is_overridden("test_dataloader", owner) for owner in (datamodule, model) if owner is not None)


class _NoProfiler(PassThroughProfiler):
    """Does nothing, in a fifth of the time in which Lightning's does: it is asked to some 150 times a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]
        return self._nothing


class _PlanShown(Exception):  # noqa: N818 - no error
    """Ends a fit that is there to show its plan."""


def _end_plan(cluster: Cluster | None, trainer: L.Trainer, module: L.LightningModule) -> None:
    if cluster is not None:
        rank_zero_print(f"{format_scale(trainer, module, cluster)}\n")
    raise _PlanShown
