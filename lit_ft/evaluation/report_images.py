"""Images that the report of a run shows: perhaps wrong labels, mistakes, and a sample."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_ft.data.datasets.items import ItemSplit
from lit_ft.data.modules.arrays import ArraySplit
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.pages import thumbnail
from lit_ft.evaluation.predicted_images import PredictedImages

MAX_IMAGES = 24
"""Images of each list."""

_NUM_SAMPLED = 16
_SEED = 0


@dataclass(frozen=True)
class ShownImage:
    """An image of a list.

    Args:
        path: The image.
        true: What is true of it.
        predicted: What was predicted; empty where that is the same.
        loss: Its loss.
        split: The split that it is of.
        guess: The class that was predicted; empty where that is the true one, or for another task.
    """

    path: str
    true: str
    predicted: str
    loss: str
    split: str
    guess: str = ""


def find_label_suspects(images: PredictedImages) -> list[int]:
    """The rows of images of one class each whose label is perhaps wrong, the most probable first.

    These are predicted to be of another class, with at least the probability that the images of that class have on
    average which are recognised: confident learning (Northcutt et al. 2021, Confident learning: estimating uncertainty
    in dataset labels), as far as the probability of the predicted class tells.
    """
    if images.task != "multiclass":
        return []
    right, classes = images.right, images.predicted.astype(np.int64)
    hits = np.bincount(classes[right], minlength=len(images.names))
    sums = np.bincount(classes[right], images.probability[right], minlength=len(images.names))
    usual = np.divide(sums, hits, out=np.full(len(sums), np.inf), where=hits > 0)
    suspects = np.flatnonzero(~right & (images.probability >= usual[classes]))
    return list(map(int, suspects[np.argsort(-images.probability[suspects], kind="stable")]))


def find_mistakes(images: PredictedImages, without: Sequence[int] = ()) -> list[int]:
    """The rows of the images with the largest loss, of those that are not right; one that is not finite comes first."""
    losses = np.where(np.isnan(images.losses), math.inf, images.losses)
    rows = np.flatnonzero(~images.right) if images.task != "regression" else np.arange(len(images))
    rows = rows[~np.isin(rows, without)]
    return list(map(int, rows[np.argsort(-losses[rows], kind="stable")][:MAX_IMAGES]))


def draw_sample(images: PredictedImages) -> list[int]:
    """The rows of a random sample, the same each time."""
    chosen = np.random.default_rng(_SEED).permutation(len(images))[:_NUM_SAMPLED]
    return sorted(chosen.tolist())


def show(images: PredictedImages, rows: Sequence[int], split: str) -> list[ShownImage]:
    """What a page shows of some images of a split."""
    shown = []
    for row in rows:
        true, predicted = images.captions(row)
        is_same = images.task != "regression" and bool(images.right[row])
        loss = f"{images.losses[row]:.3g}"
        guess = images.names[int(images.predicted[row])] if images.task == "multiclass" and not is_same else ""
        shown.append(ShownImage(images.paths[row], true, "" if is_same else predicted, loss, split, guess))
    return shown


def list_suspects(found: Mapping[str, PredictedImages]) -> list[ShownImage]:
    """The images of all splits whose label is perhaps wrong."""
    if len(found) > 1 and _are_same(*found.values()):  # validation, which is tested on where there are no others
        found = {"test": found["test"]}
    rows = [(split, row) for split, images in found.items() for row in find_label_suspects(images)]
    rows.sort(key=lambda place: -found[place[0]].probability[place[1]])
    return [show(found[split], [row], split)[0] for split, row in rows[:MAX_IMAGES]]


def _are_same(one: PredictedImages, other: PredictedImages) -> bool:
    return list(one.paths) == list(other.paths) and np.array_equal(one.true, other.true)


def embed_picture(path: Path) -> str:
    """A JPEG as it is, in base64; nothing where there is none."""
    try:
        with Image.open(path, formats=["JPEG"]):
            return base64.b64encode(path.read_bytes()).decode()
    except (OSError, SyntaxError, ValueError):  # a picture that is missing or damaged is no reason for no report
        return ""


def find_pictures(data: Any) -> Callable[[ShownImage], str]:
    """What gives the thumbnail of an image in base 64: of its file, or of a run's data module, if that is known."""

    def find(image: ShownImage) -> str:
        split = find_array(data, image)
        return thumbnail(image.path) if split is None else split.thumbnail(int(image.path))

    return find


def find_array(data: Any, image: ShownImage) -> ArraySplit | ItemSplit | None:
    """The split of a data module that has an image by its number, if it is in no file."""
    if not isinstance(data, ImageDataModule):
        return None
    images = data.splits.get(data.tested if image.split == "test" else image.split)  # type: ignore[call-overload]
    is_row = isinstance(images, ArraySplit | ItemSplit) and image.path.isdecimal() and int(image.path) < len(images)
    return images if is_row else None
