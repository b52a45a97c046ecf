"""Private and undocumented APIs of Lightning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch

# Lightning (2.6): the counts of its loops, in a checkpoint and in a trainer, decide where a run is resumed.
# It has no public way to set them.


def validate_first(checkpoint: dict[str, Any], trainer: Any) -> None:
    """Resumes with the validation of an epoch, where a checkpoint is of a moment between its last step and that's end.

    Lightning would resume such a checkpoint with the next epoch, so that no best score, early stopping or plateau would
    know of this one, or with the batches that the validation still had, and metrics of those alone. Instead the counts
    become those of a run which has completed the step and has begun the first batch of the validation. A checkpoint of
    weights alone stays as it is.
    """
    progress = checkpoint.get("loops", {}).get("fit_loop")
    if not progress:
        return
    batches, validation = progress["epoch_loop.batch_progress"], progress["epoch_loop.val_loop.batch_progress"]
    # `on_train_batch_end` is called when a batch is processed and not yet completed.
    is_before = batches["total"]["completed"] == batches["total"]["processed"] - 1
    is_within = validation["total"]["ready"] > validation["total"]["completed"]
    every = trainer.check_val_every_n_epoch
    if not (batches["is_last_batch"] and (is_before or is_within) and resumes_with_validation(trainer)):
        return
    if (checkpoint["epoch"] + 1) % every:
        return
    for count in ("total", "current"):
        batches[count]["completed"] = batches[count]["processed"]
    validation["total"].update(ready=1, started=1, processed=0, completed=0)
    validation["current"].update(ready=0, started=0, processed=0, completed=0)


def resumes_with_validation(trainer: Any) -> bool:
    """Whether a fit validates once an epoch, after its last step, so that `validate_first` can resume it there."""
    is_once = trainer.enable_validation and trainer.val_check_interval == 1
    return bool(is_once and trainer.check_val_every_n_epoch is not None)


def keep_last_batch(trainer: Any) -> None:
    """Ends an epoch of which the last batch was trained, also where it now has more or fewer batches.

    Lightning finds its end by the number of batches, and would train the images of the further ones once more.
    """
    batches, num_batches = trainer.fit_loop.epoch_loop.batch_progress, trainer.num_training_batches
    more = num_batches - batches.current.ready
    if batches.is_last_batch and math.isfinite(more):
        for name in ("ready", "started", "processed", "completed"):
            setattr(batches.current, name, getattr(batches.current, name) + more)


def epochs_done(trainer: Any) -> tuple[int, int]:
    """The epochs that a fit has completed, and the batches trained in the epoch under way.

    Lightning (2.6) counts both in its loops alone; its public ``current_epoch`` does not tell the latter.
    """
    epochs, batches = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress.current
    return int(epochs.processed), int(batches.processed) if epochs.ready > epochs.processed else 0


# Lightning: what it does on signals.


def leave_signals(trainer: Any) -> None:
    """Keeps a trainer from handling signals, which something else does.

    Lightning (2.6) saves, or broadcasts, within the handler of a signal, where the processes are in other collectives,
    and hangs (https://github.com/Lightning-AI/pytorch-lightning/issues/20806). At each step it broadcasts whether the
    first process had one, for which a GPU must have finished the step before.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


# Lightning: what it calls at each step.

_STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)
_VALIDATION_HOOKS = ("on_validation_batch_start", "on_validation_batch_end")


def skip_empty_hooks(trainer: Any) -> None:
    """Lets a fit pass over those hooks of its batches that a callback or its module does not define.

    Lightning (2.6) calls them all the same, each with a name that it makes for the profiler: with a dozen callbacks
    that was a fifth of what it adds to a step. It passes over what is not callable
    (https://github.com/Lightning-AI/pytorch-lightning/blob/2.6.0/src/lightning/pytorch/trainer/call.py).
    """
    from lightning.pytorch import Callback, LightningModule

    # Of a module it looks at the arguments of the hooks of a validation.
    owners: list[tuple[Any, type, tuple[str, ...]]] = [(trainer.lightning_module, LightningModule, _STEP_HOOKS)]
    owners += [(callback, Callback, _STEP_HOOKS + _VALIDATION_HOOKS) for callback in trainer.callbacks]
    for owner, base, hooks in owners:
        for name in hooks:
            if getattr(type(owner), name, None) is getattr(base, name):
                vars(owner).setdefault(name, None)  # one that the object itself has is kept, as of a `LambdaCallback`


