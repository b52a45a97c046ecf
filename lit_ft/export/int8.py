"""Static quantisation of an ONNX file to 8-bit whole numbers, and what it costs and gains."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_ft.console import format_bytes
from lit_ft.errors import UserError
from lit_ft.export.description import Description, OutputArray, PixelArray, make_examples
from lit_ft.export.formats import INPUT, KEPT
from lit_ft.export.runtime import ExportedFile, open_exported

TOLERANCE = 0.05
"""By how much a probability, a number in units of its deviation, or a distance may differ: CPUs round differently."""

NUM_CALIBRATION = 100
_NUM_TIMED = 15


@dataclass(frozen=True)
class QuantisedFile:
    """An ONNX file in 8 bits.

    Args:
        content: Its bytes.
        description: What its metadata says; its examples have what it makes of them itself.
    """

    content: bytes
    description: Description


@dataclass(frozen=True)
class Cost:
    """What a file of 8 bits costs and gains.

    Args:
        metric: What is measured.
        before: The metric of the file in float32.
        after: That of the one in 8 bits.
        changed: The share of the images whose most probable class is another one.
        num_images: The number of images.
        seconds: The time for an image, before and after, median.
        sizes: Bytes before and after.
    """

    metric: str
    before: float
    after: float
    changed: float
    num_images: int
    seconds: tuple[float, float]
    sizes: tuple[int, int]

    def __str__(self) -> str:
        """A line for the terminal."""
        slow, fast = (1000 * seconds for seconds in self.seconds)
        times = f"{slow:.1f} ms an image before, {fast:.1f} ms now ({slow / fast:.2f} times as fast here)"
        changed = f", another class for {self.changed:.1%}" if self.metric == "accuracy" else ""
        score = f"{self.metric} {self.before:.4f} before, {self.after:.4f} now{changed}, on {self.num_images:,} images"
        return f"{score}; {times}; {format_bytes(self.sizes[0])} before, {format_bytes(self.sizes[1])} now"


class _Images:
    """Images as ONNX Runtime asks for them: one after the other, and None at the end."""

    def __init__(self, images: Iterable[PixelArray]) -> None:
        self._rest = iter(images)

    def get_next(self) -> dict[str, PixelArray] | None:
        image = next(self._rest, None)
        return None if image is None else {INPUT: image[np.newaxis]}


def quantise(content: bytes, description: Description, images: Iterable[PixelArray]) -> QuantisedFile:
    """An ONNX file with the weights and activations of the network in 8 bits; all of `KEPT` stays as it is.

    Weights have a scale a channel. Sums can overflow on x86 CPUs without VNNI instructions, which verification shows
    there; weights of 7 bits would not, but cost more accuracy everywhere.

    Args:
        content: The file in float32.
        description: Its description.
        images: Images ``(H, W, C)`` of the training, by which the range of the activations is found.

    Raises:
        UserError: If ONNX Runtime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    proto = onnx.load_from_string(content)
    kept = [node.name for node in proto.graph.node if node.name.partition("/")[0] in KEPT]
    options: dict[str, Any] = {"nodes_to_exclude": kept, "quant_format": QuantFormat.QDQ}
    options |= {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    root, level = logging.getLogger(), logging.getLogger().level
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)  # it advises preprocessing, which needs sympy, and gained nothing
        try:
            path = Path(folder, "model.onnx")
            quantize_static(proto, path, _Images(images), per_channel=True, **options)
            quantised = onnx.load(path)
        except Exception as error:  # it raises nearly anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"ONNX Runtime cannot quantise the network ({reason}); export it in float32") from error
        finally:
            root.setLevel(level)
    return _describe(quantised, description)


def _describe(proto: Any, before: Description) -> QuantisedFile:
    """The quantised file, whose examples have what it makes of them itself."""
    import onnx

    def write(description: Description) -> bytes:
        del proto.metadata_props[:]
        onnx.helper.set_model_props(proto, description.metadata())
        return bytes(proto.SerializeToString())

    tolerance = [value * TOLERANCE / 1e-3 for value in before.tolerance]
    described = replace(before, precision="int8", tolerance=tolerance, distance_tolerance=TOLERANCE)
    pixels = [one.pixels for one in before.examples]
    found = open_exported("model.onnx", write(described)).run_each(pixels)
    described = replace(described, examples=make_examples(pixels, found))
    return QuantisedFile(write(described), described)


def measure_cost(
    before: bytes, after: bytes, images: Iterable[PixelArray], targets: NDArray[Any], examples: Sequence[PixelArray]
) -> Cost:
    """Compares a file in 8 bits with the one in float32.

    Args:
        before: The file in float32.
        after: The one in 8 bits.
        images: N images ``(H, W, C)``.
        targets: Their targets, ``(N,)`` or ``(N, K)``.
        examples: Images whose time is taken, in turns, by both.
    """
    files = [open_exported("model.onnx", content) for content in (before, after)]
    pairs = [[file.run(image[np.newaxis]).outputs for file in files] for image in images]
    old, new = (np.concatenate(outputs) for outputs in zip(*pairs, strict=True))
    task = files[0].description.task
    name, (first, second) = _score(task, [old, new], targets)
    changed = float((old.argmax(axis=1) != new.argmax(axis=1)).mean())
    sizes = len(before), len(after)
    return Cost(name, first, second, changed, len(pairs), _time(files, examples), sizes)


def _score(task: str, outputs: Sequence[OutputArray], targets: NDArray[Any]) -> tuple[str, list[float]]:
    if task == "multiclass":
        return "accuracy", [float((one.argmax(axis=1) == targets).mean()) for one in outputs]
    if task == "multilabel":
        return "accuracy of the labels", [float(((one > 0.5) == (targets > 0.5)).mean()) for one in outputs]
    return "mean absolute error", [float(np.abs(one - targets.reshape(one.shape)).mean()) for one in outputs]


def _time(files: Sequence[ExportedFile], examples: Sequence[PixelArray]) -> tuple[float, float]:
    """The median time of each of two files for one image, which are run in turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(_NUM_TIMED + 2):
        image = examples[turn % len(examples)][np.newaxis]
        for file, times in zip(files, taken, strict=True):
            began = time.perf_counter()
            file.run(image)
            if turn >= 2:  # the first are slower
                times.append(time.perf_counter() - began)
    return statistics.median(taken[0]), statistics.median(taken[1])
