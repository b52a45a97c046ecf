"""Data module of CIFAR-10, whose pickles are read without running code."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lit_ft.assets import data_root, download_dataset
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Augment
from lit_ft.data.modules.arrays import HeldOutArrayDataModule, Parsed
from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FOLDER = "cifar-10-batches-py"

_MOST_BYTES = 1 << 26
"""Most bytes of a file when it is unpacked; each of the published ones has 31 million."""

_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]


def _empty_array(_: Any, shape: Any, dtype: Any) -> Any:
    """The array that a pickle fills afterwards; any other shape would take memory that the pickle does not have."""
    if shape != (0,):
        raise pickle.UnpicklingError(f"an array begins with the shape {shape}")
    return _RECONSTRUCT(np.ndarray, shape, dtype)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding} is not allowed in it")
    return text.encode("latin1")


# How numpy rebuilds an array; the module they live in changed its name in numpy 2.
_ALLOWED: dict[str, Any] = {
    "_reconstruct": _empty_array,
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "ndarray": None,  # only ever handed to the first
    "dtype": np.dtype,
    "encode": _latin1,
}
_ALLOWED_MODULES = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric",
                    "numpy._core.numeric", "_codecs"}  # fmt: skip


class _ArrayUnpickler(pickle.Unpickler):
    """Admits arrays, lists, dicts, text and numbers. A pickle can otherwise run any code when it is loaded."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _ALLOWED_MODULES and name in _ALLOWED:
            return _ALLOWED[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it")


def read_pickle(path: Path) -> tuple[dict[str, Any], str]:
    """A pickled dict of arrays, lists, dicts, text and numbers, plain or gzipped, and the MD5 sum of the pickle.

    Raises:
        UserError: The file is missing, or holds anything else.
    """
    packed = path.with_name(path.name + ".gz")
    if not path.is_file() and not packed.is_file():
        raise UserError(f"`data.root`: missing file {path} (or {packed.name}); to fetch it: `data.download` true")
    try:
        with path.open("rb") if path.is_file() else gzip.open(packed) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        for code, number, _ in pickletools.genops(data):
            # Beyond its own length: a list of so many would be made.
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and cast(int, number) > len(data):
                raise pickle.UnpicklingError(f"it numbers an object {number}")
        content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        # Pickles of Python 3 may have their keys in bytes.
        content = {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a CIFAR-10 file ({reason})") from error
    return content, hashlib.md5(data, usedforsecurity=False).hexdigest()


def images_and_targets(content: dict[str, Any], path: Path) -> tuple[Tensor, Tensor]:
    """The images, uint8 ``(N, 3, 32, 32)``, and targets, int64 ``(N,)``, of a batch file, checked."""
    data: Any = content.get("data")
    labels: Any = content.get("labels") if isinstance(content.get("labels"), list) else []
    is_bytes = isinstance(data, np.ndarray) and data.dtype == np.uint8
    if not (is_bytes and data.ndim == 2 and len(data) and data.shape[1] == 3072):
        raise UserError(f"{path}: not a CIFAR-10 file (its 'data' is no uint8 array of images, 3072 columns each)")
    if len(labels) != len(data):
        raise UserError(f"{path}: {len(labels)} labels for {len(data)} images")
    if not all(isinstance(label, (int, np.integer)) and 0 <= label < len(CLASS_NAMES) for label in labels):
        raise UserError(f"{path}: labels are not all from 0 to {len(CLASS_NAMES) - 1}")
    images = torch.from_numpy(np.ascontiguousarray(data)).view(-1, 3, 32, 32)
    return images, torch.tensor(labels, dtype=torch.int64)


class CIFAR10DataModule(HeldOutArrayDataModule):
    """Small photos of 10 kinds of things (CIFAR-10), 50,000 to train on and 10,000 to test, 32x32 in colour.

    Args:
        root: Folder with ``cifar-10-batches-py`` (default: the environment variable LIT_FT_DATA, or ``data``).
        verify: Refuse files whose checksum is not the published one, rather than warn.
        download: Fetch the files when they are missing.
        augment: ``basic`` pads by 4 pixels, crops 32x32 at random and mirrors half of the images. ``trivial`` moves
            by up to 32 pixels, which leaves some images black.
        **common: The options of every array data module.
    """

    class_names = CLASS_NAMES
    test_name = "CIFAR10/test"
    basic_augment = ShiftFlip(shift=4, flip=True)

    def __init__(
        self,
        root: str | None = None,
        verify: bool = False,
        download: bool = False,
        augment: Augment = "basic",
        **common: Any,
    ) -> None:
        super().__init__(augment=augment, **common)
        self.root = data_root(root)
        self.verify = verify
        self.download = download

    def prepare_data(self) -> None:
        """Fetches the files when asked to and one is missing."""
        if self.download and self.missing_files():
            from torchvision.datasets import CIFAR10

            download_dataset(CIFAR10, self.root / FOLDER, root=str(self.root))

    def files(self) -> dict[Path, str | None]:
        """The seven files of the archive, and torchvision's address of it."""
        from torchvision.datasets.cifar import CIFAR10

        return {self.root / FOLDER / name: CIFAR10.url for name in published_md5()}

    def parse(self) -> Parsed:
        """Reads all files, and their checksums."""
        folder, names = self.root / FOLDER, sorted(published_md5())  # batches.meta, data_batch_1 to 5, test_batch
        contents, sums = zip(*(read_pickle(folder / name) for name in names), strict=True)
        if (classes := contents[0].get("label_names")) != CLASS_NAMES:
            raise UserError(f"{folder / names[0]}: not CIFAR-10: its classes are {classes}")
        parts = [images_and_targets(content, folder / n) for n, content in zip(names[1:], contents[1:], strict=True)]
        images, targets = zip(*parts[:-1], strict=True)
        return (torch.cat(images), torch.cat(targets)), parts[-1], {"md5": dict(zip(names, sums, strict=True))}

    def is_parsed(self, arrays: dict[str, Tensor], facts: dict[str, Any]) -> bool:
        """Whether these are arrays and facts that `parse` may have given."""
        sums = facts.get("md5")
        is_ours = isinstance(sums, dict) and sums.keys() == published_md5().keys()
        return is_ours and super().is_parsed(arrays, facts) and arrays["test_images"].shape[1:] == (3, 32, 32)

    def check(self, facts: dict[str, Any]) -> None:
        """Warns of files whose checksum is not the published one, or refuses them."""
        published = published_md5()
        if altered := [name for name, md5 in facts["md5"].items() if md5 != published[name]]:
            message = f"{self.root / FOLDER}: checksums differ from the published ones: {', '.join(altered)}"
            if self.verify:
                raise UserError(f"`data.verify`: {message}")
            rank_zero_warn(f"{message}; to refuse such files: `data.verify` true")


def published_md5() -> dict[str, str]:
    """MD5 sum of each file of the official archive, from torchvision."""
    from torchvision.datasets import CIFAR10

    return {**dict(CIFAR10.train_list + CIFAR10.test_list), CIFAR10.meta["filename"]: CIFAR10.meta["md5"]}
