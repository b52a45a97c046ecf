"""The network with everything around it: from the pixels of photos to probabilities or numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lit_ft.data.loading.photo_source import transform_seeded
from lit_ft.export.description import Outputs
from lit_ft.export.geometry import CentreResize
from lit_ft.model.module import FineTuneModule

_GREY = (0.2989, 0.587, 0.114)
"""The shares of red, green and blue in a grey pixel, of torchvision's ``rgb_to_grayscale`` (ITU-R BT.601)."""


class InferenceModel(nn.Module):
    """A fine-tuned network with its eval transform before it and the probabilities of its task behind it.

    A network of grey images takes photos in colour, too, as `FineTuneModule.predict` does.

    Args:
        module: The model, in eval mode, on the CPU.
        network: From normalised images to logits; where it is not the whole backbone and head.
    """

    mean: Tensor
    std: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, module: FineTuneModule, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network or nn.Sequential(module.backbone, module.head)
        self.geometry = CentreResize(module.input_spec)
        self.task = module.task.name
        self.is_grey = module.normalise.channels == 1
        self.channels = 3 if self.is_grey else module.normalise.channels
        units = module.task.standardisation
        numbers = {"offset": units.mean if units else 0.0, "scale": units.scale if units else 1.0}
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        self.register_buffer("mean", module.normalise.mean.clone())
        self.register_buffer("std", module.normalise.std.clone())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images, uint8 ``(B, H, W, C)`` -> probabilities, float32, or numbers in their units, float64, ``(B, K)``."""
        pixels = self.geometry(images)
        if self.is_grey:
            red, green, blue = (pixels[:, i : i + 1] * share for i, share in enumerate(_GREY))
            pixels = torch.floor(red + green + blue)
        logits = self.network((pixels - self.mean) / self.std)
        if self.task == "multiclass":
            return torch.softmax(logits, dim=1)
        return torch.sigmoid(logits) if self.task == "multilabel" else logits.double() * self.scale + self.offset


def predict_pixels(module: FineTuneModule, images: Sequence[Tensor], network: nn.Module | None = None) -> Outputs:
    """What a model makes of images, each uint8 ``(C, H, W)``, by the transform of a validation: ``(N, K)``.

    Args:
        module: The model, in eval mode.
        images: Their pixels.
        network: From normalised images to logits; where it is not the whole backbone and head.
    """
    spec, found = module.input_spec.geometry(), []
    with torch.inference_mode():
        for image in images:
            pixels = module.normalise.fit_channels(transform_seeded(spec, image, 0, "an image")).unsqueeze(0)
            logits = module(pixels) if network is None else network(module.normalise(pixels))
            found.append(module.task.predict(logits)[0].cpu().numpy())
    return cast(Outputs, np.stack(found))
