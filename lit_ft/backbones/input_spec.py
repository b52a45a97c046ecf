"""Input formats of networks: size, interpolation, channels and normalisation, and the resizing of photos to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from lit_ft.errors import UserError, unknown

Interpolation = Literal["nearest", "bilinear", "bicubic"]

Bands = tuple[int, ...] | Literal["all"]
"""Numbers of the bands that are read of each image, from 1, in their order, or all that it has."""

Views = Literal["flip", "crops"]
"""Views of an image in test-time augmentation: with its mirror image, or the four corners beside the centre."""

# How many times as long as wide an image is whose ends are not resized. To resize the whole of 20,000 x 1 pixels, the
# shorter side to 256, takes gigabytes; up to here, it takes 256 x 256 x 32 pixels.
_LONG = 32


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
        bands: The bands that are read of each image as raw values, whose units mean and std then have; null for photos.
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    squash: bool = False
    bands: Bands | None = None

    @property
    def channels(self) -> int:
        """Number of channels, 3 of colour and 1 of grey images."""
        return len(self.mean)

    def with_channels_of(self, other: InputSpec) -> InputSpec:
        """This spec with the bands of another one, and their mean and deviation."""
        return replace(self, bands=other.bands, mean=other.mean, std=other.std)

    def geometry(self) -> v2.Transform:
        """The eval transform up to the normalisation: photo ``(C, H, W)`` -> ``(C, size, size)``."""
        mode = InterpolationMode(self.interpolation)
        if self.squash:
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
        if self.squash or self.resize == self.size:
            raise UserError("tta: crops are parts of images of which the whole enters this network; give flip")
        return v2.Compose([resize, v2.FiveCrop(self.size), lambda views: [views[-1], *views[:-1]]])

    def seen_part(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of a photo that the eval transform keeps: top, left, bottom and right, in the photo's pixels.

        >>> InputSpec(size=100, resize=100).seen_part(200, 400)
        (0.0, 100.0, 200.0, 300.0)
        """
        starts, ends = [], []
        for side in (height, width):
            is_short = side == min(height, width)
            resized = self.resize if self.squash or is_short else int(self.resize * side / min(height, width))
            first = round((resized - self.size) / 2)  # as `CenterCrop` rounds
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
        squash: Whether the whole image is squeezed into a square, rather than its centre cut out.
        bands: The bands that are read of each image as raw values, whose units mean and std then have; null takes all
            three from `data.bands` and the training images.
    """

    size: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    channels: int | None = None
    squash: bool | None = None
    bands: list[int] | Literal["all"] | None = None

    def applied_to(self, spec: InputSpec) -> InputSpec:
        """The spec with these changes.

        Raises:
            UserError: If a number is out of range, or mean or std is not of the images' channels.

        >>> InputConfig(size=112).applied_to(InputSpec()).resize
        128
        """
        given = {key: value for key, value in asdict(self).items() if value is not None}
        if self.bands is not None:
            given["bands"] = check_bands(self.bands, "`model.input.bands`")
            if self.mean is None or self.std is None:
                advice = "which are in the units of the files; or give `data.bands` alone, by which they are computed"
                raise UserError(f"`model.input.bands`: needs `model.input.mean` and `model.input.std`, {advice}")
            given.setdefault("channels", len(self.mean if self.bands == "all" else self.bands))
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
        choices = get_args(Interpolation)
        if given.get("interpolation", "bilinear") not in choices:
            raise unknown("interpolation", given["interpolation"], choices, "`model.input.interpolation`")
        if any(std <= 0 for std in given["std"]):
            raise UserError(f"`model.input.std`: must be above 0, got {list(given['std'])}")
        size = given.get("size", spec.size)
        given.setdefault("resize", round(size * spec.resize / spec.size))
        if not 1 <= size <= given["resize"]:
            raise UserError(f"`model.input.size`: must be between 1 and resize ({given['resize']}), got {size}")
        return replace(spec, **given)


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


class ResizeForCentre(v2.Resize):  # type: ignore[misc]
    """`Resize` of the shorter side before a `CenterCrop`; of a long image that is enlarged it gives that crop at once.

    A long image that is made smaller is resized as a whole: it takes less memory than it did before.

    Args:
        side: Length of the shorter side that is asked for, in pixels.
        crop: Side of the square that will be cut out, in pixels.
        interpolation: How images are resized.
    """

    def __init__(self, side: int, crop: int, interpolation: InterpolationMode) -> None:
        super().__init__([side], interpolation, antialias=True)
        self.crop = crop

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes an image, uint8 or float ``(C, H, W)`` or of Pillow."""
        height, width = F.get_size(inpt)
        short, long = sorted((height, width))
        side = self.size[0]
        if long <= _LONG * short or short >= side or self.crop > side:
            return super().transform(inpt, params)
        far = int(side * long / short)
        whole = (side, far) if height < width else (far, side)
        # As `CenterCrop` rounds.
        first = [round((length - self.crop) / 2) for length in whole]
        if isinstance(inpt, Image.Image):
            return self._cut(inpt, whole, first)
        if self.interpolation == InterpolationMode.NEAREST:
            picked = [
                (torch.arange(start, start + self.crop, dtype=torch.float32) * (before / after)).long()
                for start, before, after in zip(first, (height, width), whole, strict=True)
            ]
            return inpt[..., picked[0][:, None], picked[1]]
        planes = [Image.fromarray(plane.numpy()) for plane in inpt.reshape(-1, height, width).cpu()]
        cut = [torch.from_numpy(np.array(self._cut(plane, whole, first))) for plane in planes]
        return torch.stack(cut).reshape(*inpt.shape[:-2], self.crop, self.crop).to(inpt.device)

    def _cut(self, image: Image.Image, whole: tuple[int, int], first: list[int]) -> Image.Image:
        """The pixels of the square that are found ``first`` rows and columns within the image, resized as a whole."""
        scale = (image.height / whole[0], image.width / whole[1])
        top, left = (start * ratio for start, ratio in zip(first, scale, strict=True))
        bottom, right = ((start + self.crop) * ratio for start, ratio in zip(first, scale, strict=True))
        return image.resize(
            (self.crop, self.crop), Image.Resampling[self.interpolation.name], (left, top, right, bottom)
        )
