"""Image sets as Lightning data modules: uint8 images, in an order that a resumed run continues."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_ft.data.modules.array_files import ImageArrayDataModule as ImageArrayDataModule
    from lit_ft.data.modules.base import ImageDataModule as ImageDataModule
    from lit_ft.data.modules.cifar import CIFAR10DataModule as CIFAR10DataModule
    from lit_ft.data.modules.dataset import ImageDatasetDataModule as ImageDatasetDataModule
    from lit_ft.data.modules.folder import ImageFolderDataModule as ImageFolderDataModule
    from lit_ft.data.modules.mnist import DigitsDataModule as DigitsDataModule
    from lit_ft.data.modules.mnist import MNISTToEMNISTDataModule as MNISTToEMNISTDataModule
    from lit_ft.data.modules.stream import StreamDataModule as StreamDataModule
    from lit_ft.data.modules.table import ImageTableDataModule as ImageTableDataModule

_HOMES = {
    "CIFAR10DataModule": "cifar",
    "DigitsDataModule": "mnist",
    "ImageArrayDataModule": "array_files",
    "ImageDataModule": "base",
    "ImageDatasetDataModule": "dataset",
    "ImageFolderDataModule": "folder",
    "ImageTableDataModule": "table",
    "MNISTToEMNISTDataModule": "mnist",
    "StreamDataModule": "stream",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a data module when it is first used: who predicts photos does without it, and without Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_ft.data' has no attribute {name!r}", name=name)
    globals()[name] = made = getattr(import_module(f"lit_ft.data.modules.{_HOMES[name]}"), name)
    return made
