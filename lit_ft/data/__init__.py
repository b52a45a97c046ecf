"""Image sets as Lightning data modules: uint8 images, in an order that a resumed run continues."""

from lit_ft.data.modules.array_files import ImageArrayDataModule
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.modules.cifar import CIFAR10DataModule
from lit_ft.data.modules.dataset import ImageDatasetDataModule
from lit_ft.data.modules.folder import ImageFolderDataModule
from lit_ft.data.modules.mnist import DigitsDataModule, MNISTToEMNISTDataModule
from lit_ft.data.modules.stream import StreamDataModule
from lit_ft.data.modules.table import ImageTableDataModule

__all__ = [
    "CIFAR10DataModule",
    "DigitsDataModule",
    "ImageArrayDataModule",
    "ImageDataModule",
    "ImageDatasetDataModule",
    "ImageFolderDataModule",
    "ImageTableDataModule",
    "MNISTToEMNISTDataModule",
    "StreamDataModule",
]
