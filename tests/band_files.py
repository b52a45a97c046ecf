"""Writes images of bands in the formats of science: TIFF, NumPy arrays and DICOM."""

import io

import numpy as np
import pydicom
import tifffile
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

CHUNKY = {"photometric": "minisblack", "planarconfig": "contig"}


def numbers(shape=(6, 5, 4), dtype=np.uint16, seed=0):
    """Random numbers ``(H, W, C)`` of the whole range of a type."""
    drawn = np.random.default_rng(seed).random(shape)
    if np.dtype(dtype).kind == "f":
        return (drawn * 100 - 50).astype(dtype)
    facts = np.iinfo(dtype)
    return (facts.min + drawn * (float(facts.max) - facts.min)).astype(dtype)


def save_tiff(path, values, **options):
    values = values[..., 0] if values.shape[2:] == (1,) else values
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, **{**(CHUNKY if values.ndim == 3 else {}), **options})
    return path


def lie(path, **tags):
    """Overwrites tags of a TIFF."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value)
    return path


def dicom(values, photometric="MONOCHROME2", bits=16, **elements):
    """Stored numbers ``(H, W)`` as the content of a DICOM file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, photometric
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * values.itemsize, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    content = io.BytesIO()
    pydicom.dcmwrite(content, data, enforce_file_format=True)
    return content.getvalue()


def save_set(root, each=15, shift=0, side=28):
    """Two classes of TIFF, ``(side, side, 4)`` of uint16, that differ in the low 8 bits of band 4 alone.

    With a ``shift``, so many bits are left out.
    """
    rng = np.random.default_rng(0)
    for kind, most in (("calm", 20), ("rough", 200)):
        for i in range(each):
            values = rng.integers(0, 4000, (side, side, 4)).astype(np.uint16)
            values[..., 3] = 2816 + rng.integers(0, most, (side, side))  # 11 * 256
            save_tiff(root / kind / f"{i:02d}.tif", values >> shift)
    return root
