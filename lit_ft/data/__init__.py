"""Image sets as Lightning data modules: uint8 images, in an order that a resumed run continues."""

from lit_ft.data.base import ImageDataModule
from lit_ft.data.cifar import CIFAR10DataModule
from lit_ft.data.digits import DigitsDataModule
from lit_ft.data.folder import ImageFolderDataModule
from lit_ft.data.mnist import MNISTToEMNISTDataModule
from lit_ft.data.stream import StreamDataModule
from lit_ft.data.table import ImageTableDataModule

__all__ = [
    "CIFAR10DataModule",
    "DigitsDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageTableDataModule",
    "MNISTToEMNISTDataModule",
    "StreamDataModule",
]
