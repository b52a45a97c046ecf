"""Pooling: from the last stage's output, a map or tokens, to one vector an image."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lit_ft.backbones.partition.chain import Network
from lit_ft.backbones.partition.cut import Pieces
from lit_ft.errors import UserError

Pool = Literal["own", "avg", "flatten", "token"]


class Mean(nn.Module):
    """The mean over some axes, from a place on: a map ``(B, h, w, D)`` or tokens ``(B, N, D)`` -> ``(B, D)``.

    Args:
        axes: The axes over which the mean is taken.
        start: The first token that counts; those before it are no patches.
        stop: The first that counts no more.
    """

    def __init__(self, axes: tuple[int, ...], start: int = 0, stop: int | None = None) -> None:
        super().__init__()
        self.axes = axes
        self.start = start
        self.stop = stop

    def forward(self, places: Tensor) -> Tensor:
        """Averages over the axes."""
        return places[:, self.start : self.stop].mean(dim=self.axes)


class ClassToken(nn.Module):
    """Tokens ``(B, N, D)`` -> the first of them ``(B, D)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Takes the first token."""
        return tokens[:, 0]


def make_pool(pool: Pool, pieces: Pieces, network: Network) -> nn.Module:
    """From the last stage's output to features ``(B, D)``.

    Args:
        pool: The network's ``own``, the mean (``avg``) over all places, ``flatten``, or the class ``token``. Where its
            own leaves places, the mean over them follows, or over the tokens that are no patches, where there are such.
        pieces: The network, cut.
        network: Has the layout of its maps and tokens.

    Raises:
        UserError: If the last stage's output cannot be pooled so.
    """
    axes, own_axes = pieces.axes
    if pool == "own":
        if own_axes == 2:
            return pieces.pool
        if own_axes == 3 and network.prefix_tokens:  # the classifier takes several of these tokens, and no patches
            return nn.Sequential(pieces.pool, Mean((1,), stop=network.prefix_tokens))
        return nn.Sequential(pieces.pool, _average(own_axes, network))
    if pool == "flatten":
        return nn.Flatten()
    if pool == "token":
        if axes != 3 or not network.class_token:
            raise UserError("`model.pool`: token: the network has no class token; choose own or avg")
        return ClassToken()
    return _average(axes, network)


def _average(axes: int, network: Network) -> nn.Module:
    if axes == 3:
        return Mean((1,), network.prefix_tokens)
    if axes != 4:
        raise UserError(f"`model.pool`: avg: the last stage gives no map or tokens, but {axes} axes; choose own")
    return Mean((1, 2)) if network.channels_last else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
