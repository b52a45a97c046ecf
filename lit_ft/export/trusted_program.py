"""Loading of ``.pt2`` files without running code that they may hold."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

_SHAPE_NAME = re.compile(r"[su]\d+|[A-Z][A-Za-z]*")
"""Sizes that are not known before, and functions of sympy of these, such as ``Min``."""

_SHAPE_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop,
    ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.keyword,
)  # fmt: skip


_GLOBAL = re.compile(r"GLOBAL (\S+)")
"""The function or class in a pickle that torch refuses, as its message names it."""


class ForeignCodeError(ValueError):
    """What a file holds could run code."""


def load_program(content: bytes, extra_files: dict[str, Any]) -> Any:
    """The program in a file of ``torch.export.save``, whose extra files come with it.

    ``torch.export.load`` trusts a file: it unpickles constants, loads compiled libraries, and has sympy evaluate sizes,
    which runs whatever stands there. Here, tensors alone are unpickled, and a file with other things is refused.

    Raises:
        ForeignCodeError: If the file may run code.
        Exception: Nearly anything else, if it is damaged.
    """
    import torch

    refuse_code(content)
    try:
        with _without_pickle():
            return torch.export.load(io.BytesIO(content), extra_files=extra_files)
    except pickle.UnpicklingError as error:  # whose advice is to trust the file
        named = _GLOBAL.search(str(error))
        raise ForeignCodeError(f"it has a pickle of {named[1] if named else 'more than tensors'}") from error


def refuse_code(content: bytes) -> None:
    """Raises `ForeignCodeError` if a file has compiled libraries, or sizes that are more than arithmetic."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if not any(name.endswith(".json") for name in names):
            raise ValueError("torch.export has not written it")
        if len(set(names)) < len(names) or any("aotinductor" in name for name in names):
            raise ForeignCodeError("it has compiled code, or a file twice")
        for name in names:
            if name.endswith(".json"):
                for text in _find_sizes(json.loads(archive.read(name))):
                    _check_size(text)


def _find_sizes(value: Any) -> Iterator[str]:
    """All that sympy would evaluate."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from [str(one)] if key == "expr_str" else _find_sizes(one)
    elif isinstance(value, list):
        for one in value:
            yield from _find_sizes(one)


def _check_size(text: str) -> None:
    for node in ast.walk(ast.parse(text, mode="eval")):
        name = node.id if isinstance(node, ast.Name) else getattr(node, "value", None)
        is_named = not isinstance(name, str) or _SHAPE_NAME.fullmatch(name)  # sympy evaluates text within text, too
        if not isinstance(node, _SHAPE_NODES) or not is_named:
            raise ForeignCodeError(f"it has a size that is no arithmetic, {text[:60]!r}")


@contextmanager
def _without_pickle() -> Iterator[None]:
    """Lets torch unpickle tensors alone, also where it asks for more: ``torch.export.load`` has no option for it."""
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before
