"""Private and undocumented APIs of other libraries, each with the reason for its use.

`tests/test_compat.py` fails when one of them changes upstream, and when another file uses one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

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


# torch

BATCH_NORM: type[_BatchNorm] = _BatchNorm
"""Base of torch's batch norms and those of other libraries, such as apex; torch (2.8 to 2.14) has no public one."""

INSTANCE_NORM: type[_InstanceNorm] = _InstanceNorm
"""Base of torch's instance norms, for the same reason."""


def inner_schedulers(scheduler: Any) -> Iterator[Any]:
    """The schedulers within a scheduler that chains others, at any depth.

    torch (2.8 to 2.14) has no public name for those of ``SequentialLR`` and ``ChainedScheduler``.
    """
    for part in getattr(scheduler, "_schedulers", ()):
        yield part
        yield from inner_schedulers(part)


def inner_states(state: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The states of those schedulers, in that of the scheduler that chains them."""
    return tuple(state.get("_schedulers", ()))


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, or one within it, is compiled, in place or by the trainer.

    Neither torch (2.8 to 2.14) nor Lightning has a public name for this.
    """
    if getattr(module, "_compiler_ctx", None) is not None:  # set by Lightning for a compiled `LightningModule`
        return True
    from torch._dynamo import OptimizedModule

    return any(isinstance(part, OptimizedModule) or part._compiled_call_impl for part in module.modules())


def state_versions(state: Any) -> dict[str, dict[str, Any]]:
    """The versions of the modules that wrote a state dict, by module; empty where they are not known.

    torch (2.8 to 2.14) keeps them in an attribute without a public name, by which modules load what earlier versions
    of them wrote.
    """
    return getattr(state, "_metadata", None) or {}


def set_state_versions(state: Any, versions: dict[str, dict[str, Any]]) -> None:
    """Gives a state dict, which must be no plain dict, the versions of its modules; see `state_versions`."""
    state._metadata = versions


def loads_in_its_own_way(module: nn.Module) -> bool:
    """Whether a module or a part of it overrides how torch loads a state dict.

    torch (2.8 to 2.14) has no public hook that converts earlier versions, so that networks override this method.
    """
    return any(not type(part)._load_from_state_dict.__module__.startswith("torch.nn.") for part in module.modules())


# jsonargparse, timm, Pillow and litdata


@contextmanager
def parsing_settings(**settings: Any) -> Iterator[None]:
    """As jsonargparse's `set_parsing_settings`, for a while; there is no public way to reset them (4.51 to 4.53)."""
    from jsonargparse import _common, set_parsing_settings

    before = dict(_common.parsing_settings)
    set_parsing_settings(**settings)
    try:
        yield
    finally:
        _common.parsing_settings.update(before)


def group_by_matcher(names: Iterable[str], matcher: dict[str, Any]) -> list[list[str]]:
    """Names of parameters in the groups of one of timm's matchers, shallow to deep.

    timm (1.0) has ``group_matcher`` on its networks, and applies it by a function in a private module alone.
    """
    from timm.models._manipulate import group_with_matcher

    return list(group_with_matcher(iter([(name, name) for name in names]), matcher).values())


def reuse_image_memory() -> None:
    """Lets Pillow keep 64 MB of memory in each process for the next images.

    Otherwise it gives the memory of each image back, and the system clears it again: a third of the time that a large
    image takes. Pillow (11 to 13) reads the variable PILLOW_BLOCKS_MAX for this once, as it is loaded; after that only
    its private ``Image.core`` sets it.
    """
    if "PILLOW_BLOCKS_MAX" not in os.environ:
        from PIL import Image

        Image.core.set_blocks_max(4)  # type: ignore[attr-defined]


def download_from_bucket(root: str, name: str, folder: str) -> None:
    """Downloads a file of a bucket into a folder, by the same means as litdata its chunks.

    litdata (0.2.74 to 0.2.76) has no public function for other files than chunks.
    """
    from litdata.streaming.downloader import get_downloader

    get_downloader(root, folder, []).download_file(f"{root}/{name}", f"{folder}/{name}")


def chunked_index(row: int, chunk: int, ahead: list[int] | None, is_last: bool) -> Any:
    """The index of a sample for litdata's ``StreamingDataset``, with the chunks to fetch ahead.

    Its public index is a number alone, with which litdata (0.2.74 to 0.2.76) fetches single samples. Releases differ
    in the order of the fields, hence the names.
    """
    from litdata.streaming.sampler import ChunkedIndex

    return ChunkedIndex(index=row, chunk_index=chunk, chunk_indexes=ahead, is_last_index=is_last)


def collective_timeout(strategy: Any) -> Any:
    """The time after which a strategy's collectives fail; Lightning (2.6) keeps it private."""
    return getattr(strategy, "_timeout", None)
