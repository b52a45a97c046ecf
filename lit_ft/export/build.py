"""Building of an exported file from a model, as bytes that were run and compared with it before they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from lit_ft.errors import UserError
from lit_ft.export.description import TOLERANCE, Description, FileOutputs, PixelArray, installed_versions, make_examples
from lit_ft.export.formats import require_onnx, trace, write_onnx, write_pt2
from lit_ft.export.inference_model import InferenceModel, NetworkParts, predict_pixels, resize_by_file
from lit_ft.export.runtime import open_exported
from lit_ft.export.verification import Agreement, format_agreement, run_examples
from lit_ft.model.image_model import ImageModel


@dataclass(frozen=True)
class Exported:
    """A file that was built and verified, but not written.

    Args:
        content: Its bytes.
        description: What its metadata says.
        agreement: How far its outputs are from the model's.
        runtime: The library that ran it.
    """

    content: bytes
    description: Description
    agreement: Agreement
    runtime: str


def describe_export(
    module: ImageModel, images: Sequence[Tensor], name: str, parts: NetworkParts | None = None
) -> Description:
    """The description of an exported model, with some images ``(C, H, W)`` and what the model makes of them."""
    task, bands = module.task, module.input_spec.bands
    parts = parts or NetworkParts.of(module)
    # By the file's resizing, as torch's own differs between CPUs by more than what is allowed here.
    found = predict_pixels(module, images, parts, resize_by_file) if images else FileOutputs(np.zeros((0, 1)))
    units = task.standardisation.scale if task.standardisation else (1.0,) * task.num_outputs
    libraries = ["lit_ft", "torch", "torchvision", *(["timm"] if "timm/" in name else [])]
    return Description(
        task.name,
        list(module.class_names),
        module.normalise.file_channels,
        name,
        [TOLERANCE * (unit if task.name == "regression" else 1.0) for unit in units],
        make_examples([to_array(image) for image in images], found),
        versions=installed_versions(libraries),
        least_probability=parts.calibration.least_probability,
        farthest=None if parts.references is None else parts.calibration.farthest,
        units=task.standardisation.plain() if task.standardisation else None,
        bands=list(bands) if isinstance(bands, tuple) else bands,
        fit=module.input_spec.fit,
    )


def to_array(image: Tensor) -> PixelArray:
    """The pixels of an image ``(C, H, W)`` as a file takes them, ``(H, W, C)``."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def build_export(
    module: ImageModel, suffix: str, description: Description, parts: NetworkParts | None = None
) -> Exported:
    """The bytes of a ``.onnx`` or ``.pt2`` file, after they were run.

    Args:
        module: The model, in eval mode, on the CPU.
        suffix: The suffix of the file.
        description: What it says of itself; its examples are run.
        parts: The network, where it is not the whole backbone and head.

    Raises:
        UserError: If the network cannot be exported, or the outputs differ from the model's.
    """
    if suffix == ".onnx":
        require_onnx()
    program = trace(InferenceModel(module, parts))
    content = (write_onnx if suffix == ".onnx" else write_pt2)(program, description.metadata())
    return verify_built(content, suffix)


def verify_built(content: bytes, suffix: str) -> Exported:
    """Runs the examples of a file that is not written yet.

    Raises:
        UserError: If it cannot be run, or its outputs differ from the model's.
    """
    file = open_exported(Path(f"model{suffix}"), content)
    agreement = run_examples(file)
    if not agreement.holds:
        found = format_agreement(agreement, file.description)
        raise UserError(f"nothing was written: {file.runtime} gives something else than the model ({found})")
    return Exported(content, file.description, agreement, file.runtime)
