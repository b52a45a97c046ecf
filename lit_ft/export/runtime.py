"""Exported files, opened and run; needs neither Lightning nor, for ONNX, torch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_ft.errors import UserError
from lit_ft.export.description import Description, FileOutputs, PixelArray

RUNNABLE = (".onnx", ".pt2")
"""The suffixes of files that can be run; `.safetensors` has weights alone."""

METADATA_FILE = "lit_ft.json"
"""The file within a ``.pt2`` with its metadata."""

_MOST_PIXELS = 1 << 22
"""Pixels of a batch, unless one image has more: to resize them takes some 20 bytes for each."""

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


@dataclass(frozen=True)
class ExportedFile:
    """An exported file that can be run.

    Args:
        description: What it says of itself.
        runtime: The library that runs it, its version, and where.
        run: Images, uint8 ``(B, H, W, C)``, all of one size -> what it makes of them.
    """

    description: Description
    runtime: str
    run: Callable[[PixelArray], FileOutputs]

    def run_each(self, images: Sequence[PixelArray]) -> FileOutputs:
        """What it makes of N images ``(H, W, C)`` of any sizes; those of one size that follow are a batch, if small."""
        found: list[FileOutputs] = []
        start = 0
        for stop in range(1, len(images) + 1):
            shape, count = images[start].shape, stop - start
            is_full = (count + 1) * shape[0] * shape[1] > _MOST_PIXELS
            if stop == len(images) or images[stop].shape != shape or is_full:
                found.append(self.run(np.stack(images[start:stop])))
                start = stop
        return FileOutputs(*(np.concatenate(parts) for parts in zip(*found, strict=True) if parts[0] is not None))


def is_runnable(path: str | Path) -> bool:
    """Whether a path is one of an exported file, by its suffix."""
    return Path(path).suffix.lower() in RUNNABLE


def open_exported(path: str | Path, content: bytes | None = None) -> ExportedFile:
    """Opens an exported file; nothing in it runs code of its own.

    Args:
        path: The file, whose suffix says what it is.
        content: What it holds, where it is not written yet.

    Raises:
        UserError: If it is missing, damaged, not of lit_ft, or the library that runs it is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in RUNNABLE:
        hint = "; weights alone cannot be run" if path.suffix.lower() == ".safetensors" else ""
        raise UserError(f"{path}: must end in {' or '.join(RUNNABLE)}{hint}")
    if content is None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return _open_onnx(path, content) if path.suffix.lower() == ".onnx" else _open_program(path, content)


def _open_onnx(path: Path, content: bytes) -> ExportedFile:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: needs onnxruntime; pip install 'lit_ft[export]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of what it can do better elsewhere
    try:
        known = [name for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
        session = onnxruntime.InferenceSession(content, options, providers=known)
    except Exception as error:  # its own exceptions derive from that alone
        raise UserError(f"{path}: {_first_line(error)}") from error
    description = Description.from_metadata(session.get_modelmeta().custom_metadata_map, str(path))
    _check_outputs(path, description, len(session.get_outputs()))
    name = session.get_inputs()[0].name

    def run(images: PixelArray) -> FileOutputs:
        return FileOutputs(*session.run(None, {name: images}))

    return ExportedFile(description, f"onnxruntime {onnxruntime.__version__}, {session.get_providers()[0]}", run)


def _open_program(path: Path, content: bytes) -> ExportedFile:
    import torch

    from lit_ft.export.trusted_program import ForeignCodeError, load_program

    extra: dict[str, Any] = {METADATA_FILE: ""}
    log = logging.getLogger("torch.export")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old or unusual pickles, before it refuses them
            program = load_program(content, extra)
    except ForeignCodeError as error:
        raise UserError(f"{path}: cannot be opened; {error}, which could run code on this machine") from error
    except Exception as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    finally:
        log.setLevel(level)
    text = extra[METADATA_FILE]
    try:
        metadata = json.loads(text) if text else {}
    except ValueError as error:
        raise UserError(f"{path}: its metadata are damaged ({error}); export it again") from error
    description = Description.from_metadata(metadata if isinstance(metadata, dict) else {}, str(path))
    _check_outputs(path, description, len(program.graph_signature.user_outputs))
    module = program.module()

    def run(images: PixelArray) -> FileOutputs:
        with torch.no_grad():
            return FileOutputs(*(one.numpy() for one in module(torch.from_numpy(np.ascontiguousarray(images)))))

    return ExportedFile(description, f"torch {torch.__version__}, cpu", run)


def _check_outputs(path: Path, description: Description, num_outputs: int) -> None:
    """Raises `UserError` where the file computes something else than its metadata say."""
    wanted = 1 if description.farthest is None else 2
    if num_outputs != wanted:
        raise UserError(f"{path}: gives {num_outputs} outputs where its metadata say {wanted}; export it again")


def _first_line(error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"cannot be opened; it is damaged, or of a newer version ({reason[:300]})"
