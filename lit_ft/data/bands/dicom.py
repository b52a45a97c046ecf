"""DICOM images by pydicom, in the units that they state."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from lit_ft.data.bands.layout import PixelValues, check_shape, check_size, put_bands_first

_DEFLATED = b"1.2.840.10008.1.2.1.99"
"""The name of the one transfer syntax whose header is compressed, too: it could inflate to any number of bytes."""


GREYS = ("MONOCHROME1", "MONOCHROME2")
"""What DICOM calls images of grey: those where white is the lowest number, and those where black is."""


def read_dicom(file: str | Path | BytesIO) -> PixelValues:
    """The image of a DICOM file, ``(C, H, W)``: 1 band of grey, larger where it is brighter, or 3 of colours.

    Stored numbers are rescaled by slope and intercept, or their table, as those of CT to Hounsfield units. Where white
    is the lowest number (MONOCHROME1), they are inverted before.

    Raises:
        ValueError: It has no image, or several.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels.processing import apply_color_lut, apply_rescale
    except ImportError:
        raise ValueError("DICOM needs pydicom: pip install 'lit_ft[science]'") from None
    content = file.getvalue() if isinstance(file, BytesIO) else Path(file).read_bytes()
    if _DEFLATED in content:
        raise ValueError("deflated DICOM is not read; save it without compression")
    try:
        dataset: Any = pydicom.dcmread(BytesIO(content))
    except InvalidDicomError:
        raise ValueError("it is no DICOM file") from None
    _check_pixels(dataset)
    values = _decode(dataset)
    kind = str(dataset.get("PhotometricInterpretation", ""))
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    elif values.ndim == 2:
        if dataset.get("RescaleSlope") == 0 and "ModalityLUTSequence" not in dataset:
            raise ValueError("its RescaleSlope is 0, by which all of its values would be the same")
        values = apply_rescale(_inverted(values, dataset) if kind == GREYS[0] else values, dataset)
    return check_size(put_bands_first(values))


def name_grey(path: Path) -> str:
    """Which of `GREYS` a DICOM file that can be read is, by its header; nothing of colours."""
    import pydicom

    names: list[Any] = ["PhotometricInterpretation"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual elements, as it was read without them
        kind = str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=names).get(names[0], ""))
    return kind if kind in GREYS else ""


def _check_pixels(dataset: Any) -> None:
    """Raises `ValueError` unless a file has the pixels of one image, and not too many."""
    names = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    if not any(name in dataset for name in names) or not dataset.get("Rows") or not dataset.get("Columns"):
        raise ValueError("DICOM without pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    check_shape((int(dataset.get("SamplesPerPixel") or 1), int(dataset.Rows) * frames, int(dataset.Columns)))
    if frames > 1:
        raise ValueError(f"DICOM of {frames:,} frames; write each to a file of its own")


def _decode(dataset: Any) -> PixelValues:
    try:
        values: PixelValues = dataset.pixel_array
    except RuntimeError as error:
        if "missing dependencies" not in str(error):
            raise
        kind = dataset.file_meta.TransferSyntaxUID.name
        raise ValueError(f"no decoder of {kind} is installed; install pylibjpeg, or save it uncompressed") from error
    samples = int(dataset.get("SamplesPerPixel") or 1)
    tagged = (int(dataset.Rows), int(dataset.Columns), *([samples] if samples > 1 else []))
    if values.shape != tagged:
        sizes = [" x ".join(map(str, shape)) for shape in (values.shape, tagged)]
        raise ValueError(
            f"its tags do not fit its pixels: by BitsAllocated {dataset.get('BitsAllocated')} there are {sizes[0]}, by "
            f"Rows, Columns and SamplesPerPixel {sizes[1]}"
        )
    return values


def _inverted(values: PixelValues, dataset: Any) -> PixelValues:
    """Numbers ``(H, W)`` the other way round within the range of those that are stored."""
    bits = 0 if values.dtype.kind == "f" else int(dataset.get("BitsStored") or 8 * values.itemsize)
    is_signed = values.dtype.kind == "i"
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    return lowest + highest - values.astype(np.float64)
