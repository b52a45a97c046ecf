"""The page of explanations: the transfer as one picture, and each photo with its evidence before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from lit_ft.data.pages import encode_thumbnail, render_page
from lit_ft.evaluation.explanations.drawing import SIDE, draw_evidence, draw_small, legend
from lit_ft.evaluation.explanations.maps import Explanation
from lit_ft.evaluation.explanations.stage_picture import draw_stages
from lit_ft.evaluation.explanations.transfer import Transfer

METHODS = {
    "grad_cam": (
        "Grad-CAM",
        "places of the deepest map whose features speak for what is explained, by their mean gradient",
    ),
    "integrated_gradients": (
        "Integrated gradients",
        "pixels that speak for what is explained, on the way from an image of the mean colour; blurred",
    ),
    "attention_rollout": (
        "Attention rollout",
        "patches that the features are mixed from, the same whatever is explained",
    ),
}
"""What a page calls each method, and what it shows."""


@dataclass(frozen=True)
class ShownPicture:
    """A picture of a page.

    Args:
        data: JPEG in base 64.
        caption: What stands below it.
        alt: What it shows, for who does not see it.
    """

    data: str
    caption: str
    alt: str


@dataclass(frozen=True)
class ShownPhoto:
    """A photo of a page.

    Args:
        path: The file.
        error: Why it is not explained; then there is nothing else.
        picture: The photo.
        maps: Its evidence, by method and class: before fine-tuning, where that is known, and after.
    """

    path: str
    error: str = ""
    picture: ShownPicture | None = None
    maps: dict[str, list[ShownPicture]] = field(default_factory=dict)


@dataclass(frozen=True)
class ExplanationPage:
    """What a page shows.

    Args:
        facts: What was explained, by name.
        photos: The photos.
        methods: What each method shows, by its name.
        chart: The transfer as SVG, or nothing.
        images: The images on which features were compared.
        score: What the scores of probes are, if there are any.
        notes: What could not be computed, and why.
        legend: The colours.
    """

    facts: Mapping[str, str]
    photos: Sequence[ShownPhoto]
    methods: Mapping[str, str]
    chart: str
    images: str
    score: str
    notes: Sequence[str]
    legend: str


def draw_photo(image: Tensor, before: Explanation | None, after: Explanation) -> ShownPhoto:
    """Draws a photo, uint8 ``(C, H, W)``, with its evidence.

    Args:
        image: The photo.
        before: Its explanation by the linear probe, of the same target.
        after: Its explanation by the model.
    """
    photo, path = draw_small(image), after.prediction.path
    stages = {"before": before, "after": after} if before else {"": after}
    maps: dict[str, list[ShownPicture]] = {}
    for method in after.maps:
        title = METHODS[method][0] + ("" if method == "attention_rollout" else f" for {after.target}")
        maps[title] = []
        for when, one in stages.items():
            if one is not None:
                said = format_prediction(one) if one.maps[method].any() else f"{format_prediction(one)}; no evidence"
                caption = ": ".join(filter(None, [when, said]))
                drawn = draw_evidence(photo, one, method)
                maps[title].append(_picture(drawn, caption, f"{title} {when}".strip()))
    flags = {"unsure": after.prediction.unsure, "unlike the validation images": after.prediction.unlike_training}
    caption = "; ".join([format_prediction(after), *(text for text, is_so in flags.items() if is_so)])
    return ShownPhoto(path, "", _picture(photo, caption, "The photo"), maps)


def _picture(image: Image.Image, caption: str, alt: str) -> ShownPicture:
    return ShownPicture(encode_thumbnail(image, SIDE), caption, alt)


def format_prediction(explanation: Explanation) -> str:
    """What is predicted, and how probable the explained class is, or the explained number."""
    prediction, target = explanation.prediction, explanation.target
    if prediction.values:
        return f"{target} ({prediction.values[target]:.4g})"
    own = f"{target} ({dict(prediction.top_k)[target]:.0%})"
    if not prediction.label or prediction.label == target:
        return own
    return f"{prediction.label} ({prediction.probability:.0%}), {own}"


def render_explanations(
    facts: Mapping[str, str], photos: Sequence[ShownPhoto], methods: Sequence[str], transfer: Transfer
) -> str:
    """One HTML file.

    Args:
        facts: What was explained, by name.
        photos: The photos.
        methods: The methods.
        transfer: What fine-tuning changed.
    """
    about = dict(METHODS[method] for method in methods)
    chart = draw_stages(transfer)
    page = ExplanationPage(facts, photos, about, chart, transfer.images, transfer.score, transfer.notes, legend())
    return render_page("lit_ft.evaluation", "explain.html", title="Explanations", page=page)
