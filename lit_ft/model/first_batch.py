"""Checks of the first batch of each split: images, targets, and their normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_ft.backbones.backbone import StageOutput
from lit_ft.errors import UserError, is_from_user_code
from lit_ft.model.preprocessing import Normalise
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.tasks.task import Task


class BatchCheck:
    """Checks the first batch of each split of a run, and on a CPU, where nothing waits for it, the classes of all."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def pair(self, batch: Any, split: str, task: Task, normalise: Normalise) -> tuple[Any, Tensor]:
        """The images and targets of a batch, which is checked as by `check_pair`."""
        if split not in self._seen:
            check_pair(batch, split, task, normalise)
            self._seen.add(split)
        images, targets = batch
        if task.name == "multiclass" and targets.ndim == 1 and targets.device.type == "cpu":
            check_range(targets, split, task.num_outputs)
        return images, targets


def check_pair(batch: Any, split: str, task: Task, normalise: Normalise) -> None:
    """Raises `UserError` if a batch of a split is no pair of images, as of `check_images`, and targets for the task."""
    shape = "(B,)" if task.name == "multiclass" else f"(B, {task.num_outputs})"
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise _unexpected(split, "a batch", batch, f"a pair of images (B, C, H, W) and targets {shape}")
    images, targets = batch
    check_images(images, split, normalise)
    if not isinstance(targets, Tensor):
        raise _unexpected(split, "targets", targets, f"a tensor {shape}")
    _check_targets(targets, split, task)
    if isinstance(images, Tensor) and len(images) != len(targets):
        raise UserError(
            f"{split}_dataloader: a batch has {len(images)} images and {len(targets)} targets, expected one for each"
        )


def check_images(images: Any, split: str, normalise: Normalise) -> None:
    """Refuses anything but a batch of images, uint8 or normalised, and warns of floats that may not be normalised.

    Where raw values are taken, these may be any that are finite.
    """
    if isinstance(images, StageOutput):  # computed from images that were uint8
        return
    kind = "raw numbers" if normalise.is_raw else "uint8 or normalised float"
    wanted = f"{kind} (B, {normalise.channels}, H, W)"
    is_batch = isinstance(images, Tensor) and images.ndim == 4
    if not is_batch or not (images.dtype == torch.uint8 or images.is_floating_point() or normalise.is_raw):
        raise _unexpected(split, "images", images, wanted)
    if normalise.is_raw:
        if images.shape[1] != normalise.channels:
            raise _unexpected(split, "images", images, wanted)
        if not bool(images.isfinite().all()):
            raise UserError(f"{split}_dataloader: images have values that are not finite")
        return
    if images.shape[1] not in (1, 3, normalise.channels) and images.shape[3] in (1, 3, normalise.channels):
        raise _unexpected(split, "images", images, f"{wanted}, with the channels first")
    if images.is_floating_point() and images.numel():
        _check_normalised(images, split, normalise)


def refuse_unprepared(images: Any, size: int, normalise: Normalise) -> None:
    """Raises `UserError` for images, given to a model from Python, that are not as the model saw them in validation.

    What is compiled or exported has no values yet.
    """
    advice = "call model.predict(images), which prepares pictures of any kind"
    if isinstance(images, StageOutput) or torch.compiler.is_compiling():
        return
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise UserError(f"images are {_format_found(images)}, expected a batch (B, C, {size}, {size}); {advice}")
    height, width = images.shape[2:]
    if (height, width) != (size, size):
        raise UserError(f"images are {height} x {width}, but the model was validated on {size} x {size}; {advice}")
    if normalise.is_raw:
        return
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UserError(f"images are {_format_type(images)}, expected uint8 or normalised float; {advice}")
    if images.is_floating_point() and images.numel():
        low, high, least, most = _range(images, normalise)
        if not (low > -torch.inf and high < torch.inf):
            raise UserError("images have values that are not finite")
        # Normalised images could lie within 0 and 1 as well, but would not be whole 255ths.
        is_scaled = 0 <= low < high <= 1 and least < -0.1 and _are_whole(255 * images.float())
        if is_scaled or (low >= 0 and high > 8 * max(most, 1.0)):
            raise UserError(f"images are float from {low:.3g} to {high:.3g}, and not normalised; {advice}")
        if low >= 0 and 0.5 < high <= 1 and least < -0.1:
            rank_zero_warn(f"images are float from {low:.3g} to {high:.3g}, as if they were not normalised; {advice}")


def refuse_other_size(images: Any, size: int, error: Exception) -> None:
    """Raises `UserError` if a network has failed on images of another height and width than it was made for.

    Most networks take any size, so that the size is checked only after one has failed, and not by the user's own code
    or for lack of memory.
    """
    if not isinstance(images, Tensor) or images.shape[2:] == (size, size):
        return
    if isinstance(error, torch.OutOfMemoryError) or is_from_user_code(error):
        return
    height, width = images.shape[2:]
    square = f", or `model.input.size` {height}" if height == width else ""
    raise UserError(
        f"the images are {height} x {width}, and the network, made for {size} x {size}, does not take them "
        f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); give those{square}"
    ) from error


