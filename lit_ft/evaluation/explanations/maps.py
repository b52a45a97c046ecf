"""Maps of evidence: where in a photo a model finds what speaks for an output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lit_ft.data.loading.photo_source import transform_seeded
from lit_ft.errors import UserError, unknown
from lit_ft.evaluation.explanations.attribution import find_map_stage, grad_cam, import_captum, integrated_gradients
from lit_ft.evaluation.explanations.rollout import attention_rollout, can_roll_out
from lit_ft.model.image_model import ImageModel
from lit_ft.model.prediction import Picture, Prediction

Method = Literal["grad_cam", "integrated_gradients", "attention_rollout"]

_FUNCTIONS: dict[str, Callable[[ImageModel, Tensor, int], Tensor]] = {
    "grad_cam": grad_cam,
    "integrated_gradients": integrated_gradients,
    "attention_rollout": attention_rollout,
}

Map = NDArray[np.float32]
"""Evidence by place."""

Part = tuple[float, float, float, float]
"""Top, left, bottom and right of a part of a photo, in its pixels."""


@dataclass(frozen=True)
class Explanation:
    """Where in a photo a model finds its evidence.

    Args:
        target: The class, label or number that is explained.
        prediction: What the model predicts for the photo, with the probabilities of all classes.
        maps: By method, the evidence in the image that enters the network, ``(size, size)``. ``grad_cam`` is at least
            0. ``integrated_gradients`` is below 0 where a place speaks against the target, and sums to the output for
            the photo minus that for the mean colour. ``attention_rollout`` is the share of a place, of no target.
        size: Height and width of the photo, upright.
        seen: The part of it that enters the network: top, left, bottom and right, in its pixels.
    """

    target: str
    prediction: Prediction
    maps: dict[str, Map]
    size: tuple[int, int]
    seen: Part

    def on_photo(self, method: Method = "grad_cam", size: tuple[int, int] | None = None) -> Map:
        """The evidence in the places of the photo ``(H, W)``, 0 where the network sees nothing of it.

        Args:
            method: The map.
            size: Height and width of the photo where it was resized since.

        Raises:
            UserError: If there is no such map.
        """
        if method not in self.maps:
            raise unknown("method", method, self.maps, "method")
        size = size or self.size
        return place(self.maps[method], self.seen_at(size), size)

    def seen_at(self, size: tuple[int, int]) -> Part:
        """The part of the photo that enters the network, in pixels of the photo resized to a height and width."""
        top, left, bottom, right = self.seen
        down, across = size[0] / self.size[0], size[1] / self.size[1]
        return top * down, left * across, bottom * down, right * across


def place(values: Map, part: Part, size: tuple[int, int], outside: float = 0.0) -> Map:
    """Lays a map over a part of a photo, interpolated between the middles of its pixels.

    Args:
        values: The map, of any size.
        part: Where it lies: top, left, bottom and right, in pixels of the photo.
        size: Height and width of the photo.
        outside: The value of the pixels whose middle is elsewhere.
    """
    (height, width), (top, left, bottom, right) = size, part
    # From -1 to 1 within the part.
    y = (torch.arange(height) + 0.5 - top) / (bottom - top) * 2 - 1
    x = (torch.arange(width) + 0.5 - left) / (right - left) * 2 - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    given = torch.from_numpy(values).expand(1, 1, -1, -1)
    placed = F.grid_sample(given, places.unsqueeze(0), padding_mode="border", align_corners=False)[0, 0]
    placed[(y.abs() > 1)[:, None] | (x.abs() > 1)] = outside
    found: Map = placed.numpy()
    return found


def explain(
    model: ImageModel,
    pictures: Picture | Iterable[Picture],
    target: str | None = None,
    methods: Sequence[Method] | None = None,
) -> list[Explanation]:
    """Finds where in photos a model sees evidence for a class; needs ``lit_ft[explain]``.

    Args:
        model: The model, such as `lit_ft.load` gives it.
        pictures: What `predict` takes: files, folders, images of Pillow, arrays or tensors.
        target: The class, label or number to explain; None takes the class that is predicted, the label that is most
            probable, or the first number.
        methods: Some of ``grad_cam`` (for networks with a stage that gives a map, as convolutional ones),
            ``attention_rollout`` (for ViTs) and ``integrated_gradients``; None takes all that the network allows.

    Raises:
        UserError: If the target or a method is unknown, the network does not allow it, captum is not installed, or an
            image cannot be read.

    Example:
        >>> import lit_ft
        >>> model = lit_ft.load("best.ckpt")  # doctest: +SKIP
        >>> lit_ft.explain(model, "rose.jpg")[0].on_photo("grad_cam").shape  # doctest: +SKIP
        (375, 500)
    """
    index, chosen = find_target(model, target), choose_methods(model, methods)
    return [explain_image(model, image, path, index, chosen) for path, image in model.read(pictures)]


def explain_image(
    model: ImageModel, image: Tensor, path: str, target: int | None, methods: Sequence[str]
) -> Explanation:
    """Explains one photo, uint8 or raw ``(C, H, W)``; see `explain`."""
    [prediction] = model.predict_images([(path, image)], top_k=len(model.class_names))
    if target is None:
        target = _predicted(model, prediction)
    spec, (height, width) = model.input_spec, image.shape[-2:]
    sized = transform_seeded(spec.geometry(), image, 0, path or "an image")
    maps: dict[str, Map] = {}
    with _ready(model):
        given = model.normalise(sized.unsqueeze(0).to(model.device))
        for method in methods:
            maps[method] = _FUNCTIONS[method](model, given.clone(), target)[0].float().cpu().numpy()
    return Explanation(model.class_names[target], prediction, maps, (height, width), spec.seen_part(height, width))


def explain_classes(
    model: ImageModel, images: Sequence[tuple[str, Tensor]], classes: Sequence[str]
) -> list[Explanation]:
    """Explains photos by Grad-CAM, all at once and each for a class of its own.

    Args:
        model: A model for which `choose_quick_method` gives ``grad_cam``.
        images: Path, and pixels, uint8 or raw ``(C, H, W)``, of each photo.
        classes: The class of each that is explained, of which nothing is predicted here.
    """
    spec = model.input_spec
    sized = [transform_seeded(spec.geometry(), image, 0, path or "an image") for path, image in images]
    with _ready(model):
        targets = torch.tensor([model.class_names.index(name) for name in classes])
        found = grad_cam(model, model.normalise(torch.stack(sized).to(model.device)), targets).float().cpu().numpy()
    return [
        Explanation(name, Prediction(path=path), {"grad_cam": values}, size, spec.seen_part(*size))
        for (path, image), name, values in zip(images, classes, found, strict=True)
        for size in [(image.shape[-2], image.shape[-1])]
    ]


def find_target(model: ImageModel, name: str | None) -> int | None:
    """The output of a name.

    Raises:
        UserError: If the model has none.
    """
    if name is None:
        return None
    if name not in model.class_names:
        raise unknown({"multiclass": "class", "multilabel": "label"}.get(model.task.name, "number"), name,
                      model.class_names, "target")  # fmt: skip
    return model.class_names.index(name)


def choose_methods(model: ImageModel, wanted: Sequence[str] | None = None) -> list[str]:
    """The methods that are wanted, or all that a network allows.

    Raises:
        UserError: If one is unknown, the network does not allow it, or it needs captum, which is not installed.
    """
    names = get_args(Method)
    if strange := [name for name in wanted or () if name not in names]:
        raise unknown("method", strange[0], names, "methods")
    possible = _list_possible(model)
    if refused := [name for name in wanted or () if name not in possible]:
        needs = "a stage whose output is a map" if refused[0] == "grad_cam" else "tokens that all attend to each other"
        raise UserError(
            f"methods: {refused[0]} needs {needs}, which {model.hparams['backbone']} has not; possible: "
            f"{', '.join(possible)}"
        )
    chosen: list[str] = list(dict.fromkeys(wanted or possible))
    if "integrated_gradients" in chosen:
        import_captum()
    return chosen


def choose_quick_method(model: ImageModel) -> Method | None:
    """The method that takes one pass, or ``None`` where the network allows neither of these.

    Integrated gradients, which all networks allow, take 32 passes: too long where others wait.
    """
    return next((name for name in _list_possible(model) if name != "integrated_gradients"), None)


def _list_possible(model: ImageModel) -> list[Method]:
    """The methods that a network allows."""
    with _ready(model):
        allowed: dict[Method, bool] = {
            "grad_cam": find_map_stage(model.backbone) is not None,
            "attention_rollout": can_roll_out(model.backbone),
            "integrated_gradients": True,
        }
    return [name for name in allowed if allowed[name]]


def _predicted(model: ImageModel, prediction: Prediction) -> int:
    """The output that is explained where none is named."""
    return model.class_names.index(prediction.top_k[0][0]) if prediction.top_k else 0


@contextmanager
def _ready(model: ImageModel) -> Iterator[None]:
    """The model in eval mode, and with gradients, also where the caller has none."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        model.train(was_training)
