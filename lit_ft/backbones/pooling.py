"""Decides how the last stage's output, a map or tokens, becomes one vector an image."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

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
        """Averages."""
        return places[:, self.start : self.stop].mean(dim=self.axes)


class ClassToken(nn.Module):
    """Tokens ``(B, N, D)`` -> the first of them ``(B, D)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Takes the first token."""
        return tokens[:, 0]


def make_pool(
    pool: Pool, own: nn.Module, shapes: tuple[int, int], prefix_tokens: int, channels_last: bool
) -> nn.Module:
    """From the last stage's output to features ``(B, D)``.

    Args:
        pool: The network's ``own``, the mean (``avg``) over all places, ``flatten``, or the class ``token``.
        own: The network's own pooling; where that leaves places, the mean over them follows, or over the tokens that
            are no patches, where there are such.
        shapes: The number of axes of the last stage's output, and of that of ``own``.
        prefix_tokens: The number of tokens that are no patches; the first of them is the class token.
        channels_last: Whether maps are ``(B, h, w, D)``.

    Raises:
        UserError: If the last stage's output cannot be pooled so.
    """
    axes, own_axes = shapes
    if pool == "own":
        if own_axes == 2:
            return own
        if own_axes == 3 and prefix_tokens:  # the classifier takes several of these tokens, and no patches
            return nn.Sequential(own, Mean((1,), stop=prefix_tokens))
        return nn.Sequential(own, make_pool("avg", own, (own_axes, 2), prefix_tokens, channels_last))
    if pool == "flatten":
        return nn.Flatten()
    if pool == "token":
        if axes != 3 or not prefix_tokens:
            raise UserError("--model.pool: token: the network has no class token; choose own or avg")
        return ClassToken()
    if axes == 3:
        return Mean((1,), prefix_tokens)
    if axes != 4:
        raise UserError(f"--model.pool: avg: the last stage gives no map or tokens, but {axes} axes; choose own")
    return Mean((1, 2)) if channels_last else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
