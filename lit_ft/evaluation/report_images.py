"""Images that the report of a run shows: perhaps wrong labels, mistakes, and a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
    """

    path: str
    true: str
    predicted: str
    loss: str


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


def show(images: PredictedImages, rows: Sequence[int], split: str = "") -> list[ShownImage]:
    """What a page shows of some images."""
    return [_show(images, row, split) for row in rows]


def _show(images: PredictedImages, row: int, split: str) -> ShownImage:
    true, predicted = images.captions(row)
    is_same = images.task != "regression" and bool(images.right[row])
    title = f"{true} ({split})" if split else true
    return ShownImage(images.paths[row], title, "" if is_same else predicted, f"{images.losses[row]:.3g}")


def list_suspects(found: Mapping[str, PredictedImages]) -> list[ShownImage]:
    """The images of all splits whose label is perhaps wrong."""
    rows = [(split, images, row) for split, images in found.items() for row in find_label_suspects(images)]
    rows.sort(key=lambda one: -one[1].probability[one[2]])
    return [_show(images, row, split) for split, images, row in rows[:MAX_IMAGES]]
