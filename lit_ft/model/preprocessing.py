"""Images on the device: normalised, and those of a training batch erased and mixed, with the targets that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import rgb_to_grayscale

from lit_ft.backbones.backbone import StageOutput
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.bands.preview import stretch
from lit_ft.errors import UserError

# Of Zhong et al., Random Erasing Data Augmentation (https://arxiv.org/abs/1708.04896), as torchvision has them.
AREA = (0.02, 0.33)
ASPECT = (0.3, 3.3)
ATTEMPTS = 10


class Normalise(nn.Module):
    """Makes what the network takes of images.

    Args:
        mean: Mean of each channel, on a scale from 0 to 1; their number is the number of channels.
        std: Standard deviation of each channel, on the same scale.
        memory_format: The memory format in which the network is fastest.
        is_raw: Whether images are raw values of bands, in whose units mean and deviation are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        memory_format: torch.memory_format,
        is_raw: bool = False,
    ) -> None:
        super().__init__()
        self.channels = len(mean)
        self.memory_format = memory_format
        self.is_raw = is_raw
        scale = 1 if is_raw else 255
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * scale, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * scale, persistent=False)

    @classmethod
    def of(cls, spec: InputSpec, memory_format: torch.memory_format) -> Normalise:
        """What makes the images of a spec of photos or raw values."""
        return cls(spec.mean, spec.std, memory_format, spec.bands is not None)

    @property
    def file_channels(self) -> int:
        """Number of channels of an image that comes from a file: photos have three, also where grey ones are taken."""
        return 3 if self.channels == 1 and not self.is_raw else self.channels

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)``, uint8, or float that is taken as normalised, unless raw -> normalised.

        Raises:
            UserError: If they have channels that the network does not take.
        """
        images = self.fit_channels(images)
        if self.is_raw:
            images = images.to(self.mean.dtype).sub(self.mean).div_(self.std)
        elif images.dtype == torch.uint8:
            # In place: each further tensor of floats costs as much time as the arithmetic.
            images = images.to(self.mean.dtype).sub_(self.mean).div_(self.std)
        else:  # NumPy's floats are float64
            images = images.to(self.mean.dtype)
        return images.contiguous(memory_format=self.memory_format)

    def fit_channels(self, images: Tensor) -> Tensor:
        """Images ``(..., C, H, W)`` with as many channels as the network takes.

        Raises:
            UserError: If that cannot be.
        """
        channels = images.shape[-3]
        if channels == self.channels:
            return images
        if channels == 1 and not self.is_raw:
            return images.expand(*images.shape[:-3], self.channels, -1, -1)
        if self.channels == 1 and not self.is_raw:
            grey: Tensor = rgb_to_grayscale(images)
            return grey
        raise UserError(
            f"`model.input.channels`: the model takes images of {self.channels} channels, but the data gives {channels}"
        )

    def pixels(self, images: Tensor | StageOutput) -> Tensor:
        """Images ``(B, C, H, W)``, normalised or not, as uint8 again; raw values as pictures."""
        images = images.values if isinstance(images, StageOutput) else images
        if self.is_raw:
            return stretch(images)
        if images.dtype == torch.uint8:
            return images
        return (images * self.std + self.mean).round().clamp(0, 255).to(torch.uint8)


@dataclass
class MixConfig:
    """What is done to the images of a training batch on the device; where two kinds of mixing are on, one at random.

    Args:
        mixup: Alpha of the Beta distribution of the shares of two images that are laid over each other; 0 is off.
        cutmix: Likewise of the share of an image that stays where a rectangle of another is put into it; 0 is off.
        erase: Probability with which a rectangle of an image, each its own, becomes the mean colour; 0 is off.

    Raises:
        UserError: If a number is out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for key in ("mixup", "cutmix"):
            if not 0.0 <= (alpha := getattr(self, key)) < math.inf:
                raise UserError(f"`model.mix.{key}`: must be a number that is at least 0, got {alpha}")
        if not 0.0 <= self.erase <= 1.0:
            raise UserError(f"`model.mix.erase`: must be at least 0 and at most 1, got {self.erase}")


class BatchMix:
    """Erases and mixes a training batch, in this order, as torchvision's and timm's own trainings do.

    Mixup is `Zhang et al. 2018 <https://arxiv.org/abs/1710.09412>`_ and cutmix `Yun et al. 2019
    <https://arxiv.org/abs/1905.04899>`_, both by torchvision. All random numbers come from torch's generator on the
    CPU, so that they are the same on every kind of device.
    """

    def __init__(self, config: MixConfig, task: str, num_outputs: int) -> None:
        self._erase = config.erase
        self._num_outputs = num_outputs
        self._are_numbers = task == "regression"
        kinds = {v2.MixUp: config.mixup, v2.CutMix: config.cutmix}
        mixes = [kind(alpha=float(alpha), num_classes=num_outputs) for kind, alpha in kinds.items() if alpha]
        self._mix = v2.RandomChoice(mixes) if len(mixes) > 1 else next(iter(mixes), None)

    @property
    def is_on(self) -> bool:
        """Whether it does anything."""
        return self._erase > 0 or self._mix is not None

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # numbers drawn on the CPU would break the graph
    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Erases, then mixes each normalised image ``(B, C, H, W)`` with the one before it in the batch.

        Targets are class indices ``(B,)``, or ``(B, K)`` of labels, probabilities or numbers, and for mixed images
        come back as floats ``(B, K)``.
        """
        if self._erase:
            images = erase(images, self._erase)
        if self._mix is not None:
            if self._are_numbers:
                targets = targets.reshape(len(targets), self._num_outputs)
            images, targets = self._mix(images, targets)
        return images, targets


def erase(images: Tensor, probability: float) -> Tensor:
    """Sets a rectangle of its own in some images ``(B, C, H, W)`` to 0, which is the mean after normalisation."""
    num, _, height, width = images.shape
    corners = draw_rectangles(num, height, width) * (torch.rand(num) < probability)
    # Without a wait for the step before; on MPS the numbers could be gone before they are read.
    top, left, bottom, right = corners.to(images.device, non_blocking=images.device.type != "mps").unsqueeze(-1)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def draw_rectangles(num: int, height: int, width: int) -> Tensor:
    """Draws a rectangle for each of so many images, as torchvision's ``RandomErasing`` draws one.

    Its share of the area is uniform, its aspect (height by width) uniform in the logarithm, and its place uniform among
    those within the image. Where none of `ATTEMPTS` shapes is smaller than the image, it is empty. Returned are top,
    left, bottom and right, the last two outside, as int64 ``(4, num)``.
    """
    area = height * width * torch.empty(ATTEMPTS, num).uniform_(*AREA)
    aspect = torch.empty(ATTEMPTS, num).uniform_(math.log(ASPECT[0]), math.log(ASPECT[1])).exp()
    sides = torch.stack([area.mul(aspect), area.div(aspect)]).sqrt().round()
    image = torch.tensor([height, width])[:, None]
    fits = (sides < image[:, None]).all(dim=0)
    first = fits.int().argmax(dim=0)
    size = sides[:, first, torch.arange(num)] * fits.any(dim=0)
    start = (torch.rand(2, num) * (image - size + 1)).floor()
    return torch.cat([start, start + size]).long()
