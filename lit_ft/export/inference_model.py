"""The network with everything around it: from the pixels of photos to probabilities or numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.loading.photo_source import transform_seeded
from lit_ft.errors import UserError
from lit_ft.export.description import OutputArray
from lit_ft.export.geometry import CentreResize
from lit_ft.model.module import FineTuneModule

_GREY = (0.2989, 0.587, 0.114)
"""The shares of red, green and blue in a grey pixel, of torchvision's ``rgb_to_grayscale`` (ITU-R BT.601)."""

# By how many levels of 255 the file's resizing may be away from torch's: CPUs without AVX2 round once, not twice.
_ROUNDINGS = {"nearest": 0, "bilinear": 1, "bicubic": 2}


class Preprocessing(nn.Module):
    """The eval transform: images, uint8 ``(B, H, W, C)`` -> normalised ``(B, C, size, size)``.

    For a network of grey images it takes photos in colour, as `FineTuneModule.predict` does.

    Args:
        module: The model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: FineTuneModule) -> None:
        super().__init__()
        self.geometry = CentreResize(module.input_spec)
        self.is_grey = module.normalise.channels == 1
        self.register_buffer("mean", module.normalise.mean.clone())
        self.register_buffer("std", module.normalise.std.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Resizes, crops and normalises images."""
        pixels = self.geometry(images)
        if self.is_grey:
            red, green, blue = (pixels[:, i : i + 1] * share for i, share in enumerate(_GREY))
            pixels = torch.floor(red + green + blue)
        return cast(Tensor, (pixels - self.mean) / self.std)


class InferenceModel(nn.Module):
    """A fine-tuned network with its eval transform before it and the probabilities of its task behind it.

    Args:
        module: The model, in eval mode, on the CPU.
        network: From normalised images to logits; where it is not the whole backbone and head.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, module: FineTuneModule, network: nn.Module | None = None) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(module)
        self.network = network or nn.Sequential(module.backbone, module.head)
        self.task = module.task.name
        self.channels = 3 if module.normalise.channels == 1 else module.normalise.channels
        units = module.task.standardisation
        numbers = {"offset": units.mean if units else 0.0, "scale": units.scale if units else 1.0}
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images, uint8 ``(B, H, W, C)`` -> probabilities, float32, or numbers in their units, float64, ``(B, K)``."""
        logits = self.network(self.preprocessing(images))
        if self.task == "multiclass":
            return torch.softmax(logits, dim=1)
        return torch.sigmoid(logits) if self.task == "multilabel" else logits.double() * self.scale + self.offset


def resize_by_torch(spec: InputSpec, image: Tensor) -> Tensor:
    """An image, uint8 ``(C, H, W)``, resized and cropped as in a validation on this machine."""
    return transform_seeded(spec.geometry(), image, 0, "an image")


def resize_by_file(spec: InputSpec, image: Tensor) -> Tensor:
    """The same by the operations that are in a file, where torch's result is at most a rounding away.

    Raises:
        UserError: If it is further away.
    """
    made: Tensor = CentreResize(spec)(image.permute(1, 2, 0).unsqueeze(0))[0].to(torch.uint8)
    away = int((made.int() - resize_by_torch(spec, image).int()).abs().max())
    if away > _ROUNDINGS[spec.interpolation]:
        raise UserError(
            f"nothing was written: the file resizes images by {away} levels of 255 otherwise than the model"
        )
    return made


def predict_pixels(
    module: FineTuneModule,
    images: Sequence[Tensor],
    network: nn.Module | None = None,
    resize: Callable[[InputSpec, Tensor], Tensor] = resize_by_torch,
) -> OutputArray:
    """What a model makes of images, each uint8 ``(C, H, W)``: ``(N, K)``.

    Args:
        module: The model, in eval mode.
        images: Their pixels.
        network: From normalised images to logits; where it is not the whole backbone and head.
        resize: How they are brought to the size of the network.
    """
    found = []
    with torch.inference_mode():
        for image in images:
            pixels = module.normalise.fit_channels(resize(module.input_spec, image)).unsqueeze(0)
            logits = module(pixels) if network is None else network(module.normalise(pixels))
            found.append(module.task.predict(logits)[0].cpu().numpy())
    return cast(OutputArray, np.stack(found))
