"""Pictures of a run: plan, confusion matrix and images.

They are drawn with Pillow: with matplotlib they took most of the time that a short run gave to its pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_ft.evaluation.lettering import Lettering, prepare_names
from lit_ft.evaluation.line_chart import find_marks
from lit_ft.unfreezing.plan import Plan

MAX_NUMBERED_CLASSES = 30
"""Largest number of classes for which cells have their shares and counts."""

_WHITE, _GREY = (255, 255, 255), (102, 102, 102)
_BLUE = (31, 119, 180)
_PAD = 10

_PLAN_WIDTH, _ROW = 800, 30
_FONT, _TITLE_FONT, _SMALL_FONT = 14, 15, 11

_CELL, _SMALL_CELL = 52, 14
_LEAST_MATRIX = 260
_LONGEST_NAME = 30

_CAPTION_PIXELS = 112
_LINE_PIXELS = 15  # height of a line of a caption


def draw_plan(plan: Plan, starts: Sequence[int], num_epochs: int | None, rates: dict[str, float]) -> Image.Image:
    """A picture of a plan: one row per stage, with bars where it trains, darker for higher learning rates.

    Args:
        plan: The plan.
        starts: First epochs of the phases that have begun, from `Plan.phase_starts`.
        num_epochs: Length of the run in epochs, if it has one.
        rates: The learning rate of each stage.
    """
    first = [starts[i] if i < len(starts) else phase.first_epoch for i, phase in enumerate(plan.phases)]
    end = max(1, num_epochs if num_epochs is not None else first[-1] + max(1, first[-1] // 2))
    names, note = prepare_names([shorten(stage, _LONGEST_NAME) for stage in plan.stages])
    labels = [
        f"{name}, lr {rates[stage]:.2g}" if stage in rates else name
        for stage, name in zip(plan.stages, names, strict=True)
    ]
    is_open = any(phase.plateau for phase in plan.phases[len(starts) - 1 :])
    below = ["epoch" + " (phases that end by a plateau: their earliest end)" * is_open, *([note] if note else [])]
    pen = Lettering([*labels, *below, "0123456789"], _FONT)
    left, right = 2 * _PAD + max(map(pen.width, labels)), _PLAN_WIDTH - 2 * _PAD
    bottom = _PAD + _ROW * len(labels)
    image = Image.new("RGB", (_PLAN_WIDTH, bottom + (1 + len(below)) * pen.height + 2 * _PAD), _WHITE)

    def across(epoch: float) -> float:
        return left + min(epoch, end) / end * (right - left)

    _draw_bars(ImageDraw.Draw(image), plan, [*first, end], rates, across)
    for row, label in enumerate(reversed(labels)):  # the head is at the top
        pen.write(image, (left - _PAD, _PAD + _ROW * row + (_ROW - pen.height) / 2), label, "right")
    for mark in (mark for mark in find_marks(0, end) if mark == int(mark) and mark <= end):
        pen.write(image, (across(mark), bottom + 3), f"{mark:g}", "middle")
    for row, line in enumerate(below, start=1):
        pen.write(image, ((left + right) / 2, bottom + _PAD / 2 + row * pen.height), line, "middle")
    return image


def _draw_bars(
    lines: ImageDraw.ImageDraw, plan: Plan, ends: Sequence[int], rates: dict[str, float], across: Callable[[int], float]
) -> None:
    """Draws the epochs in which each stage trains, and where phases begin."""
    largest, bottom = max(rates.values(), default=1.0), _PAD + _ROW * len(plan.stages)
    spans = list(zip(plan.phases, pairwise(ends), strict=True))
    for row, stage in enumerate(plan.stages, start=1):
        top = bottom - _ROW * row
        colour = _mix(_BLUE, 0.25 + 0.75 * rates.get(stage, largest) / largest)
        for start, stop in (span for phase, span in spans if stage in phase.trainable and span[0] < span[1]):
            lines.rectangle((across(start), top + 3, across(stop), top + _ROW - 4), colour)
    lines.rectangle((across(0), _PAD, across(ends[-1]), bottom), outline=_GREY)
    for start in ends[:-1]:
        lines.line((across(start), _PAD, across(start), bottom), _GREY)


def _mix(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """A colour that lets white through."""
    red, green, blue = (round(255 - share * (255 - part)) for part in colour)
    return red, green, blue


def draw_confusion(matrix: torch.Tensor, names: Sequence[str], title: str = "") -> Image.Image:
    """A picture of a confusion matrix: rows are true classes, shaded by their share and with it as a percentage.

    Args:
        matrix: Numbers of images ``(K, K)``.
        names: The classes.
        title: What it is of.
    """
    from matplotlib import colormaps

    num, is_numbered = len(names), len(names) <= MAX_NUMBERED_CLASSES
    cell = max(_CELL, _LEAST_MATRIX // num) if is_numbered else _SMALL_CELL
    labels, note = prepare_names([shorten(name, _LONGEST_NAME) for name in names])
    titles = [*title.split("\n"), "true class by row, predicted class by column", note]
    heads = Lettering(titles, _TITLE_FONT)
    pen = Lettering(labels, _FONT if is_numbered else _SMALL_FONT)
    longest = max(map(pen.width, labels)) + 2 * _PAD
    top, left, side = _PAD + len(titles) * heads.height, longest, cell * num
    width = max(left + side + _PAD, 2 * _PAD + max(map(heads.width, titles)))
    image = Image.new("RGB", (width, top + side + longest), _WHITE)
    for row, line in enumerate(titles):
        heads.write(image, (_PAD, _PAD + row * heads.height), line)
    shares = (matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    shaded = Image.fromarray(colormaps["Blues"](shares, bytes=True)[..., :3])
    image.paste(shaded.resize((side, side), Image.Resampling.NEAREST), (left, top))
    ImageDraw.Draw(image).rectangle((left, top, left + side, top + side), outline=_GREY)
    middle = (cell - pen.height) // 2
    for row, label in enumerate(labels):
        pen.write(image, (left - _PAD, top + row * cell + middle), label, "right")
        x = left + row * cell + middle
        pen.write_upwards(image, (x, top + side + _PAD + pen.width(label) + 2), label)
    if is_numbered:
        _write_cells(image, matrix, shares, (left, top), cell)
    return image


def _write_cells(
    image: Image.Image, matrix: torch.Tensor, shares: NDArray[np.float32], corner: tuple[int, int], cell: int
) -> None:
    """Writes share and count into each cell that is not empty."""
    pen = Lettering("0123456789%", _FONT)
    for i, j in matrix.nonzero().tolist():
        colour = _WHITE if shares[i, j] > 0.5 else (0, 0, 0)
        x, y = corner[0] + (j + 0.5) * cell, corner[1] + (i + 0.5) * cell
        pen.write(image, (x, y - pen.height), f"{shares[i, j]:.0%}", "middle", colour)
        pen.write(image, (x, y), f"{int(matrix[i, j])}", "middle", colour)


def draw_images(images: torch.Tensor, captions: Sequence[Sequence[str]], columns: int = 8) -> Image.Image:
    """A picture of small images, uint8 ``(B, C, H, W)``, with the lines of a caption below each."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    factor = max(1, _CAPTION_PIXELS // max(images.shape[2:]))  # of those that are smaller than their captions
    images = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    height, width = images.shape[2:]
    step_x, step_y = max(width, _CAPTION_PIXELS) + 8, height + 8 + _LINE_PIXELS * max(map(len, captions))
    canvas = torch.full((rows * step_y, columns * step_x, 3), 255, dtype=torch.uint8)
    places = [(i // columns * step_y, i % columns * step_x) for i in range(len(images))]
    for image, (y, x) in zip(images, places, strict=True):
        left = x + (step_x - width) // 2
        canvas[y + 4 : y + 4 + height, left : left + width] = as_rgb(image).permute(1, 2, 0)
    picture = Image.fromarray(canvas.numpy())
    labels, _ = prepare_names([line for lines in captions for line in lines], number="?")
    pen, words = Lettering(labels, _SMALL_FONT), iter(labels)
    for lines, (y, x) in zip(captions, places, strict=True):
        for number in range(len(lines)):
            place = (x + step_x / 2, y + height + 5 + number * _LINE_PIXELS)
            pen.write(picture, place, next(words), "middle")
    return picture


def as_rgb(images: torch.Tensor) -> torch.Tensor:
    """The first three channels of images ``(..., C, H, W)``, or the first one as grey."""
    channels = 3 if images.shape[-3] >= 3 else 1
    return images[..., :channels, :, :].expand(*images.shape[:-3], 3, -1, -1)


def shorten(text: str, width: int) -> str:
    """A text that fits into a number of characters.

    >>> shorten("golden retriever", 8), shorten("cat", 8)
    ('golden …', 'cat')
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"
