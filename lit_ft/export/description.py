"""Metadata of an exported file: task, classes, input and output, and examples to verify it by."""

from __future__ import annotations

import base64
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_ft.errors import UserError

FORMAT = "lit_ft"
"""The entry of the metadata that only files of lit_ft have: the version that wrote them."""

TOLERANCE = 1e-3
"""By how much a probability, or a number in units of its standard deviation, may differ."""

PixelArray = NDArray[np.uint8]
OutputArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Example:
    """An image, and what the model makes of it.

    Args:
        pixels: ``(H, W, C)``.
        outputs: ``(K,)``.
    """

    pixels: PixelArray
    outputs: OutputArray

    def plain(self) -> dict[str, Any]:
        """The plain form in the metadata: the pixels as PNG, which loses nothing, in base 64."""
        height, width, channels = self.pixels.shape
        is_colour = channels == 3
        image = Image.fromarray(self.pixels if is_colour else self.pixels.reshape(height, width * channels))
        image.save(png := io.BytesIO(), "PNG", optimize=True)
        shape = list(self.pixels.shape)
        return {
            "png": base64.b64encode(png.getvalue()).decode(),
            "shape": shape,
            "outputs": [float(value) for value in self.outputs],
        }

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> Example:
        """The example in the plain form."""
        with Image.open(io.BytesIO(base64.b64decode(given["png"], validate=True)), formats=["PNG"]) as image:
            pixels = np.asarray(image).reshape(given["shape"])
        return cls(pixels, np.asarray(given["outputs"], dtype=np.float64))


@dataclass(frozen=True)
class Description:
    """What a program needs to know to use an exported file.

    Args:
        task: ``multiclass``, ``multilabel`` or ``regression``.
        classes: The names of the K outputs.
        channels: Of the images that it takes.
        network: The backbone, and up to where it goes.
        tolerance: By how much each of the K outputs may differ on another machine.
        examples: Images with what it should make of them.
        precision: ``float32`` or ``int8``.
        versions: Of the libraries that wrote it.
        least_probability: The probability from which a class is in the label set of an image, which holds the true one
            with a probability of 90%; None where it is not known.
    """

    task: str
    classes: list[str]
    channels: int
    network: str
    tolerance: list[float]
    examples: list[Example] = field(default_factory=list)
    precision: str = "float32"
    versions: Mapping[str, str] = field(default_factory=dict)
    least_probability: float | None = None

    @property
    def input_format(self) -> str:
        """The images that it takes, in words."""
        kind = "RGB, " if self.channels == 3 else ""
        return f"images: uint8 (B, H, W, {self.channels}), {kind}from 0 to 255, of any size; resized and cropped inside"

    @property
    def output_format(self) -> str:
        """What it makes of them, in words."""
        what = {"multiclass": "probabilities, of sum 1", "multilabel": "probability of each label"}
        number = "the numbers in their own units, float64"
        return f"outputs: (B, {len(self.classes)}), {what.get(self.task, number)}, in the order of classes"

    def metadata(self) -> dict[str, str]:
        """The entries of the metadata of the file."""
        return {
            FORMAT: self.versions.get("lit_ft", ""),
            "task": self.task,
            "classes": json.dumps(self.classes),
            "input": self.input_format,
            "output": self.output_format,
            "channels": str(self.channels),
            "network": self.network,
            "precision": self.precision,
            "tolerance": json.dumps(self.tolerance),
            "versions": json.dumps(dict(self.versions)),
            "least_probability": json.dumps(self.least_probability),
            "examples": json.dumps([example.plain() for example in self.examples]),
        }

    @classmethod
    def from_metadata(cls, given: Mapping[str, str], file: str) -> Description:
        """The description in the metadata of a file.

        Raises:
            UserError: If the file was not written by `lit-ft export`, or its metadata are damaged.
        """
        if FORMAT not in given:
            raise UserError(f"{file}: was not written by lit-ft export: its metadata names no task and no classes")
        try:
            found = cls(
                given["task"],
                [str(name) for name in json.loads(given["classes"])],
                int(given["channels"]),
                given["network"],
                [float(value) for value in json.loads(given["tolerance"])],
                [Example.from_plain(one) for one in json.loads(given["examples"])],
                given["precision"],
                json.loads(given["versions"]),
                json.loads(given["least_probability"]),
            )
            found.check()
        except (KeyError, TypeError, ValueError, OSError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise UserError(f"{file}: its metadata are damaged ({reason}); export it again") from error
        return found

    def check(self) -> None:
        """Raises `ValueError` where parts do not fit together."""
        if not self.classes or len(self.tolerance) != len(self.classes):
            raise ValueError(f"{len(self.tolerance)} tolerances for {len(self.classes)} classes")
        if any(one.outputs.shape != (len(self.classes),) for one in self.examples):
            raise ValueError(f"examples without {len(self.classes)} outputs")
        if any(one.pixels.shape[2:] != (self.channels,) for one in self.examples):
            raise ValueError(f"examples without {self.channels} channels")


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of some libraries."""
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
