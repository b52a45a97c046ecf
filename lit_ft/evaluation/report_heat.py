"""Heat maps of the mistakes that the report of a run shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lit_ft.data.bands.reader import BandReader
from lit_ft.data.images.decode import decode
from lit_ft.data.pages import SIDE, encode_thumbnail
from lit_ft.errors import UserError
from lit_ft.evaluation.explanations.drawing import draw_evidence, draw_small, legend
from lit_ft.evaluation.explanations.maps import choose_quick_method, explain_classes
from lit_ft.evaluation.inference import load
from lit_ft.evaluation.report_images import ShownImage, find_array
from lit_ft.runs import Run

_BATCH = 8
"""Photos that pass the network at once."""


@dataclass(frozen=True)
class MistakeMaps:
    """Where the model of a run found evidence for classes that it was wrong about.

    Args:
        pictures: By the path of an image, a JPEG in base64.
        colours: The colours from no to most evidence, as a gradient of CSS.
        note: Why there are none, where that is a fault.
    """

    pictures: dict[str, str] = field(default_factory=dict)
    colours: str = ""
    note: str = ""


def explain_mistakes(run: Run, data: Any, mistakes: Sequence[ShownImage]) -> MistakeMaps:
    """Explains the classes that were predicted wrongly, by Grad-CAM on the model that the run handed back.

    There are no maps of images that cannot be read, of other tasks, of networks without a stage that gives a map, and
    of runs that have no model any more.

    Args:
        run: The run.
        data: Its data module, for images that are in no file.
        mistakes: The images.
    """
    best = run.checkpoint("best")
    wrong = [image for image in mistakes if image.guess]
    if not wrong or not best.is_file():
        return MistakeMaps()
    try:
        model = load(best)
    except UserError as error:  # such as of a backbone whose library is not here
        return MistakeMaps(note=f"Without heat maps of the mistakes: {error}")
    if choose_quick_method(model) != "grad_cam":
        return MistakeMaps()
    read = [(image, pixels) for image in wrong if (pixels := _read(data, image, model.reader)) is not None]
    known = [(image, pixels) for image, pixels in read if image.guess in model.class_names]
    pictures: dict[str, str] = {}
    for start in range(0, len(known), _BATCH):
        part = known[start : start + _BATCH]
        found = explain_classes(model, [(one.path, pixels) for one, pixels in part], [one.guess for one, _ in part])
        for (image, pixels), explanation in zip(part, found, strict=True):
            if (explanation.maps["grad_cam"] > 0).any():
                drawn = draw_evidence(draw_small(pixels, SIDE), explanation, "grad_cam")
                pictures[image.path] = encode_thumbnail(drawn)
    return MistakeMaps(pictures, legend() if pictures else "")


def _read(data: Any, image: ShownImage, reader: BandReader | None) -> Tensor | None:
    """The pixels of an image, uint8 or raw ``(C, H, W)``; None of one that cannot be read, as the page says."""
    split = find_array(data, image)
    if split is not None:
        return split.image(int(image.path))
    try:
        return decode(image.path) if reader is None else reader(image.path)
    except UserError:
        return None
