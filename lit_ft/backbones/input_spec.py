"""Input formats of networks: size, interpolation, channels and normalisation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from lit_ft.backbones.resize import ResizeForCentre
from lit_ft.errors import UserError, unknown

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
        squash: Whether the whole image is squeezed into a square, rather than its centre cut out.
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    squash: bool = False

    @property
    def channels(self) -> int:
        """Number of channels: 3 for colour, 1 for grey images."""
        return len(self.mean)

    def geometry(self) -> v2.Transform:
        """The eval transform up to the normalisation: photo ``(C, H, W)`` -> ``(C, size, size)``."""
        mode = InterpolationMode(self.interpolation)
        if self.squash:
            resize = v2.Resize([self.resize, self.resize], mode, antialias=True)
        else:
            resize = ResizeForCentre(self.resize, self.size, mode)
        return v2.Compose([resize, v2.CenterCrop(self.size)])

    def eval_transform(self) -> v2.Transform:
        """What makes an image of a photo: uint8 ``(C, H, W)`` -> normalised float ``(C, size, size)``."""
        normalise = v2.Normalize(list(self.mean), list(self.std))
        return v2.Compose([self.geometry(), v2.ToDtype(torch.float32, scale=True), normalise])

    def meta_images(self) -> Tensor:
        """One such image ``(1, C, H, W)``, without data: shapes follow from it at no cost."""
        return torch.empty(1, self.channels, self.size, self.size, device="meta")

    def refused(self, error: Exception) -> UserError:
        """The user error for a network that cannot take such images."""
        reason = str(error).partition("\n")[0]
        if "meta" in reason:  # torch has no exception of its own for it
            return UserError(
                f"`model.backbone`: its shapes are found with tensors without data, which it cannot take ({reason}); "
                "it must not ask for values, nor keep tensors that are no parameters or buffers"
            )
        images = f"{self.channels} x {self.size} x {self.size} images"
        return UserError(f"`model.input.size`: the backbone cannot take {images} ({reason})")


@dataclass
class InputConfig:
    """What differs from the images that the backbone's weights expect; null keeps theirs.

    Args:
        size: Height and width of the image that enters the network, in pixels.
        resize: Length of the shorter side before the centre is cut out, in pixels; null keeps the margin's share.
        interpolation: How images are resized.
        mean: Mean of each channel, on a scale from 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        channels: Number of channels of the images; with another one than the backbone's, its first convolution is
            adapted (weights summed or repeated), and mean and std are averaged or repeated unless given.
        squash: Whether the whole image is squeezed into a square, rather than its centre cut out.
    """

    size: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    channels: int | None = None
    squash: bool | None = None

    def applied_to(self, spec: InputSpec) -> InputSpec:
        """The spec with these changes.

        Raises:
            UserError: If a number is out of range, or mean or std is not of the images' channels.

        >>> InputConfig(size=112).applied_to(InputSpec()).resize
        128
        """
        given = {key: value for key, value in asdict(self).items() if value is not None}
        channels = given.pop("channels", spec.channels)
        if channels < 1:
            raise UserError(f"`model.input.channels`: must be at least 1, got {channels}")
        for key in ("mean", "std"):
            own = getattr(spec, key)
            if len(given.setdefault(key, _for_channels(own, channels))) != channels:
                raise UserError(
                    f"`model.input.{key}`: `model.input.channels` says {channels} channels, got {given[key]}"
                )
            given[key] = tuple(float(value) for value in given[key])
        if max(given["mean"]) > 1:
            raise UserError(f"`model.input.mean`: is on a scale from 0 to 1, got {list(given['mean'])}; divide by 255")
        if given.get("interpolation", "bilinear") not in get_args(Interpolation):
            raise unknown(
                "interpolation", given["interpolation"], get_args(Interpolation), "`model.input.interpolation`"
            )
        if any(std <= 0 for std in given.get("std", ())):
            raise UserError(f"`model.input.std`: must be above 0, got {list(given['std'])}")
        size = given.get("size", spec.size)
        given.setdefault("resize", round(size * spec.resize / spec.size))
        if not 1 <= size <= given["resize"]:
            raise UserError(f"`model.input.size`: must be between 1 and resize ({given['resize']}), got {size}")
        return replace(spec, **given)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Means or standard deviations for another number of channels: averaged for one, else repeated."""
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))
