"""Attribution of an output to the places of images: Grad-CAM, and integrated gradients by captum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_ft.backbones.backbone import Backbone, StageOutput, stage_costs
from lit_ft.errors import UserError
from lit_ft.model.image_model import ImageModel
from lit_ft.probes.feature_pass import has_channels_last

STEPS = 32
"""Points on the way from the baseline to an image."""

_BATCH = 8
"""Number of these that pass the network at once, forward and backward."""


def import_captum() -> Any:
    """The module ``captum.attr``.

    Raises:
        UserError: If captum is not installed.
    """
    try:
        import captum.attr  # slow to load, and an extra
    except ImportError as error:
        raise UserError(
            "methods: integrated_gradients needs captum; run: pip install 'lit_ft[explain]', or give grad_cam alone"
        ) from error
    return captum.attr


def find_map_stage(backbone: Backbone) -> str | None:
    """The deepest stage whose output is a map of several places, if any; transformers have tokens instead."""
    for cost in reversed(stage_costs(backbone)):
        shape = (1, *cost.shape)
        if len(shape) == 4 and shape[1 if has_channels_last(shape) else 2] > 1:
            return cost.name
    return None


def grad_cam(module: ImageModel, images: Tensor, target: int | Tensor) -> Tensor:
    """Grad-CAM on the deepest stage with a map (`Selvaraju et al. 2017`_, equations 1 and 2).

    It takes a pass, and the way back to that stage alone, which needs no hooks, and so no library.

    Args:
        module: The model, in eval mode.
        images: Normalised images ``(B, C, H, W)``.
        target: The output, or one for each image ``(B,)``.

    Returns:
        The evidence for that output ``(B, H, W)``, at least 0, enlarged to the size of the images.

    Raises:
        UserError: If no stage gives a map.

    .. _Selvaraju et al. 2017: https://arxiv.org/abs/1610.02391
    """
    backbone, size = module.backbone, (images.shape[2], images.shape[3])
    stage = find_map_stage(backbone)
    if stage is None:
        raise UserError("methods: grad_cam needs a stage whose output is a map, and the backbone has none")
    depth = list(backbone.stages).index(stage) + 1
    with torch.no_grad():
        places = nn.Sequential(*list(backbone.stages.values())[:depth])(images)
    places.requires_grad_()
    values = places.clone()  # as the first layer of the rest may work in place
    logits = module(StageOutput(backbone.pool(values) if depth == len(backbone.stages) else values, depth))
    targets = torch.as_tensor(target, device=logits.device).expand(len(logits))
    (gradients,) = torch.autograd.grad(logits.gather(1, targets.unsqueeze(1)).sum(), places)
    if has_channels_last(places.shape):
        places, gradients = (of.permute(0, 3, 1, 2) for of in (places, gradients))
    found = F.relu((gradients.mean(dim=(2, 3), keepdim=True) * places.detach()).sum(dim=1, keepdim=True))
    return F.interpolate(found, size, mode="bilinear")[:, 0]


def integrated_gradients(module: ImageModel, images: Tensor, target: int, steps: int = STEPS) -> Tensor:
    """Integrated gradients from an image of the mean colour (`Sundararajan et al. 2017`_, equation 1).

    The attributions of an image sum to the output for it minus that for the mean colour, but for the error of the sum
    that stands for the integral.

    Args:
        module: The model, in eval mode.
        images: Normalised images ``(B, C, H, W)``.
        target: The output.
        steps: Number of points on the way.

    Returns:
        What each place says for the output, or below 0 against it, ``(B, H, W)``, summed over the channels.

    Raises:
        UserError: If captum is not installed.

    .. _Sundararajan et al. 2017: https://arxiv.org/abs/1703.01365
    """

    def call(images: Tensor) -> Tensor:
        logits: Tensor = module(StageOutput(images, 0))  # as what is between two images need not look normalised
        return logits

    found: Tensor = (
        import_captum()
        .IntegratedGradients(call)
        .attribute(
            images, torch.zeros_like(images), target, n_steps=steps, internal_batch_size=max(_BATCH, len(images))
        )
    )
    return found.sum(dim=1).detach()
