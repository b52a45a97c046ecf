"""Decides how an image file becomes pixels: upright, in three colours, of whatever format it is."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lit_ft.errors import UserError


def decode(file: Path | BytesIO, name: str | None = None) -> Tensor:
    """Reads an image as uint8 ``(3, H, W)``, upright, transparent parts white, the first frame if there are several.

    Pillow reads all formats: torchvision's own decoders are no faster, know fewer, and are deprecated since 0.29.

    Args:
        file: Where it is, or its content.
        name: What an error calls it; a path when not given.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual metadata, once an image and epoch
            with Image.open(file) as opened:
                image = _rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # a damaged file raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name or file}: cannot be read as an image ({reason}); mend or remove it") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut all above 255 off
        return Image.fromarray((np.array(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        visible = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible).convert("RGB")
    return image.convert("RGB")
