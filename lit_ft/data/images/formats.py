"""Image formats: which Pillow may open, and which files are images, by their suffix or by how they begin."""

from __future__ import annotations

import re
from functools import lru_cache

from PIL import Image

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
SIGNATURE_BYTES = 16

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
    also = {"JPEG": "MPO"}  # which Pillow opens as a JPEG first
    names = {*formats(), *(also[name] for name in formats() if name in also)}
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in names)


def suffix_of(name: str) -> str:
    """What stands behind the last dot of a file's name, with it and in small letters; nothing where there is no dot.

    >>> suffix_of("a.b/IMG_1.JPG"), suffix_of("a.b/IMG_1"), suffix_of("IMG_1.")
    ('.jpg', '', '.')
    """
    place = name.rfind(".")
    return name[place:].lower() if place > max(name.rfind("/"), name.rfind("\\")) else ""


def is_image(path: str) -> bool:
    """Whether a file, no pipe or device, is an image: by its suffix, or where that says nothing by its content."""
    suffix = suffix_of(path)
    if suffix in image_suffixes():
        return True
    if suffix in _OTHER_SUFFIXES or suffix in _HEIF_SUFFIXES:
        return False
    head = _head(path)
    return bool(_SIGNATURE.match(head)) or ("HEIF" in formats() and bool(_HEIF.match(head)))


def is_unread_heif(suffix: str, head: bytes = b"") -> bool:
    """Whether a file, by its suffix or its first bytes, is one that could be read with the extra ``heic``."""
    return "HEIF" not in formats() and (suffix in _HEIF_SUFFIXES or bool(_HEIF.match(head)))


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(SIGNATURE_BYTES)
    except OSError:  # what may not be read is not taken for an image
        return b""
