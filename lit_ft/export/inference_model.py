"""The network with everything around it: from the pixels of photos to probabilities or numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.loading.photo_source import transform_seeded
from lit_ft.errors import UserError
from lit_ft.export.description import FileOutputs
from lit_ft.export.geometry import SquareResize
from lit_ft.model.calibration import Calibration, distances_to_nearest
from lit_ft.model.image_model import ImageModel

_GREY = (0.2989, 0.587, 0.114)
"""The shares of red, green and blue in a grey pixel, of torchvision's ``rgb_to_grayscale`` (ITU-R BT.601)."""

# By how many levels of 255 the file's resizing may be away from torch's: CPUs without AVX2 round once, not twice.
_ROUNDINGS = {"nearest": 0, "bilinear": 1, "bicubic": 2}


_APART = 1e-3
"""By how many standard deviations of a band the same may differ of raw values."""


@dataclass(frozen=True)
class NetworkParts:
    """A network in its parts, and what is known of its predictions.

    Args:
        body: Normalised images -> features ``(B, D)``.
        head: Features -> logits ``(B, K)``; its last layer gives these.
        calibration: What validation images tell of its predictions, if anything.
    """

    body: nn.Module
    head: nn.Sequential
    calibration: Calibration

    @classmethod
    def of(cls, module: ImageModel) -> NetworkParts:
        """The parts of a whole model."""
        return cls(module.backbone, module.head, module.calibration or Calibration())

    @property
    def references(self) -> Tensor | None:
        """The features ``(M, D)`` that those of images are compared with, where it is known what is far from them."""
        return None if self.calibration.farthest is None else self.calibration.references


class Preprocessing(nn.Module):
    """The eval transform: images, uint8 or raw ``(B, H, W, C)`` -> normalised ``(B, C, size, size)``.

    For a network of grey images it takes photos in colour, as `ImageModel.predict` does.

    Args:
        module: The model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: ImageModel) -> None:
        super().__init__()
        self.geometry = SquareResize(module.input_spec)
        self.is_grey = module.normalise.channels == 1 and not module.normalise.is_raw
        self.register_buffer("mean", module.normalise.mean.clone())
        self.register_buffer("std", module.normalise.std.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Resizes, crops and normalises images."""
        pixels = self.geometry(images)
        if self.is_grey:
            red, green, blue = (pixels[:, i : i + 1] * share for i, share in enumerate(_GREY))
            pixels = torch.floor(red + green + blue)
        return cast(Tensor, (pixels - self.mean) / self.std)


class NearestDistance(nn.Module):
    """`distances_to_nearest`, as operations that all runtimes have: features ``(B, D)`` -> distances ``(B,)``.

    Args:
        references: What they are compared with, ``(M, D)``; kept in the precision that it has.
    """

    references: Tensor

    def __init__(self, references: Tensor) -> None:
        super().__init__()
        self.register_buffer("references", references.clone())

    def forward(self, features: Tensor) -> Tensor:
        """The distance of each from the nearest reference, all of length 1."""
        features, references = (F.normalize(one.float(), dim=1) for one in (features, self.references))
        # The nearest by a product of matrices, and its distance by a difference, which is exact near 0, too.
        nearest = torch.matmul(features, references.T).argmax(dim=1)
        return cast(Tensor, torch.linalg.vector_norm(features - references.index_select(0, nearest), dim=1))


class OutputLayer(nn.Module):
    """The last layer of a head, and the probabilities or numbers of the task: hidden ``(B, H)`` -> outputs ``(B, K)``.

    Args:
        layer: From what is hidden to logits.
        module: The model.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Module, module: ImageModel) -> None:
        super().__init__()
        self.layer, self.task, units = layer, module.task.name, module.task.standardisation
        numbers = {"offset": units.mean if units else 0.0, "scale": units.scale if units else 1.0}
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    def forward(self, hidden: Tensor) -> Tensor:
        """Probabilities, float32, or numbers in their units, float64."""
        logits: Tensor = self.layer(hidden)
        if self.task == "multiclass":
            return torch.softmax(logits, dim=1)
        return torch.sigmoid(logits) if self.task == "multilabel" else logits.double() * self.scale + self.offset


class InferenceModel(nn.Module):
    """A fine-tuned network with its eval transform before it and the probabilities of its task behind it.

    Args:
        module: The model, in eval mode, on the CPU.
        parts: The network; where it is not the whole backbone and head.
    """

    def __init__(self, module: ImageModel, parts: NetworkParts | None = None) -> None:
        super().__init__()
        parts = parts or NetworkParts.of(module)
        self.preprocessing = Preprocessing(module)
        self.body, self.hidden = parts.body, parts.head[:-1]
        self.output = OutputLayer(parts.head[-1], module)
        self.distance = None if parts.references is None else NearestDistance(parts.references)
        self.channels, self.is_raw = module.normalise.file_channels, module.normalise.is_raw
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images, uint8 or raw ``(B, H, W, C)`` -> outputs ``(B, K)``, and distances ``(B,)`` where known."""
        features = self.body(self.preprocessing(images))
        outputs = self.output(self.hidden(features))
        return (outputs,) if self.distance is None else (outputs, self.distance(features))


def resize_by_torch(spec: InputSpec, image: Tensor) -> Tensor:
    """An image, uint8 or raw ``(C, H, W)``, resized and cropped as in a validation on this machine."""
    return transform_seeded(spec.geometry(), image, 0, "an image")


def resize_by_file(spec: InputSpec, image: Tensor) -> Tensor:
    """The same by the operations that are in a file, where torch's result is at most a rounding away.

    Raises:
        UserError: If it is further away.
    """
    made: Tensor = SquareResize(spec)(image.permute(1, 2, 0).unsqueeze(0))[0]
    wanted = resize_by_torch(spec, image)
    if spec.bands is not None:
        apart = float(((made - wanted).abs().amax((1, 2)) / torch.tensor(spec.std)).max())
        if not apart <= _APART:
            raise UserError(
                f"nothing was written: the file resizes images by {apart:.2g} deviations otherwise than the model"
            )
        return made
    made = made.to(torch.uint8)
    away = int((made.int() - wanted.int()).abs().max())
    if away > _ROUNDINGS[spec.interpolation]:
        raise UserError(
            f"nothing was written: the file resizes images by {away} levels of 255 otherwise than the model"
        )
    return made


def predict_pixels(
    module: ImageModel,
    images: Sequence[Tensor],
    parts: NetworkParts | None = None,
    resize: Callable[[InputSpec, Tensor], Tensor] = resize_by_torch,
) -> FileOutputs:
    """What a model makes of images, each uint8 or raw ``(C, H, W)``.

    Args:
        module: The model, in eval mode.
        images: Their pixels.
        parts: The network; where it is not the whole backbone and head.
        resize: How they are brought to the size of the network.
    """
    found, apart, parts = [], [], parts or NetworkParts.of(module)
    with torch.inference_mode():
        for image in images:
            pixels = module.normalise.fit_channels(resize(module.input_spec, image)).unsqueeze(0)
            features = parts.body(module.normalise(pixels))
            found.append(module.task.predict(parts.head(features)).numpy())
            if parts.references is not None:
                apart.append(distances_to_nearest(features, parts.references).numpy())
    return FileOutputs(np.concatenate(found), np.concatenate(apart) if apart else None)
