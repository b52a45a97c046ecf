"""Private and undocumented APIs of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

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
