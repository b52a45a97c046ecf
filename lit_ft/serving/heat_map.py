"""Heat maps of the server: where in a photo the model finds its evidence."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lit_ft.data.pages import encode_thumbnail
from lit_ft.evaluation.explanations.drawing import SIDE, draw_evidence, draw_small
from lit_ft.evaluation.explanations.maps import explain_image
from lit_ft.model.image_model import ImageModel
from lit_ft.serving.answers import Explained


def explain_photo(model: ImageModel, image: Tensor, method: str, top_k: int) -> Explained:
    """A prediction for a photo, uint8 ``(C, H, W)``, with the evidence for the class that is predicted.

    Args:
        model: The model.
        image: The photo.
        method: What `choose_quick_method` has given.
        top_k: The number of classes or labels to list.
    """
    found = explain_image(model, image, "", None, [method])
    drawn = draw_evidence(draw_small(image), found, method)
    return Explained(
        replace(found.prediction, top_k=found.prediction.top_k[:top_k]),
        method,
        None if method == "attention_rollout" else found.target,  # which is the same for all classes
        encode_thumbnail(drawn, SIDE) if (found.maps[method] > 0).any() else None,
    )
