"""Input formats of networks: size, interpolation, channels and normalisation, and the resizing of photos to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from lit_ft.backbones.resizing import PadToSquare, ResizeForCentre, ResizeWhole, size_within
from lit_ft.errors import UserError, unknown

Interpolation = Literal["nearest", "bilinear", "bicubic"]

Bands = tuple[int, ...] | Literal["all"]
"""Numbers of the bands that are read of each image, from 1, in their order, or all that it has."""

Views = Literal["flip", "crops"]
"""Views of an image in test-time augmentation: with its mirror image, or the four corners beside the centre."""

Fit = Literal["crop", "pad", "squash"]
"""How a photo becomes a square: its centre is cut out, the rest is padded, or it is squeezed."""


@dataclass(frozen=True)
class InputSpec:
    """What a backbone expects of an image.

    Args:
        size: Height and width of the image that enters the network, in pixels.
        resize: Length of the shorter side, in pixels, before the centre ``size`` x ``size`` is cut out; not with pad.
        interpolation: How images are resized.
        mean: Mean of each channel, on a scale from 0 to 1; their number is the number of channels.
        std: Standard deviation of each channel, on the same scale.
        fit: How a photo becomes a square: ``crop`` cuts its centre out, ``pad`` resizes the longer side to ``size`` and
            pads the rest with the mean colour, ``squash`` resizes both sides to ``resize``.
        bands: The bands that are read of each image as raw values, whose units mean and std then have; null for photos.
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: Fit = "crop"
    bands: Bands | None = None

    @property
    def channels(self) -> int:
        """Number of channels, 3 of colour and 1 of grey images."""
        return len(self.mean)

    def with_channels_of(self, other: InputSpec) -> InputSpec:
        """This spec with the bands of another one, and their mean and deviation."""
        return replace(self, bands=other.bands, mean=other.mean, std=other.std)

    @property
    def padding(self) -> list[float]:
        """The mean of each channel as an image has it: from 0 to 255, or a raw value."""
        return [round(255 * mean) for mean in self.mean] if self.bands is None else list(self.mean)

    @property
    def in_words(self) -> str:
        """How a photo is brought to the size, in words."""
        square, by = f"{self.size} x {self.size}", self.interpolation
        if self.fit == "pad":
            return f"longer side to {self.size}, {by}, padded to {square} with the mean colour"
        if self.fit == "squash":
            return f"whole, squeezed into {self.resize} x {self.resize}, {by}"
        return f"shorter side to {self.resize}, {by}, then the centre {square}"

    @classmethod
    def read(cls, given: InputSpec | Mapping[str, Any] | None) -> InputSpec | None:
        """The spec itself, or that in a checkpoint of any release."""
        if not isinstance(given, Mapping):
            return given
        plain = present_options(given).items()
        options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain}
        return cls(**options)

    def with_fit(self, fit: Fit | None) -> InputSpec:
        """The spec with another fit, if one is given: of what is padded or squashed, the whole enters the network.

        >>> InputSpec().with_fit("squash").resize, InputSpec(fit="squash").with_fit("squash").resize
        (224, 256)
        """
        if fit in (None, self.fit):
            return self
        return replace(self, fit=fit, resize=self.resize if fit == "crop" else self.size)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which a photo is resized, before it is cut or padded.

        >>> InputSpec().resized(375, 500), InputSpec(fit="pad").resized(375, 500)
        ((256, 341), (168, 224))
        """
        if self.fit == "squash":
            return self.resize, self.resize
        if self.fit == "pad":
            return size_within(self.size, height, width)
        short = min(height, width)
        return int(self.resize * height / short), int(self.resize * width / short)

    def geometry(self) -> v2.Transform:
        """The eval transform up to the normalisation: photo ``(C, H, W)`` -> ``(C, size, size)``."""
        mode = InterpolationMode(self.interpolation)
        if self.fit == "pad":
            pad = PadToSquare(self.size, self.padding, self.bands is not None)
            return v2.Compose([ResizeWhole(self.size, mode), pad])
        if self.fit == "squash":
            resize = v2.Resize([self.resize, self.resize], mode, antialias=True)
        else:
            resize = ResizeForCentre(self.resize, self.size, mode)
        return v2.Compose([resize, v2.CenterCrop(self.size)])

    def views(self, kind: Views | None) -> v2.Compose:
        """The views of a photo ``(C, H, W)`` as a list of ``(C, size, size)``, that of the eval transform first.

        Raises:
            UserError: If the kind is unknown, or there are no corners, as the whole image enters the network.
        """
        resize, centre = self.geometry().transforms
        if kind is None:
            return v2.Compose([resize, centre, lambda view: [view]])
        if kind == "flip":
            return v2.Compose([resize, centre, lambda view: [view, view.flip(-1)]])
        if kind != "crops":
            raise unknown("views", str(kind), get_args(Views), "tta")
        if self.fit != "crop" or self.resize == self.size:
            raise UserError("tta: crops are parts of images of which the whole enters this network; give flip")
        return v2.Compose([resize, v2.FiveCrop(self.size), lambda views: [views[-1], *views[:-1]]])

    def seen_part(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Where the square lies that enters the network: top, left, bottom and right, in the photo's pixels.

        A padded one reaches beyond the photo.

        >>> InputSpec(size=100, resize=100).seen_part(200, 400), InputSpec(size=100, fit="pad").seen_part(200, 400)
        ((0.0, 100.0, 200.0, 300.0), (-100.0, 0.0, 300.0, 400.0))
        """
        starts, ends = [], []
        for side, resized in zip((height, width), self.resized(height, width), strict=True):
            over = resized - self.size
            # As `CenterCrop` rounds, and as `PadToSquare` does.
            first = -(-over // 2) if self.fit == "pad" else round(over / 2)
            starts.append(first * side / resized)
            ends.append((first + self.size) * side / resized)
        return starts[0], starts[1], ends[0], ends[1]

    def eval_transform(self) -> v2.Transform:
        """What makes an image of a photo: uint8 or raw ``(C, H, W)`` -> normalised float ``(C, size, size)``."""
        normalise = v2.Normalize(list(self.mean), list(self.std))
        return v2.Compose([self.geometry(), v2.ToDtype(torch.float32, scale=self.bands is None), normalise])

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
        fit: How a photo becomes a square, where the data module does not say it with ``data.fit``: crop cuts the centre
            out, pad resizes the longer side to size and pads the rest with the mean colour, squash squeezes it.
        bands: The bands that are read of each image as raw values, whose units mean and std then have; null takes all
            three from `data.bands` and the training images.
    """

    size: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    channels: int | None = None
    fit: Fit | None = None
    bands: list[int] | Literal["all"] | None = None

    @classmethod
    def read(cls, given: InputConfig | Mapping[str, Any] | None) -> InputConfig:
        """The options themselves, or those of a config or checkpoint of any release."""
        return given if isinstance(given, InputConfig) else cls(**present_options(given or {}))

    def applied_to(self, spec: InputSpec) -> InputSpec:
        """The spec with these changes.

        Raises:
            UserError: If a number is out of range, or mean or std is not of the images' channels.

        >>> InputConfig(size=112).applied_to(InputSpec()).resize
        128
        """
        given = {key: value for key, value in asdict(self).items() if value is not None}
        for key, choices in (("interpolation", get_args(Interpolation)), ("fit", get_args(Fit))):
            if given.get(key, choices[0]) not in choices:
                raise unknown(key, given[key], choices, f"`model.input.{key}`")
        spec = spec.with_fit(given.get("fit"))
        if self.bands is not None:
            given["bands"] = check_bands(self.bands, "`model.input.bands`")
            if self.mean is None or self.std is None:
                advice = "which are in the units of the files; or give `data.bands` alone, by which they are computed"
                raise UserError(f"`model.input.bands`: needs `model.input.mean` and `model.input.std`, {advice}")
            given.setdefault("channels", len(self.mean if self.bands == "all" else self.bands))
        self._settle_channels(given, spec)
        size = given.get("size", spec.size)
        given.setdefault("resize", round(size * spec.resize / spec.size))
        if not 1 <= size <= given["resize"]:
            raise UserError(f"`model.input.size`: must be between 1 and resize ({given['resize']}), got {size}")
        if spec.fit == "pad" and given["resize"] != size:
            raise UserError(
                f"`model.input.resize`: {given['resize']}, but with the fit pad the longer side is resized to "
                f"`model.input.size`, {size}; leave it out"
            )
        return replace(spec, **given)

    def _settle_channels(self, given: dict[str, Any], spec: InputSpec) -> None:
        """Completes mean and deviation for the channels, in place, and checks them."""
        channels = given.pop("channels", spec.channels)
        if channels < 1:
            raise UserError(f"`model.input.channels`: must be at least 1, got {channels}")
        for key in ("mean", "std"):
            own = getattr(spec, key)
            own = [sum(own) / len(own)] if channels == 1 else [*islice(cycle(own), channels)]
            if len(given.setdefault(key, own)) != channels:
                raise UserError(
                    f"`model.input.{key}`: `model.input.channels` says {channels} channels, got {given[key]}"
                )
            given[key] = tuple(float(value) for value in given[key])
        if max(given["mean"]) > 1 and "bands" not in given:
            raise UserError(f"`model.input.mean`: is on a scale from 0 to 1, got {list(given['mean'])}; divide by 255")
        if any(std <= 0 for std in given["std"]):
            raise UserError(f"`model.input.std`: must be above 0, got {list(given['std'])}")

    def refuse_fit(self, fit: Fit | None, option: str, is_fitted: bool = False) -> None:
        """Raises `UserError` if these, or a model that is fitted, say something else than an option of the data."""
        if fit is not None and self.fit not in (None, fit):
            if is_fitted:
                raise UserError(f"`{option}`: {fit}, but the model was fitted with {self.fit}; leave it out")
            raise UserError(f"`{option}`: {fit}, but `model.input.fit` is {self.fit}; leave one of them out")
        if self.fit is None and fit in ("pad", "squash") and self.resize not in (None, self.size):
            raise UserError(
                f"`model.input.resize`: {self.resize}, but with `{option}` {fit} the whole photo is resized to "
                "`model.input.size`; leave it out"
            )


def check_bands(bands: Sequence[int] | str, key: str) -> Bands:
    """Bands that an option, ``key``, names; raises `UserError` where they can be none.

    >>> check_bands([4, 3, 2], "`data.bands`")
    (4, 3, 2)
    """
    if bands == "all":
        return "all"
    if isinstance(bands, str) or not bands or any(type(number) is not int or number < 1 for number in bands):
        raise UserError(f"{key}: must be numbers of bands, from 1, such as [4, 3, 2], or all; got {bands!r}")
    return cast(tuple[int, ...], tuple(bands))


def present_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of images by their present names: those of the first release had ``squash``, true or false, for ``fit``.

    >>> present_options({"size": 112, "squash": True}), present_options({"squash": None})
    ({'size': 112, 'fit': 'squash'}, {})
    """
    options = dict(given)
    if (squash := options.pop("squash", None)) is not None:
        options["fit"] = "squash" if squash else "crop"
    return options
