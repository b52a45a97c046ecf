"""Classes named by a dotted path: what they must be, and whose code a checkpoint may run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from lit_ft.backbones.freezing import Staged
from lit_ft.errors import UserError
from lit_ft.own_code import running_own_code

LIBRARIES = ("lit_ft", "torch", "torchvision", "timm")
"""The packages whose classes a checkpoint may name."""


@contextmanager
def making_network(path: str, doing: str) -> Iterator[None]:
    """Raises `UserError` for what making the network of a dotted path raises within; see `running_own_code`."""
    try:
        with running_own_code("`model.backbone`", path, doing):
            yield
    except UserError:
        raise
    except Exception as error:  # anybody's code can fail in any way
        reason = str(error).partition("\n")[0]
        raise UserError(f"`model.backbone`: cannot make {path} ({reason})") from error


def network_class(path: str) -> type[nn.Module]:
    """The class that a dotted path names; it is imported and not called.

    Raises:
        UserError: If it cannot be imported, or is no class derived from ``nn.Module``.
    """
    home, _, title = path.rpartition(".")
    with making_network(path, f"at the import of {home}"):
        found = getattr(importlib.import_module(home), title)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"`model.backbone.class_path`: {path} is no class derived from torch.nn.Module")
    return found


def refuse_foreign(saved: Any, named: Any) -> None:
    """Refuses a checkpoint's network of somebody's own, unless the user names its classes, too.

    To import a module runs its code, so that this decides by the name and imports nothing else. What a checkpoint calls
    with arguments of its own must not load files either, as lit_ft's modules do.

    Args:
        saved: The ``backbone`` of a checkpoint, or all of its hyperparameters.
        named: What the user gives of the same.

    Raises:
        UserError: If a class is neither the user's nor of `LIBRARIES`.
    """
    known = set(_class_paths(named))
    for path in _class_paths(saved):
        if path not in known and not (is_of_libraries(path) and _is_plain_network(path)):
            raise UserError(
                f"`ckpt_path`: the checkpoint names {path}, whose code would run; if you trust it, name "
                f"it, too: `model.backbone.class_path` {path}, or the config of its run, or from Python "
                "load_from_checkpoint(..., backbone={...})"
            )


def refuse_foreign_names(spec: Any, option: str) -> None:
    """Refuses a checkpoint's optimizer or schedule of somebody's own, before it is imported for a fit.

    Raises:
        UserError: If a dotted path in ``spec`` is not of `LIBRARIES`; the user can give the same by ``option``.
    """
    for path in _nested(spec):
        if isinstance(path, str) and "." in path and not is_of_libraries(path):
            raise UserError(
                f"`model.{option}`: the checkpoint names {path}, whose code would run; if you trust it, name it, too: "
                f"load_from_checkpoint(..., {option}=...)"
            )


def is_of_libraries(path: str) -> bool:
    """Whether a dotted path begins with one of `LIBRARIES`.

    >>> is_of_libraries("torch.nn.Linear"), is_of_libraries("torchy.Net")
    (True, False)
    """
    return path.partition(".")[0] in LIBRARIES


def _is_plain_network(path: str) -> bool:
    found = network_class(path)
    return is_of_libraries(found.__module__) and not issubclass(found, Staged)


def _class_paths(value: Any) -> list[str]:
    """What stands under ``class_path``, at any depth."""
    return [str(part["class_path"]) for part in _nested(value) if isinstance(part, Mapping) and "class_path" in part]


def _nested(value: Any) -> Iterator[Any]:
    """A value and all that is in it, at any depth."""
    yield value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple, set)) else ()
    for item in items:
        yield from _nested(item)
