"""Writing of exported files: ONNX and torch.export, as bytes, so that a file can be verified before it is written."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from lit_ft.errors import UserError
from lit_ft.export.inference_model import InferenceModel
from lit_ft.export.runtime import METADATA_FILE

INPUT, OUTPUTS = "images", ("outputs", "distance")
OPSET, IR_VERSION = 18, 8
"""Those of ONNX 1.13, which runtimes since the beginning of 2023 read."""
KEPT = ("preprocessing", "output", "distance")
"""The parts of `InferenceModel` that stay in float32, with which, and a slash, the names of their nodes in ONNX begin.

Of probabilities in 8 bits, small ones would be 0, and numbers would end at the largest of the calibration.
"""

_MOST_BYTES = 2**31 - 1  # of a protocol buffer


def require_onnx() -> None:
    """Raises `UserError` if a library is missing that writes or runs ONNX."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            raise UserError(f".onnx needs {name}; pip install 'lit_ft[export]', or write a .pt2 file")


def trace(model: InferenceModel) -> ExportedProgram:
    """The operations of a model, for any number of images of any size.

    Raises:
        UserError: If the network does what torch.export cannot follow.
    """
    # Not square, and of no size that is in the network, as torch.export takes equal sizes for the same one.
    images = torch.zeros(2, 71, 83, model.channels, dtype=torch.float32 if model.is_raw else torch.uint8)
    sizes = {0: Dim("batch", min=1), 1: Dim("height", min=1), 2: Dim("width", min=1)}
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=(sizes,))
    except Exception as error:  # torch.export raises nearly anything
        raise _untraceable(error) from error


def write_onnx(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """The program as an ONNX file, without what the exporter notes of the source code.

    Raises:
        UserError: If ONNX has not all of its operations, or the file would be too large.
    """
    require_onnx()
    import onnx

    try:
        with _quiet(), torch.no_grad():
            names = OUTPUTS[: len(program.graph_signature.user_outputs)]
            options: dict[str, Any] = {"input_names": [INPUT], "output_names": names, "opset_version": OPSET}
            written = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False, **options)
            assert written is not None  # as no file is named
            proto = written.model_proto
    except Exception as error:
        raise _untraceable(error) from error
    proto.ir_version = IR_VERSION
    _strip(proto)
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = ("batch", "height", "width") if value.name == INPUT else ("batch",)
        for size, name in zip(value.type.tensor_type.shape.dim, sizes, strict=False):
            size.dim_param = name
    onnx.helper.set_model_props(proto, dict(metadata))
    if proto.ByteSize() > _MOST_BYTES:
        raise UserError(f".onnx holds at most 2 GB, and this network takes {proto.ByteSize():,} bytes; write .pt2")
    return bytes(proto.SerializeToString())


def write_pt2(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """The program as torch.export writes it."""
    for node in program.graph.nodes:  # not the paths and lines of the source that each operation came from
        node.meta.pop("stack_trace", None)
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    return file.getvalue()


def _strip(proto: Any) -> None:
    """Removes the paths and lines of the source that each operation came from, and names the parts of `KEPT`."""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        for node in graph.node:
            scopes = next((entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes")), "")
            node.name = next((f"{part}/{node.name}" for part in KEPT if f"'{part}'" in scopes), node.name)
            del node.metadata_props[:]
            node.ClearField("doc_string")
        del graph.metadata_props[:]
        graph.ClearField("doc_string")
    del proto.graph.value_info[:]  # shapes in between, which runtimes find themselves
    for values in (proto.graph.input, proto.graph.output, proto.graph.initializer):
        for value in values:
            del value.metadata_props[:]
            value.ClearField("doc_string")


def _untraceable(error: Exception) -> UserError:
    reason = " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__
    return UserError(
        f"the network cannot be exported: torch.export cannot follow it ({type(error).__name__}: {reason}); give "
        "another format, or another `model.backbone`"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what the exporters warn of and log where all is as intended; what they write is verified."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
