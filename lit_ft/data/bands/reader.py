"""Files with raw values: TIFF, NumPy arrays, DICOM and ordinary photos as float32 bands, at their full depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lit_ft.backbones.input_spec import Bands, InputSpec
from lit_ft.data.bands.dicom import read_dicom
from lit_ft.data.bands.layout import PixelValues, check_size, put_bands_first, turn_upright
from lit_ft.data.bands.npy import agree_on_bands, of_array, read_npy
from lit_ft.data.bands.tiff import is_tiff, read_tiff
from lit_ft.data.images.decode import DICOM_SUFFIXES, NPY, ORIENTATION, formats, is_dicom, naming_file, suffix_of
from lit_ft.data.images.loss import is_deep_png
from lit_ft.errors import UserError

_HEAD_BYTES = 132  # of which the last four tell a DICOM file
_SOME = 10  # images that are looked at for what all lack


@dataclass(frozen=True)
class BandReader:
    """Reads the raw values of some bands of an image.

    They are float32: it holds whole numbers of 24 bits exactly, torch resizes it on every device, and one type does for
    all files. Of uint16, torch has little more than the name.

    Args:
        bands: Their numbers, from 1, or all.
        count: How many bands a file must have, where all are read; None for any number.
    """

    bands: Bands
    count: int | None = None

    def __call__(self, file: str | Path | BytesIO, name: str | None = None) -> Tensor:
        """The values, float32 ``(C, H, W)``, upright.

        Raises:
            UserError: The file, which may be given by its content, cannot be read, lacks a band, or has values that are
                not finite; ``name``, or else its path, says which.
        """
        with naming_file(file, name):
            suffix = suffix_of(name or ("" if isinstance(file, BytesIO) else str(file)))
            return self._choose(*_read(file, suffix, self._expected))

    @classmethod
    def of(cls, spec: InputSpec) -> BandReader | None:
        """What reads the images that a backbone expects; nothing where these are photos."""
        return None if spec.bands is None else cls(spec.bands, spec.channels)

    def of_picture(self, picture: NDArray[Any] | Tensor | Image.Image) -> Tensor:
        """The same of what a file would hold: an array of any layout of a file, a tensor ``(C, H, W)``, or a photo.

        Raises:
            UserError: It lacks a band, or has values that are not finite.
        """
        with naming_file("pictures", "pictures: an image"):
            if isinstance(picture, Tensor):
                return self._choose(check_size(picture.detach().cpu().numpy()))
            if isinstance(picture, Image.Image):
                return self._choose(_of_photo(picture))
            return self._choose(*of_array(picture, self._expected))

    def size(self, file: str | Path) -> tuple[int, int]:
        """Height and width of an image, which is read for it; raises `UserError` likewise."""
        _, height, width = self(file).shape
        return height, width

    @property
    def _expected(self) -> int | None:
        """The number of bands that an image must have."""
        return self.count if self.bands == "all" else None

    def _choose(self, values: PixelValues, reading: str = "") -> Tensor:
        has, how = len(values), f", its shape {reading}" if reading else ""
        if self.bands == "all":
            if self.count not in (None, has):
                raise ValueError(f"it has {_count(has)}{how}, and {self.count} are expected of each image")
        elif max(self.bands) > has:
            raise ValueError(f"it has {_count(has)}{how}, and band {max(self.bands)} is asked for")
        elif list(self.bands) != [*range(1, has + 1)]:
            values = values[[number - 1 for number in self.bands]]
        with np.errstate(all="ignore"):  # of numbers that are too large, which are not finite then
            chosen = values.astype(np.float32)
        if not np.isfinite(chosen).all():
            raise ValueError("it has values that are not finite, as nan or inf; write numbers in their place")
        return torch.from_numpy(chosen)


def count_bands(files: Sequence[Path]) -> int:
    """The number of bands of the first file that can be read, as of `agree_on_bands` where it is an array.

    Raises:
        UserError: None of them can be read.
    """
    errors = []
    for file in files:
        try:
            has = len(BandReader("all")(file))
            return agree_on_bands(file, files) or has
        except UserError as error:
            errors.append(error)
    raise errors[0] if errors else UserError("`data.bands`: there are no images, whose bands could be counted")


def refuse_missing_bands(paths: Sequence[Path], reader: BandReader) -> None:
    """Raises `UserError` for a band that none of some images has, which are evenly spaced among all.

    Where one has it, it is the others that are wrong, and not the option. Images that cannot be read for another
    reason are not looked at.
    """
    if reader.bands == "all":
        return
    found, most = Path(), 0
    for row in range(0, len(paths), max(1, len(paths) // _SOME)):
        try:
            has = len(BandReader("all")(paths[row]))
        except UserError:
            continue
        if has >= max(reader.bands):
            return
        found, most = (paths[row], has) if has > most else (found, most)
    if most:
        numbers = "1" if most == 1 else f"numbers from 1 to {most}"
        raise UserError(
            f"`data.bands`: {list(reader.bands)}, but the images have {_count(most)}, such as {found}; give {numbers}, "
            "or all"
        )


def _count(number: int) -> str:
    return f"{number} band{'s' if number > 1 else ''}"


def _read(file: str | Path | BytesIO, suffix: str, count: int | None) -> tuple[PixelValues, str]:
    """All bands of a file, ``(C, H, W)``, by what it holds, and of an array how it was read."""
    if isinstance(file, BytesIO):
        file.seek(0)
    match name_format(file, suffix):
        case "NumPy":
            return read_npy(file, count)
        case "DICOM":
            return read_dicom(file), ""
        case "TIFF":
            return _read_tiff(file), ""
    return _read_photo(file), ""


def _read_tiff(file: str | Path | BytesIO) -> PixelValues:
    """A TIFF by tifffile, or where its compression is none of those that give no more than is asked for, by Pillow."""
    found = read_tiff(file)
    if not isinstance(found, str):
        return found
    try:
        return _read_photo(file)
    except (OSError, ValueError) as error:
        is_known = not isinstance(error, UnidentifiedImageError)
        reason = str(error) if is_known else "its bits, bands or compression are unknown to Pillow"
        advice = f"TIFF with compression {found} is left to Pillow; save it with LZW, Deflate or none"
        raise ValueError(f"{reason}; {advice}") from error


def name_format(file: str | Path | BytesIO, suffix: str) -> str:
    """What a file is, by its first bytes and its suffix; empty where it may be a photo."""
    if isinstance(file, BytesIO):
        head = file.getvalue()[:_HEAD_BYTES]
    else:
        with open(file, "rb") as opened:
            head = opened.read(_HEAD_BYTES)
    if head.startswith(NPY) or suffix == ".npy":
        return "NumPy"
    if suffix in DICOM_SUFFIXES or is_dicom(head):  # whose first 128 bytes may be those of a TIFF
        return "DICOM"
    return "TIFF" if is_tiff(head) else ""


def _read_photo(file: str | Path | BytesIO) -> PixelValues:
    """A photo by Pillow; transparency is a band of its own."""
    with Image.open(file, formats=formats()) as image:
        is_deep = image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and is_deep_png(image)
        return _of_photo(image, _read_deep_png(file) if is_deep else None)


def _of_photo(image: Image.Image, values: NDArray[Any] | None = None) -> PixelValues:
    """The values of a photo, or others of its size, upright."""
    orientation = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)  # Pillow turns TIFF itself
    if values is None:
        if image.mode not in ("L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        values = np.asarray(image)
    return turn_upright(check_size(put_bands_first(values)), orientation)


def _read_deep_png(file: str | Path | BytesIO) -> NDArray[Any]:
    """A PNG with colours of 16 bits, of which Pillow reads 8; its size has been checked by Pillow."""
    try:
        import imagecodecs
    except ImportError:
        raise ValueError("PNG of 16-bit colours needs imagecodecs: pip install 'lit_ft[science]'") from None
    content = file.getvalue() if isinstance(file, BytesIO) else Path(file).read_bytes()
    found: NDArray[Any] = imagecodecs.png_decode(content)
    return found
