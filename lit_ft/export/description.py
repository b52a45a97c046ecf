"""Metadata of an exported file: task, classes, input and output, and examples to verify it by."""

from __future__ import annotations

import base64
import io
import json
import math
import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_ft.errors import UserError

FORMAT = "lit_ft"
"""The entry of the metadata that only files of lit_ft have: the version that wrote them."""

TOLERANCE = 1e-3
"""By how much a probability, a number in units of its standard deviation, or a distance of features may differ."""

PixelArray = NDArray[Any]
"""Pixels of photos, uint8, or raw values, float32."""

OutputArray = NDArray[np.floating[Any]]


class FileOutputs(NamedTuple):
    """What a file, or the model in it, makes of images: outputs ``(B, K)``, and distances ``(B,)`` where it has them.

    A distance is that of the features of an image, of length 1, to those of the nearest validation image.
    """

    outputs: OutputArray
    distances: OutputArray | None = None


@dataclass(frozen=True)
class Example:
    """An image, and what the model makes of it.

    Args:
        pixels: ``(H, W, C)``, uint8 or raw float32.
        outputs: ``(K,)``.
        distance: From the nearest validation image; None where the file has no such output.
    """

    pixels: PixelArray
    outputs: OutputArray
    distance: float | None = None

    def plain(self) -> dict[str, Any]:
        """The plain form in the metadata: the pixels packed, as PNG or raw, which loses nothing, in base 64."""
        if self.pixels.dtype == np.uint8:
            key, packed = "png", _pack_png(self.pixels)
        else:
            key, packed = "float32", zlib.compress(self.pixels.astype("<f4").tobytes())
        return {
            key: base64.b64encode(packed).decode(),
            "shape": list(self.pixels.shape),
            "outputs": [float(value) for value in self.outputs],
            "distance": self.distance,
        }

    @classmethod
    def from_plain(cls, given: Mapping[str, Any]) -> Example:
        """The example in the plain form."""
        if "float32" in given:
            size = 4 * math.prod(given["shape"])
            content = zlib.decompressobj().decompress(base64.b64decode(given["float32"], validate=True), size)
            pixels = np.frombuffer(content, "<f4").astype(np.float32).reshape(given["shape"])
        else:
            with Image.open(io.BytesIO(base64.b64decode(given["png"], validate=True)), formats=["PNG"]) as image:
                pixels = np.asarray(image).reshape(given["shape"])
        outputs, distance = np.asarray(given["outputs"], dtype=np.float64), given["distance"]
        return cls(pixels, outputs, None if distance is None else float(distance))


def _pack_png(pixels: PixelArray) -> bytes:
    height, width, channels = pixels.shape
    image = Image.fromarray(pixels if channels == 3 else pixels.reshape(height, width * channels))
    image.save(png := io.BytesIO(), "PNG", optimize=True)
    return png.getvalue()


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
        farthest: The distance above which an image is unlike those of the validation; None where the file does not
            compute distances.
        distance_tolerance: By how much a distance may differ on another machine.
        units: Mean and scale of the numbers of a regression; None where they were not standardised.
        bands: Numbers of the bands that it takes raw values of, or all; None where it takes photos.
        fit: How a photo becomes a square: ``crop``, ``pad`` or ``squash``.
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
    farthest: float | None = None
    distance_tolerance: float = TOLERANCE
    units: Mapping[str, Sequence[float]] | None = None
    bands: list[int] | str | None = None
    fit: str = "crop"

    @property
    def input_format(self) -> str:
        """The images that it takes, in words."""
        made = {"pad": "resized and padded", "squash": "resized"}.get(self.fit, "resized and cropped")
        inside = f"of any size; {made} inside"
        if self.bands is not None:
            which = "all bands" if self.bands == "all" else f"the bands {', '.join(map(str, self.bands))}"
            return f"images: float32 (B, H, W, {self.channels}), raw values of {which} of the files, {inside}"
        kind = "RGB, " if self.channels == 3 else ""
        return f"images: uint8 (B, H, W, {self.channels}), {kind}from 0 to 255, {inside}"

    @property
    def output_format(self) -> str:
        """What it makes of them, in words."""
        what = {"multiclass": "probabilities, of sum 1", "multilabel": "probability of each label"}
        number = "the numbers in their own units, float64"
        outputs = f"outputs: (B, {len(self.classes)}), {what.get(self.task, number)}, in the order of classes"
        if self.farthest is None:
            return outputs
        return f"{outputs}; distance: (B,), an image is unlike those of the training above {self.farthest:.4g}"

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
            "farthest": json.dumps(self.farthest),
            "distance_tolerance": json.dumps(self.distance_tolerance),
            "units": json.dumps(self.units),
            **({} if self.bands is None else {"bands": json.dumps(self.bands)}),
            "fit": self.fit,
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
                json.loads(given["farthest"]),
                float(given["distance_tolerance"]),
                json.loads(given["units"]),
                json.loads(given.get("bands", "null")),
                given.get("fit", "crop"),  # files of the first release do not say it
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
        if not self.examples:
            raise ValueError("no examples")
        if any(one.outputs.shape != (len(self.classes),) for one in self.examples):
            raise ValueError(f"examples without {len(self.classes)} outputs")
        if any((one.distance is None) != (self.farthest is None) for one in self.examples):
            raise ValueError("distances without a bound, or a bound without distances")
        if any(one.pixels.shape[2:] != (self.channels,) for one in self.examples):
            raise ValueError(f"examples without {self.channels} channels")


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of some libraries."""
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def make_examples(pixels: Sequence[PixelArray], found: FileOutputs) -> list[Example]:
    """Examples of images ``(H, W, C)`` and what was made of them."""
    distances = [None] * len(pixels) if found.distances is None else found.distances.tolist()
    return [Example(*of_one) for of_one in zip(pixels, found.outputs, distances, strict=True)]
