"""Image files: which are images, by their suffix or how they begin, and decoding them upright, in three colours."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from textwrap import shorten

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    TiffImageFile,
)
from torch import Tensor

from lit_ft.compat import reuse_image_memory
from lit_ft.errors import UserError

reuse_image_memory()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what it logs of damaged files

ORIENTATION = 0x0112  # the EXIF tag

DECODING = 2
"""Number of the way in which `decode` makes pixels of files; raised with each change of these."""

READ_BY = f"{DECODING} {PIL.__version__} {torch.__version__} {torchvision.__version__}"
"""What resized pixels depend on, besides a file: they cannot be promised across versions."""

# Pixels and nothing else, most frequent first. Not what runs another program (EPS: Ghostscript), holds a document or
# data (PSD, FITS, HDF5), needs a handler (WMF, GRIB), or is recognised by nothing of its own. TGA has no signature
# either and so comes last. HEIF comes with the extra `heic`.
_FORMATS = (
    "JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "HEIF", "PPM", "DIB", "DDS", "ICO", "ICNS", "MSP",
    "PCD", "PCX", "QOI", "SGI", "SUN", "XBM", "XPM", "TGA",
)  # fmt: skip

_HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
_HEIF = re.compile(rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
HEIC_ADVICE = "HEIC: pip install 'lit_ft[heic]' reads it"

# How files of the formats that photos come in begin; those of others are known by their suffix alone.
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]|BM.{4}\0{4}|.{4}ftypavi[fs]|qoif"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
_SIGNATURE_BYTES = 16
_DICOM_BYTES = 132
_LONGEST = 200  # characters of a reason, of which some libraries give pages
NPY = b"\x93NUMPY"  # how a file of NumPy begins
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Suffixes that say of a file that it is no photo to be read, so that nobody has to look into it. Raw formats are among
# them: as TIFF, Pillow would read the thumbnail in them.
_OTHERS = (
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .raw .rw2 .sr2 .srf .srw .x3f .thm"
    " .ai .eps .fit .fits .pdf .ps .psb .psd .svg .xcf .dcm .nii .mat .h5 .hdf .hdf5"
    " .avi .m4v .mkv .mov .mp3 .mp4 .mpeg .mpg .wav .webm"
    " .7z .bz2 .gz .lmdb .rar .tar .tfrecord .tgz .xz .zip .zst"
    " .aae .bak .cfg .conf .csv .dat .db .doc .docx .htm .html .ini .ipynb .js .json .jsonl .log .m .md .ods .odt"
    " .parquet .pickle .pkl .py .r .rst .rtf .sh .sqlite .tex .toml .torrent .tsv .txt .url .xlsx .xml .xmp .yaml .yml"
    " .ckpt .npy .npz .onnx .pt .pth .safetensors .crdownload .part .tmp"
)
_OTHER_SUFFIXES = frozenset(_OTHERS.split())

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
RAW_SUFFIXES = DICOM_SUFFIXES | {".npy"}
"""Suffixes of files that are images where raw values of bands are read, and else none."""

RAW_ADVICE = "`data.bands` reads .npy and .dcm"


@lru_cache(1)
def formats() -> tuple[str, ...]:
    """The formats that Pillow may open, as it is installed here."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@lru_cache(1)
def image_suffixes() -> frozenset[str]:
    """The suffixes of these formats, in small letters."""
    names = {*formats(), "MPO"}  # which Pillow opens as a JPEG first
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in names)


def suffix_of(name: str) -> str:
    """What stands behind the last dot of a file's name, with it and in small letters; nothing where there is no dot.

    >>> suffix_of("a.b/IMG_1.JPG"), suffix_of("a.b/IMG_1"), suffix_of("IMG_1.")
    ('.jpg', '', '.')
    """
    place = name.rfind(".")
    return name[place:].lower() if place > max(name.rfind("/"), name.rfind("\\")) else ""


def is_image(path: str, raw: bool = False) -> bool:
    """Whether a file, no pipe or device, is an image: by its suffix, or where that says nothing by its content.

    Args:
        path: The file.
        raw: Whether raw values of bands are read, and so arrays and DICOM are images, too.
    """
    suffix = suffix_of(path)
    if suffix in image_suffixes() or (raw and suffix in RAW_SUFFIXES):
        return True
    if suffix in _OTHER_SUFFIXES or suffix in _HEIF_SUFFIXES:
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_DICOM_BYTES if raw else _SIGNATURE_BYTES)
    except OSError:  # what may not be read is not taken for an image
        return False
    is_known = bool(_SIGNATURE.match(head)) or ("HEIF" in formats() and bool(_HEIF.match(head)))
    return is_known or (raw and is_dicom(head))


def is_dicom(head: bytes) -> bool:
    """Whether a file is DICOM, by its first 132 bytes; few of them have a suffix."""
    return head[128:_DICOM_BYTES] == b"DICM"


def is_unread_heif(suffix: str, head: bytes = b"") -> bool:
    """Whether a file, by its suffix or its first bytes, is one that could be read with the extra ``heic``."""
    return "HEIF" not in formats() and (suffix in _HEIF_SUFFIXES or bool(_HEIF.match(head)))


