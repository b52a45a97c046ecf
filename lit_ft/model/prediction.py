"""Predictions from Python: of pictures of any kind, with class names and probabilities."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import IOBase
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lit_ft.backbones.input_spec import Views
from lit_ft.data.bands.reader import BandReader
from lit_ft.data.files.image_index import find_images_to_predict
from lit_ft.data.images.decode import decode, to_pixels
from lit_ft.data.images.loss import REDUCED, is_deep, note_loss
from lit_ft.data.loading.photo_source import transform_seeded
from lit_ft.errors import UserError
from lit_ft.model.calibration import Calibration
from lit_ft.model.first_batch import check_images
from lit_ft.rank_zero import rank_zero_warn

Picture = str | Path | Image.Image | NDArray[Any] | Tensor
"""An image file or a folder of these, or the pixels of an image: of Pillow, as an array or as a tensor."""


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for an image.

    Args:
        label: For ``multiclass``, the most probable class; else empty.
        probability: Its probability; for the other tasks nan.
        top_k: Classes or labels with their probabilities, the most probable first; empty for ``regression``.
        labels: For ``multilabel``, the labels whose probability is above one half.
        values: For ``regression``, each number in the units of the training targets, by name.
        path: The image file; empty where pixels were given.
        label_set: For ``multiclass``, the classes among which the true one is with a probability of 90%, the most
            probable first, which is always one of them.
        unsure: Whether several classes are that probable, or none is, or the most probable one has less than one half;
            None where it is not known, as the checkpoint is of a fit that was not calibrated, of few validation images,
            or of another task.
        unlike_training: Whether the image is unlike those of the validation; None where it is not known.
    """

    label: str = ""
    probability: float = float("nan")
    top_k: list[tuple[str, float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    path: str = ""
    label_set: list[str] = field(default_factory=list)
    unsure: bool | None = None
    unlike_training: bool | None = None


class Predictor(nn.Module):
    """Predicts pictures by their names, arrays or tensors; the base of an `ImageModel`."""

    calibration: Calibration | None = None
    """What a fine-tuning found out about its predictions, on validation images; None of a model that trains on."""

    def predict(
        self,
        pictures: Picture | Iterable[Picture],
        top_k: int = 1,
        batch_size: int = 32,
        tta: Views | None = None,
    ) -> list[Prediction]:
        """Predicts images, in their order, resized and cropped as in validation.

        Args:
            pictures: A file, a folder (all images below it, by name), an image of Pillow, an array ``(H, W)`` or
                ``(H, W, C)``, a tensor ``(C, H, W)``, a batch of one of these, or any number of all of these. Files and
                images of Pillow are turned as their EXIF data says. Pixels are uint8, or float from 0 to 1. Of four
                channels the last is transparency, unless the network takes four. A model of raw values takes them as
                they are, with all bands that a file has; an array may then be ``(C, H, W)``, too.
            top_k: The number of classes or labels to list.
            batch_size: The number of images that pass the network at once.
            tta: Test-time augmentation, the mean of several views of an image: with its mirror image (flip), or with
                its four corners (crops).

        Raises:
            UserError: If an image cannot be read, or its pixels are out of range.

        Example:
            >>> import lit_ft
            >>> model = lit_ft.load("best.ckpt")  # doctest: +SKIP
            >>> [found.label for found in model.predict("PHOTOS")]  # doctest: +SKIP
        """
        return self.predict_images(self.read(pictures), top_k, batch_size, tta)

    @property
    def reader(self) -> BandReader | None:
        """What reads raw values of bands from files; nothing of a model of photos."""
        return BandReader.of(cast(Any, self).input_spec)

    def read(self, pictures: Picture | Iterable[Picture]) -> Iterator[tuple[str, Tensor]]:
        """The path of each picture, empty where there is none, and its pixels; see `read_pictures`."""
        return read_pictures(pictures, cast(Any, self).normalise.channels, self.reader)

    def predict_images(
        self, images: Iterable[tuple[str, Tensor]], top_k: int = 1, batch_size: int = 32, tta: Views | None = None
    ) -> list[Prediction]:
        """Predicts images as `read` gives them; see `predict`."""
        check_positive(top_k=top_k, batch_size=batch_size)
        module = cast(Any, self)
        look, was_training = module.input_spec.views(tta), module.training
        normalise, left, found = module.normalise, iter(images), list[Prediction]()
        module.eval()
        try:
            with torch.inference_mode():
                while batch := list(islice(left, batch_size)):
                    views = [transform_seeded(look, image, 0, name or "an image") for name, image in batch]
                    pixels = [normalise.fit_channels(image) for of_one in views for image in of_one]  # to be stacked
                    predicted = self._judge(torch.stack(pixels).to(module.device), len(views[0]))
                    columns = {name: values.cpu() for name, values in predicted.items()}
                    found += self.format_predictions(columns, [name for name, _ in batch], top_k)
        finally:
            module.train(was_training)
        return found

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Predictions for a batch of images, or of images and their indices ``(B,)``.

        Returns:
            ``answers`` ``(B, K)``; ``unsure`` and ``unlike_training`` ``(B,)``, where that is known; and the indices.
        """
        images, *indices = batch if isinstance(batch, (tuple, list)) else (batch,)
        if batch_idx == 0:
            check_images(images, "predict", cast(Any, self).normalise)
        predictions = self._judge(images)
        return {**predictions, "indices": indices[0]} if indices else predictions

    def _judge(self, images: Tensor, num_views: int = 1) -> dict[str, Tensor]:
        """What is predicted for images of which so many views follow each other; by features of the first of these."""
        module, known = cast(Any, self), self.calibration or Calibration()
        with head_inputs(module.head) as features:
            answers = module.task.predict(module(images)).unflatten(0, (-1, num_views)).mean(dim=1)
        judged = {"answers": answers}
        if (unsure := known.are_unsure(answers)) is not None:
            judged["unsure"] = unsure
        if features and (unlike := known.are_unlike(features[0][::num_views])) is not None:
            judged["unlike_training"] = unlike
        return judged

    def format_predictions(
        self, columns: Mapping[str, Tensor], paths: Sequence[str], top_k: int
    ) -> Iterator[Prediction]:
        """The predictions of images, by the columns of `predict_step` without their indices."""
        module, known = cast(Any, self), self.calibration or Calibration()
        names, task = module.class_names, module.task.name
        for row, (path, values) in enumerate(zip(paths, columns["answers"], strict=True)):
            judged = {name: bool(flags[row]) for name, flags in columns.items() if name != "answers"}
            common: dict[str, Any] = {"path": path, **judged}
            if task == "regression":
                yield Prediction(values=dict(zip(names, values.tolist(), strict=True)), **common)
                continue
            probabilities, classes = values.sort(descending=True, stable=True)
            ranked = [(names[k], p) for k, p in zip(classes.tolist(), probabilities.tolist(), strict=True)]
            if task == "multilabel":
                labels = [name for name, p in zip(names, values.tolist(), strict=True) if p > 0.5]
                yield Prediction(top_k=ranked[:top_k], labels=labels, **common)
                continue
            sets = known.label_sets(probabilities)
            label_set = [] if sets is None else [name for name, _ in ranked[: max(1, int(sets.sum()))]]
            yield Prediction(*ranked[0], top_k=ranked[:top_k], label_set=label_set, **common)


def check_positive(**given: int) -> None:
    """Raises `UserError` for a number below 1."""
    for name, value in given.items():
        if value < 1:
            raise UserError(f"{name}: must be at least 1, got {value}")


def name_flag(flag: str, columns: Collection[str]) -> str:
    """The column of a flag of a prediction in a table, other than those of numbers and labels of that name."""
    return f"is_{flag}" if flag in columns else flag


@contextmanager
def head_inputs(head: nn.Module) -> Iterator[list[Tensor]]:
    """Takes the features ``(B, D)`` that a head is called with."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()


def read_pictures(
    pictures: Picture | Iterable[Picture], channels: int = 3, reader: BandReader | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The path of each image, empty where there is none, and its pixels, uint8 or raw ``(C, H, W)``.

    Args:
        pictures: What `Predictor.predict` takes.
        channels: The number of channels that is taken as it is, besides one and three.
        reader: How raw values of bands are read; photos when not given.

    Raises:
        UserError: If something is no image.
    """
    match pictures:
        case str() | Path():
            for path in find_images_to_predict(str(pictures), "pictures", raw=reader is not None).paths:
                yield str(path), decode(path) if reader is None else reader(path)
                if reader is None and note_loss(path):
                    rank_zero_warn(REDUCED)
        case Image.Image() if reader is None:
            yield "", _check(to_pixels(pictures))
            if is_deep(pictures):
                rank_zero_warn(REDUCED)
        case Tensor() | np.ndarray() if reader is not None and pictures.ndim == 4:
            yield from (("", reader.of_picture(image)) for image in pictures)
        case Tensor() | np.ndarray() | Image.Image() if reader is not None:
            yield "", reader.of_picture(pictures)
        case Tensor() if pictures.ndim == 4:
            yield from (("", _read_tensor(image, channels)) for image in pictures)
        case Tensor() if pictures.ndim == 3:
            yield "", _read_tensor(pictures, channels)
        case np.ndarray() if pictures.ndim == 4:
            yield from (("", _read_array(image, channels)) for image in pictures)
        case np.ndarray() if pictures.ndim in (2, 3):
            yield "", _read_array(pictures, channels)
        case Tensor() | np.ndarray():
            shapes = "a tensor (C, H, W)" if isinstance(pictures, Tensor) else "an array (H, W) or (H, W, C)"
            raise UserError(f"pictures: expected {shapes}, or a batch, got the shape {tuple(pictures.shape)}")
        case Iterable() if not isinstance(pictures, (bytes, bytearray, memoryview, IOBase, Mapping)):
            for one in pictures:
                yield from read_pictures(one, channels, reader)
        case _:
            raise UserError(f"pictures: {type(pictures).__name__} is no image; give paths, images, arrays or tensors")


def _read_array(array: NDArray[Any], channels: int) -> Tensor:
    """The pixels of an array ``(H, W)`` or ``(H, W, C)``."""
    depth, known = array.shape[2] if array.ndim == 3 else 1, {1, 3, 4, channels}
    if depth not in known and array.shape[0] in known:
        raise UserError(f"pictures: an array has the channels last, got the shape {array.shape}; transpose it")
    try:  # torch knows the byte order of this machine alone
        pixels = torch.tensor(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise UserError(f"pictures: pixels are {array.dtype}; give uint8, or float from 0 to 1") from error
    return _read_tensor(pixels.reshape(*array.shape[:2], depth).permute(2, 0, 1), channels)


def _read_tensor(image: Tensor, channels: int) -> Tensor:
    """The pixels of a tensor ``(C, H, W)``; of four channels the last is transparency, if the network takes no four."""
    if image.shape[0] not in {1, 3, 4, channels}:
        raise UserError(
            f"pictures: an image of {image.shape[0]} channels; a tensor is (C, H, W), an array (H, W) or (H, W, C), "
            "and a batch of these has one dimension more, its first"
        )
    pixels = _as_bytes(_check(image))
    if image.shape[0] != 4 or channels == 4:
        return pixels
    return to_pixels(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy(), "RGBA"))


def _check(image: Tensor) -> Tensor:
    """The image, if it has any pixels."""
    if image.numel() == 0:
        raise UserError(f"pictures: an image of {image.shape[1]} x {image.shape[2]} pixels is empty; leave it out")
    return image


def _as_bytes(image: Tensor) -> Tensor:
    """Pixels as uint8, on the CPU."""
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise UserError(
            f"pictures: pixels are {str(image.dtype).removeprefix('torch.')}; give uint8, or float from 0 to 1"
        )
    low, high = (float(value) for value in image.aminmax())
    if not (low >= 0 and high <= 1):  # nor nan
        raise UserError(
            f"pictures: pixels are float from {low:.3g} to {high:.3g}; give uint8, or float from 0 to 1 (what is "
            "normalised already, call the model with)"
        )
    return (image.float() * 255).round().to(torch.uint8)
