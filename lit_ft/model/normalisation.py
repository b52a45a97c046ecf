"""Input normalisation: channels, float values, mean and deviation, and memory format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import rgb_to_grayscale

from lit_ft.errors import UserError


class Normalise(nn.Module):
    """Makes what the network takes of images.

    Args:
        mean: Mean of each channel, on a scale from 0 to 1; their number is the number of channels.
        std: Standard deviation of each channel, on the same scale.
        memory_format: The memory format in which it is fastest.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], memory_format: torch.memory_format) -> None:
        super().__init__()
        self.channels = len(mean)
        self.memory_format = memory_format
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)``, uint8, or float that is taken as normalised -> normalised.

        Raises:
            UserError: If they have channels that the network does not take.
        """
        if images.shape[1] != self.channels:
            if images.shape[1] == 1:
                images = images.expand(-1, self.channels, -1, -1)
            elif self.channels == 1:
                images = rgb_to_grayscale(images)
            else:
                raise UserError(
                    f"`model.input.channels`: the model takes images of {self.channels} channels, but the data gives "
                    f"{images.shape[1]}"
                )
        if images.dtype == torch.uint8:
            # In place: each further tensor of floats costs as much time as the arithmetic.
            images = images.to(self.mean.dtype).sub_(self.mean).div_(self.std)
        else:  # NumPy's floats are float64
            images = images.to(self.mean.dtype)
        return images.contiguous(memory_format=self.memory_format)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, C, H, W)`` as uint8 again."""
        return (images * self.std + self.mean).round().clamp(0, 255).to(torch.uint8)