def check_range(targets: Tensor, split: str, num: int) -> None:
    """Raises `UserError` if a class index of a split, int ``(B,)``, is below 0 or not below the number of classes."""
    low, high = (int(one) for one in targets.aminmax()) if len(targets) else (0, 0)
    if low < 0 or high >= num:
        hint = "; count classes from 0" if low > 0 and high == num else ""
        raise UserError(f"{split}_dataloader: targets run from {low} to {high}, expected 0 to {num - 1}{hint}")


def refuse_no_batch(trainer: Any) -> None:
    """Raises `UserError` at the end of a fit for which there was no batch, unless none was asked for."""
    if trainer.global_step or 0 in (trainer.max_epochs, trainer.max_steps):
        return
    loader = trainer.train_dataloader
    dataset: Any = getattr(loader, "dataset", None)
    if getattr(loader, "drop_last", False) and loader.batch_size and hasattr(dataset, "__len__"):
        processes = f" in {trainer.world_size} processes" if trainer.world_size > 1 else ""
        raise UserError(
            f"train_dataloader: nothing was trained, as drop_last leaves no batch: {len(dataset)} images make none of "
            f"{loader.batch_size}{processes}; give a smaller batch_size, or set drop_last to false"
        )
    raise UserError("train_dataloader: nothing was trained, as it gives no batch")


def _check_normalised(images: Tensor, split: str, normalise: Normalise) -> None:
    low, high, least, most = _range(images, normalise)
    if not (low > -torch.inf and high < torch.inf):
        raise UserError(f"{split}_dataloader: images have values that are not finite")
    found = f"{split}_dataloader: images are float from {low:.3g} to {high:.3g}"
    wanted = f"uint8, or float that is normalised, which lies within {least:.3g} and {most:.3g}"
    if low >= 0 and high > 8 * max(most, 1.0):  # so far beyond the largest that they were certainly not normalised
        raise UserError(f"{found}, expected {wanted}")
    if low >= 0 and least < -0.1:  # no pixel is darker than the mean: it may be so
        rank_zero_warn(f"{found}, as if they were not normalised; expected {wanted}")


def _are_whole(values: Tensor) -> bool:
    return bool(((values - values.round()).abs() < 1e-3).all())


def _range(images: Tensor, normalise: Normalise) -> tuple[float, float, float, float]:
    """The least and the greatest value of images, and of those that are normalised."""
    low, high = (float(one) for one in images.aminmax())
    least = float((-normalise.mean / normalise.std).min())
    return low, high, least, float(((255 - normalise.mean) / normalise.std).max())


def _check_targets(targets: Tensor, split: str, task: Task) -> None:
    """Refuses targets of another shape or type than the task's, or with values that it does not have."""
    num, is_float = task.num_outputs, targets.is_floating_point()
    of_outputs, is_flat = targets.shape[1:] == (num,), targets.ndim == 1
    shape = f"(B, {num})"
    fits, wanted = {
        "multiclass": (of_outputs or (is_flat and not is_float), f"int64 (B,) from 0 to {num - 1}, or shares {shape}"),
        "multilabel": (of_outputs, f"{shape} from 0 to 1"),
        "regression": ((of_outputs or (is_flat and num == 1)) and not targets.is_complex(), f"numbers {shape}"),
    }[task.name]
    if not fits:
        raise _unexpected(split, "targets", targets, wanted)
    if task.name == "multiclass" and is_flat:
        check_range(targets, split, num)
    elif task.name == "multilabel" and targets.numel() and not bool(((targets >= 0) & (targets <= 1)).all()):
        raise UserError(f"{split}_dataloader: targets run to {float(targets.max()):g}, expected {wanted}")
    elif task.name == "regression" and is_float and targets.dtype.itemsize < 4:
        raise UserError(
            f"{split}_dataloader: targets are {_format_type(targets)}, which has too few digits, and so rounds them; "
            "expected float32 or float64: give `trainer.precision` bf16-mixed or 16-mixed instead of bf16-true or "
            "16-true"
        )
    elif task.name == "regression" and not bool(targets.isfinite().all()):
        raise UserError(f"{split}_dataloader: targets have values that are not finite")


def _unexpected(split: str, what: str, found: Any, wanted: str) -> UserError:
    verb = "is" if what == "a batch" else "are"
    return UserError(f"{split}_dataloader: {what} {verb} {_format_found(found)}, expected {wanted}")


def _format_found(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{_format_type(value)} ({', '.join(map(str, value.shape))}{',' * (value.ndim == 1)})"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"


def _format_type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
