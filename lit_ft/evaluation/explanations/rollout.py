"""Attention rollout: which patches the features of a vision transformer are mixed from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_ft.backbones.backbone import Backbone, stage_costs
from lit_ft.errors import UserError
from lit_ft.model.image_model import ImageModel


def can_roll_out(backbone: Backbone) -> bool:
    """Whether all tokens of a backbone attend to each other in each of its layers, as in a ViT; from one pass."""
    if len(stage_costs(backbone)[-1].shape) != 2:  # tokens and their channels
        return False
    weight = next(backbone.parameters())
    images = torch.zeros_like(backbone.spec.meta_images(), device=weight.device, dtype=weight.dtype)
    tokens, found = _pass(backbone, images)
    return _is_of(tokens, found)


def roll_out(attention: Sequence[Tensor]) -> Tensor:
    """The share of each first token in each last one ``(B, N, N)``, whose rows sum to 1 (`Abnar and Zuidema 2020`_).

    It is the product of ``(A + I) / 2`` over the layers, the identity being the skip connections.

    Args:
        attention: The attention of each layer, first to last, mean over the heads, ``(B, N, N)`` with rows that sum
            to 1.

    .. _Abnar and Zuidema 2020: https://arxiv.org/abs/2005.00928
    """
    mixed = torch.eye(attention[0].shape[-1], device=attention[0].device).expand_as(attention[0])
    for layer in attention:
        layer = layer.float() / layer.float().sum(dim=-1, keepdim=True)  # in half precision rows sum to nearly 1
        mixed = (layer @ mixed + mixed) / 2
    return mixed


def attention_rollout(module: ImageModel, images: Tensor, target: int) -> Tensor:
    """The share of each patch in the features of a ViT, enlarged to the size of the images.

    Args:
        module: The model, in eval mode.
        images: Normalised images ``(B, C, H, W)``.
        target: Not asked for: attention is the same for all outputs.

    Returns:
        Shares ``(B, H, W)`` in the places of the patches; before they are enlarged, these sum to 1 without the tokens
        that are no patches.

    Raises:
        UserError: If the backbone is no such transformer.
    """
    tokens, attention = _pass(module.backbone, images)
    if not _is_of(tokens, attention):
        raise UserError("methods: attention_rollout is for transformers whose tokens all attend to each other")
    shares = (_read_by_pool(module.backbone, tokens).unsqueeze(1) @ roll_out(attention)).squeeze(1)
    side = isqrt(tokens.shape[1])  # the tokens before the patches, such as that of the class, are fewer than a row
    patches = shares[:, tokens.shape[1] - side * side :].reshape(-1, 1, side, side)
    enlarged: Tensor = F.interpolate(patches, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return enlarged


def _pass(backbone: Backbone, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output of the last stage for images, and the attention of each layer."""
    with torch.no_grad(), _recorded(backbone) as attention:
        outputs = backbone.activations(images)
    return next(reversed(outputs.values())), attention


def _is_of(tokens: Tensor, attention: Sequence[Tensor]) -> bool:
    """Whether attention is that of all tokens ``(B, N, D)`` to each other, in each layer."""
    if tokens.ndim != 3 or not attention:
        return False
    shape = (tokens.shape[0], tokens.shape[1], tokens.shape[1])
    return all(layer.shape == shape for layer in attention)


def _read_by_pool(backbone: Backbone, tokens: Tensor) -> Tensor:
    """How much the pooling takes of each token ``(B, N)``, with a sum of 1: one of them, or the mean, or any weights.

    It is the length of the gradient of the features, of a random sum of them: after a norm their own sum is constant.
    """
    tokens = tokens.detach().requires_grad_()
    features = backbone.pool(tokens)
    signs = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0)).to(features)
    (gradient,) = torch.autograd.grad((features @ signs).sum(), tokens)
    taken: Tensor = gradient.norm(dim=-1)
    return taken / taken.sum(dim=1, keepdim=True)


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[Tensor]]:
    """Gathers the attention of each layer, mean over the heads, in the order in which they are computed.

    torch's layer gives its weights where it is asked to. Those of timm give theirs to a dropout, unless one function
    does it all.
    """
    found: list[Tensor] = []

    def ask(_layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": True}

    with ExitStack() as stack:
        for layer in network.modules():
            given: Any = layer
            if isinstance(layer, nn.MultiheadAttention):
                stack.callback(layer.register_forward_pre_hook(ask, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(lambda _m, _in, out: found.append(out[1])).remove)
            elif hasattr(layer, "fused_attn") and isinstance(getattr(layer, "attn_drop", None), nn.Module):
                stack.callback(setattr, layer, "fused_attn", given.fused_attn)
                given.fused_attn = False
                hook = given.attn_drop.register_forward_hook(lambda _m, _in, out: found.append(out.mean(dim=1)))
                stack.callback(hook.remove)
        yield found
