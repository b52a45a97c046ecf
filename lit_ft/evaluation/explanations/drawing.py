"""Pictures of explanations: photos with their evidence as colours."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lit_ft.data.bands.preview import stretch
from lit_ft.evaluation.explanations.maps import Explanation, Map, place

SIDE = 224
"""Longer side of a picture, in pixels."""

COLOURS = "inferno"
"""Name of matplotlib's colours from no to most evidence, which those who see few colours can tell apart."""

_BLUR = 0.02
"""Deviation by which integrated gradients, which are of single pixels, are blurred, as a share of the side."""

_TOP_SHARE = 0.998
"""Share of the pixels whose integrated gradients are not beyond the scale."""

_UNSEEN = 0.3
"""How bright the part of a photo is that does not enter the network."""


def draw_small(image: Tensor, side: int = SIDE) -> Image.Image:
    """A photo, uint8 or raw ``(C, H, W)``, as a picture in three colours whose longer side has so many pixels."""
    image = stretch(image) if image.is_floating_point() else image
    pixels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    photo = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    scale = side / max(photo.size)
    small = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    return photo.resize(small, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def scale_evidence(values: Map, method: str) -> Map:
    """Evidence from 0 to 1 in the image that enters the network; what speaks against the target is 0."""
    if method == "integrated_gradients":
        from scipy.ndimage import gaussian_filter  # slow to load

        values = gaussian_filter(values, _BLUR * len(values))
    least = values.min() if method == "attention_rollout" else 0.0  # of shares none is 0
    above = np.clip(values - least, 0, None)
    # Of gradients, single pixels may be far above all others.
    most = np.quantile(above, _TOP_SHARE) if method == "integrated_gradients" else above.max()
    return np.asarray(np.clip(above / most, 0, 1) if most > 0 else above, np.float32)


def draw_evidence(photo: Image.Image, explanation: Explanation, method: str) -> Image.Image:
    """A small photo, grey, with the evidence in colours; what the network does not see is dark.

    Args:
        photo: The photo, as `draw_small` gives it.
        explanation: Its explanation.
        method: The map.
    """
    from matplotlib import colormaps

    size = (photo.height, photo.width)
    scaled = scale_evidence(explanation.maps[method], method)
    heat = place(scaled, explanation.seen_at(size), size, outside=math.nan)[..., None]
    grey: NDArray[np.float64] = np.asarray(photo.convert("L"), np.float64)[..., None] / 255
    colours = colormaps[COLOURS](np.nan_to_num(heat[..., 0]))[..., :3]
    share = 0.3 + 0.55 * heat
    pixels = np.where(np.isnan(heat), _UNSEEN * grey, (1 - share) * grey + share * colours)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def legend() -> str:
    """The colours from no to most evidence, as a gradient of CSS."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    stops = torch.linspace(0, 1, 9).tolist()
    return f"linear-gradient(90deg,{','.join(to_hex(colormaps[COLOURS](stop)) for stop in stops)})"