# Lightning: loaders, logs, hyperparameters and the strategy of a fit.


def setup_train_data(trainer: Any) -> None:
    """Sets up the training loader of a fit before its loop does, so that the number of steps is known.

    Lightning's public ``estimated_stepping_batches`` does it with a message, and cannot for data without a length.

    In a run that is resumed the loop sets it up once more: Lightning (2.6) restores the state of loaders, such
    as a ``StatefulDataLoader`` of the user's, only where it makes them.
    """
    trainer.fit_loop.setup_data()
    if trainer.ckpt_path is not None:
        trainer.fit_loop._combined_loader = None


def setup_validation_loaders(trainer: Any) -> None:
    """Makes the validation loaders of a fit that has started before its first validation.

    Lightning (2.6) makes them at the first epoch that validates, and ``Trainer.val_dataloaders`` is ``None``
    before. There is no public way to ask for them. Calling this again does nothing.
    """
    trainer.fit_loop.epoch_loop.val_loop.setup_data()


def attached_trainer(module: Any) -> Any:
    """The trainer of a module, or None, where it has none and Lightning's ``trainer`` raises ``RuntimeError``."""
    try:
        return getattr(module, "trainer", None)
    except RuntimeError:
        return None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # as it would be for each name and phase
def log_repeatedly(module: Any, name: str, value: Any, **options: Any) -> None:
    """Logs a scalar at each step of an epoch with the same options, as ``module.log`` does.

    Lightning (2.6) checks all options at every call, which takes a tenth of a small network's step. After the
    first call of an epoch the value goes straight to what that call made.
    """
    trainer = attached_trainer(module)
    results: Any = getattr(trainer, "_results", None)
    known = results.get(f"{module._current_fx_name}.{name}") if results else None
    if known is None or known.has_reset:
        module.log(name, value, **options)
    else:
        known.forward(value.detach(), 1)


def rewrap_ddp(strategy: Any) -> None:
    """Wraps the bare module of a `DDPStrategy` once more; replicas are equal already, so nothing is sent.

    Lightning (2.6) wraps a model once a fit, and offers no way to do so again when other parameters train
    (https://github.com/Lightning-AI/pytorch-lightning/issues/20340). Its options for the wrapper are private.
    """
    strategy.model = strategy.lightning_module
    kwargs = strategy._ddp_kwargs
    strategy._ddp_kwargs = {**kwargs, "init_sync": False}
    strategy.configure_ddp()
    strategy._ddp_kwargs = kwargs


def compression_of(strategy: Any) -> tuple[Any, Any]:
    """The hook by which a `DDPStrategy` reduces gradients, and its state; Lightning (2.6) keeps both private."""
    return strategy._ddp_comm_hook, strategy._ddp_comm_state


def writes_parts(strategy: Any) -> bool:
    """Whether a `ModelParallelStrategy` writes a checkpoint as a folder of parts; Lightning (2.6) keeps it private."""
    return bool(strategy._save_distributed_checkpoint)


def collect_constructor_arguments(frame: FrameType) -> list[dict[str, Any]]:
    """The arguments of each constructor of an object that is being called, from that of ``frame`` to the outermost.

    Lightning's public ``save_hyperparameters`` gives those of all classes together.
    """
    from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
    from lightning.pytorch.utilities.parsing import collect_init_args

    return list(collect_init_args(frame, [], classes=(HyperparametersMixin,)))


NO_INSTANTIATOR: Mapping[str, Any] = {"_instantiator": None}
"""For ``load_from_checkpoint``: else Lightning (2.6) imports and calls what a checkpoint names so."""


def collective_timeout(strategy: Any) -> Any:
    """The time after which a strategy's collectives fail; Lightning (2.6) keeps it private."""
    return getattr(strategy, "_timeout", None)
