"""Decides how a network wants its images: size, interpolation, channels and normalisation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from lit_ft.errors import UserError

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class InputSpec:
    """What a backbone expects of an image.

    Args:
        size: Height and width of the image that enters the network, in pixels.
        resize: Length of the shorter side, in pixels, before the centre ``size`` x ``size`` is cut out.
        interpolation: How images are resized.
        mean: Mean of each channel, on a scale from 0 to 1; their number is the number of channels.
        std: Standard deviation of each channel, on the same scale.
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def channels(self) -> int:
        """Number of colour channels: 3, or 1 for grey images."""
        return len(self.mean)


@dataclass
class InputConfig:
    """What differs from the images that the backbone's weights expect; null keeps theirs.

    Args:
        size: Height and width of the image that enters the network, in pixels.
        resize: Length of the shorter side before the centre is cut out, in pixels; null keeps the margin's share.
        interpolation: How images are resized.
        mean: Mean of each channel, on a scale from 0 to 1.
        std: Standard deviation of each channel, on the same scale.
    """

    size: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    def applied_to(self, spec: InputSpec) -> InputSpec:
        """The spec with these changes.

        Raises:
            UserError: If a number is out of range, or the number of channels differs from the backbone's.

        >>> InputConfig(size=112).applied_to(InputSpec()).resize
        128
        """
        given = {key: value for key, value in asdict(self).items() if value is not None}
        for key in ("mean", "std"):
            if key in given and len(given[key]) != spec.channels:
                raise UserError(f"--model.input.{key}: the backbone has {spec.channels} channels, got {given[key]}")
            if key in given:
                given[key] = tuple(float(value) for value in given[key])
        if any(std <= 0 for std in given.get("std", ())):
            raise UserError(f"--model.input.std: must be above 0, got {list(given['std'])}")
        size = given.get("size", spec.size)
        given.setdefault("resize", round(size * spec.resize / spec.size))
        if not 1 <= size <= given["resize"]:
            raise UserError(f"--model.input.size: must be between 1 and resize ({given['resize']}), got {size}")
        return replace(spec, **given)
