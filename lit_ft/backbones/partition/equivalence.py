"""Equivalence of a network and its pieces: a graph shows only which tensors go where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.cut import Pieces
from lit_ft.backbones.partition.meta import in_eval_mode
from lit_ft.errors import UserError

_ELSE = "let a module within a stage do so"


def check_same(module: nn.Module, pieces: Pieces, spec: InputSpec) -> None:
    """Refuses pieces that differ from the whole network in result or gradients, for any weights.

    Constants that were computed of weights or drawn at random while the network was traced, branches on the training
    mode and contexts such as ``torch.no_grad`` are not in a graph. All weights are moved for the comparison, and
    restored.

    Args:
        module: The whole network.
        pieces: The same, cut.
        spec: The images that it takes.

    Raises:
        UserError: If they differ, or the network asks whether it is training where that would be lost.
    """
    chain = nn.Sequential(*pieces.stages.values(), pieces.pool, pieces.classifier)
    title = type(module).__name__
    with torch.random.fork_rng(), _moved(module), in_eval_mode(module, chain):
        torch.manual_seed(0)
        images = torch.randn(2, spec.channels, spec.size, spec.size)
        whole, cut = _outcome(module, module, images), _outcome(chain, module, images)
        _refuse_asking(module, chain, images)
    same = [
        one.shape == two.shape and torch.allclose(one, two, 1e-4, 1e-6, True)
        for one, two in zip(whole, cut, strict=True)
    ]
    if not all(same):
        raise UserError(
            f"`model.backbone`: {title} gives something else once it is cut: between its stages it computes with "
            f"weights or random numbers alone, or within a context such as torch.no_grad; {_ELSE}"
        )


def takes_channels_last(module: nn.Module, spec: InputSpec) -> bool:
    """Whether a network works on images whose channels lie together in memory, which is faster for convolutions."""
    images = torch.zeros(2, spec.channels, spec.size, spec.size).contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad(), in_eval_mode(module):
            module(images)
    except RuntimeError:  # such as "view size is not compatible with input tensor's size and stride"
        return False
    return True


def _outcome(run: nn.Module, module: nn.Module, images: Tensor) -> list[Tensor]:
    """The result for some images, and its gradients by the weights; zero where there are none."""
    torch.manual_seed(1)
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    result = run(images.clone())
    if not result.requires_grad:
        return [result, *(torch.zeros_like(weight) for weight in weights)]
    gradients = torch.autograd.grad(result.square().mean(), weights, allow_unused=True)
    found = zip(weights, gradients, strict=True)
    return [result.detach(), *(torch.zeros_like(w) if gradient is None else gradient for w, gradient in found)]


@contextmanager
def _moved(module: nn.Module) -> Iterator[None]:
    """Moves every weight and statistic a little, so that none is what it was when the network was traced."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    kept = [tensor.detach().clone() for tensor in tensors]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for tensor in tensors:
                # Upwards where it is positive, as variances must stay.
                tensor.mul_(1.05 + 0.05 * torch.rand(tensor.shape, generator=generator).to(tensor)).add_(0.01)
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)


class _AskedError(Exception):
    """Raised where a module asks whether it is training."""


class _Mode:
    """Stands for the training mode of a module."""

    def __bool__(self) -> bool:
        raise _AskedError


def _refuse_asking(module: nn.Module, chain: nn.Module, images: Tensor) -> None:
    """Refuses a network in which a module that was traced into asks for its mode, which the caller restores."""
    graphs = [piece.graph for piece in chain if isinstance(piece, fx.GraphModule)]  # type: ignore[attr-defined]
    whole = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"}
    for name, part in module.named_modules():
        if not any(name == kept or name.startswith(f"{kept}.") for kept in whole):
            vars(part)["training"] = _Mode()
    try:
        with torch.no_grad():
            module(images.clone())
    except (_AskedError, TypeError) as error:  # a TypeError of what was handed the mode, such as a function for dropout
        raise UserError(
            f"`model.backbone`: {type(module).__name__} asks between its stages whether it is training, which a chain "
            f"of stages cannot; {_ELSE}, such as nn.Dropout"
        ) from error
