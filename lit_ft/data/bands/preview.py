"""Pictures of raw values, for people: the first three bands, each stretched between two percentiles."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_PERCENTILES = (2, 98)
_MOST_PIXELS = 1 << 16
"""Percentiles are of so many pixels, evenly spaced."""


def stretch(values: Tensor) -> Tensor:
    """Raw or normalised values ``(..., C, H, W)`` as uint8 ``(..., 3, H, W)``; grey unless there are three bands."""
    shown = values[..., :3, :, :] if values.shape[-3] >= 3 else values[..., :1, :, :]
    bands = shown.detach().cpu().float().reshape(-1, shown.shape[-2] * shown.shape[-1])
    some = bands[:, :: max(1, bands.shape[1] // _MOST_PIXELS)].numpy()
    low, high = (torch.from_numpy(found)[:, None] for found in np.percentile(some, _PERCENTILES, axis=1))
    scaled = (bands - low) / (high - low).masked_fill(high <= low, 1.0)
    pixels = (scaled * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.reshape(shown.shape).expand(*shown.shape[:-3], 3, -1, -1)


def draw_bands(values: Tensor) -> Image.Image:
    """Raw values ``(C, H, W)`` as a picture in three colours."""
    return Image.fromarray(stretch(values).permute(1, 2, 0).contiguous().numpy())