def decode(file: str | Path | BytesIO, name: str | None = None, least: int = 0) -> Tensor:
    """Reads an image as uint8 ``(3, H, W)``, upright, transparent parts white, the first frame if there are several.

    Pillow reads all formats: torchvision's own decoders know fewer, and are deprecated since 0.29. Images of more
    pixels than Pillow deems safe (179 million, unless ``PIL.Image.MAX_IMAGE_PIXELS`` says otherwise) are refused.
    With ``least``, a JPEG is decoded at a half, a quarter or an eighth of its size where each side then has so many.

    Raises:
        UserError: The file, which may be given by its content, cannot be read; ``name``, or else its path, says which.
    """
    with open_image(file, name) as image:
        if least and isinstance(image, JpegImageFile):
            shrink = next((factor for factor in (8, 4, 2) if min(image.size) >= factor * least), 1)
            image.draft(None, (image.width // shrink, image.height // shrink))
        return to_tensor(turn_upright(image))


def to_pixels(image: Image.Image) -> Tensor:
    """An image of Pillow as `decode` gives it; it is not changed. Raises `UserError` likewise."""
    with naming_file("an image of Pillow", None):
        return to_tensor(turn_upright(image.copy(), is_negative(image)))


def upright_size(file: Path) -> tuple[int, int]:
    """Height and width of the decoded image, from the file's header alone; raises `UserError` like `decode`."""
    with open_image(file, None) as image:
        if image.format == "TIFF":
            image.load()  # turns it; before, not every Pillow has its final size
        return size_upright(image)


@contextmanager
def open_image(file: str | Path | BytesIO, name: str | None) -> Iterator[Image.Image]:
    """The image, not yet decoded. Whatever fails within is raised as an error of the file."""
    with naming_file(file, name), Image.open(file, formats=formats()) as image:
        _refuse_mistaken(image)
        yield image


@contextmanager
def naming_file(file: str | Path | BytesIO, name: str | None) -> Iterator[None]:
    """Raises whatever fails within as a `UserError` of the file, also that a part of it is missing."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        # Whatever the rest of the program says, what is missing must not be filled with grey.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual metadata, once an image and epoch
            yield
    except FileNotFoundError as error:
        raise UserError(
            f"{name or file}: cannot be read as an image (it is not there any more); put it back"
        ) from error
    except Exception as error:  # a damaged file raises nearly anything
        raise UserError(
            f"{name or file}: cannot be read as an image ({why_unread(file, error)}); fix or remove it"
        ) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def why_unread(file: str | Path | BytesIO, error: Exception) -> str:
    """Why a file, or its content, cannot be read as an image, in a line; from what was raised."""
    if not isinstance(error, UnidentifiedImageError) and "raw mode" not in str(error):
        return shorten(str(error), _LONGEST, placeholder=" …") or type(error).__name__
    if isinstance(file, BytesIO):
        suffix, head = "", file.getvalue()[:_SIGNATURE_BYTES]
    else:
        with open(file, "rb") as opened:
            suffix, head = suffix_of(str(file)), opened.read(_SIGNATURE_BYTES)
    if head[:4] in _TIFF:
        return "a TIFF of bits, bands or a compression that Pillow does not know; `data.bands` reads any bits and bands"
    if head.startswith(NPY) or suffix in (".npy", ".npz"):
        part = "[NAME]" if suffix == ".npz" else ""
        return f"it holds arrays, and no photo; in Python: lit_ft.load(RUN).predict(numpy.load(FILE){part})"
    return HEIC_ADVICE if is_unread_heif(suffix, head) else "its format is not known"


def is_turned(image: Image.Image) -> bool:
    """Whether an image that is not yet decoded will be turned."""
    # Pillow turns TIFF itself as it loads it.
    return image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) in range(2, 9)


def size_upright(image: Image.Image) -> tuple[int, int]:
    """Height and width that an image, which is not yet decoded, will have upright; not of a TIFF."""
    turned = is_turned(image) and image.getexif()[ORIENTATION] >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def is_negative(image: Image.Image) -> bool:
    """Whether white is 0 in an image: Pillow inverts such a TIFF of 8 bits, but not one of 16."""
    if not isinstance(image, TiffImageFile):
        return False
    return image.mode.startswith("I;16") and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def turn_upright(image: Image.Image, negative: bool | None = None) -> Image.Image:
    """The image turned upright, in three colours, transparent parts white; ``negative`` is that of a copied file."""
    negative = is_negative(image) if negative is None else negative
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = _grey(np.asarray(image), negative, image.info.get("transparency"))
    elif image.has_transparency_data:
        visible = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """The pixels of an image in three colours, uint8 ``(3, H, W)``."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _grey(values: np.ndarray, negative: bool, transparent: int | None) -> Image.Image:
    """Eight bits of numbers of 16 bits, or of fractions; Pillow would cut off all above 255."""
    is_float = values.dtype.kind == "f"
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= (1 if is_float else 65535)):  # nor nan
        scale = "from 0 to 1" if is_float else "of 16 bits"
        raise ValueError(f"its values are from {lowest:g} to {highest:g}, and should be {scale}")
    pixels = (np.round(values * 255) if is_float else values >> 8).astype(np.uint8)
    if transparent is not None:
        pixels[values == transparent] = 255
    return Image.fromarray(255 - pixels if negative else pixels)


def _refuse_mistaken(image: Image.Image) -> None:
    """Raises `ValueError` for a TIFF with a plane for each band of which Pillow gives pixels that are not its own.

    It takes the first bytes of planes of 16 bits, not compressed, for those of 8, and the first of two planes for both.
    """
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PLANAR_CONFIGURATION) == 2:
        is_deep = max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8 and image.tag_v2.get(COMPRESSION, 1) == 1
        if is_deep or image.mode == "LA":
            raise ValueError(
                "a TIFF with planes that Pillow mistakes; save it with tifffile.imwrite(FILE, values, "
                "planarconfig='contig'); `data.bands` reads it as it is"
            )
