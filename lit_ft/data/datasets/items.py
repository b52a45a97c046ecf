"""Images that a data set of torch gives one by one, as a split whose images are read when they are needed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torchvision.transforms.v2.functional import to_pil_image

from lit_ft.data.arrays.pixels import channels_first, order_channels, to_bytes
from lit_ft.data.arrays.targets import Values
from lit_ft.data.datasets.classes import KEY
from lit_ft.data.files.derived_cache import hash_tensors
from lit_ft.data.fingerprint import digest
from lit_ft.data.images.decode import to_pixels
from lit_ft.data.pages import encode_thumbnail
from lit_ft.errors import UserError, is_from_user_code
from lit_ft.own_code import format_reason, refuse_own_fault
from lit_ft.rank_zero import rank_zero_warn

_STAMPED = 16
"""Images of a split by which a change of the data set shows."""


@dataclass(frozen=True)
class Reader:
    """Reads the items of a data set of torch.

    Where it is the user's own, what its code raises is a `UserCodeError`.

    Args:
        dataset: The data set.
        path: The dotted path of its class.
        split: The split that it is.
    """

    dataset: Any
    path: str
    split: str

    @property
    def what(self) -> str:
        """What it is called in a message."""
        return f"{self.path.rpartition('.')[2]} ({self.split})"

    def __len__(self) -> int:
        """Number of items."""
        with self.reading("__len__"):
            return len(self.dataset)

    def attribute(self, name: str) -> Any:
        """An attribute of the data set; None where it has none of that name."""
        with self.reading(name):
            try:
                return getattr(self.dataset, name)
            except AttributeError as error:
                # A property with a fault, or one of a data set that wraps another one, which has none.
                if inspect.getattr_static(self.dataset, name, None) is not None and is_from_user_code(error):
                    rank_zero_warn(
                        f"{KEY}: {name} of {self.what} raised AttributeError ({error}), so it is taken for missing"
                    )
                return None

    def read(self, index: int) -> tuple[Any, Any]:
        """The image and the target of an item, as the data set has them.

        Raises:
            UserError: It cannot be read, or is another thing.
        """
        try:
            item = self.dataset[index]
        except BaseException as error:  # not by `reading`, which takes longer than many a path does
            self._refuse(error, f"item {index}")
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            found = f"{len(item)} things" if isinstance(item, (tuple, list)) else f"of type {type(item).__name__}"
            raise UserError(f"{KEY}: item {index} of {self.what} is {found}, and not an image and its target")
        return item[0], item[1]

    def read_value(self, index: int) -> Any:
        """The target of an item, whose image is one; it is None where there is no target."""
        image, target = self.read(index)
        with self.reading(f"item {index}"):
            self.to_photo(image, index)
        return self.to_value(target, index)

    def to_value(self, target: Any, index: int) -> Any:
        """The target of an item as numbers, text, an array of them, or None."""
        try:
            value = plain_value(target)
            np.ndim(value)
        except Exception as error:  # as its type can be the user's own, too
            self._refuse(error, f"item {index}")
        return value

    def to_photo(self, image: Any, index: int) -> Tensor:
        """The image of an item, of Pillow, numpy or torch, as uint8 ``(3, H, W)``.

        Raises:
            UserError: It is another thing, or float with other values than from 0 to 1.
        """
        what = f"the image of item {index} of {self.what}"
        if isinstance(image, Image.Image):
            try:
                return to_pixels(image)
            except UserError as error:
                raise UserError(f"{KEY}: {what}: {error.args[0]}") from error
        if not isinstance(image, (Tensor, np.ndarray)):
            raise UserError(f"{KEY}: {what} is of type {type(image).__name__}; give one of Pillow, numpy or torch")
        values = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
        values = values if values.flags.writeable else values.copy()  # torch warns of others, as Pillow gives
        if isinstance(image, Tensor) and values.ndim == 3 and values.shape[0] in (1, 3):  # as torch has channels
            values = values.transpose(1, 2, 0)
        channels_first((1, *values.shape), KEY, what)
        return to_bytes(order_channels(values[None]), KEY, what)[0].expand(3, -1, -1)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Raises what is raised within as a user error."""
        try:
            yield
        except BaseException as error:
            self._refuse(error, what)

    def _refuse(self, error: BaseException, what: str) -> NoReturn:
        """Raises what it means that ``what`` cannot be read; interrupts stay as they are."""
        refuse_own_fault(error, KEY, self.path, f"at {what} of {self.split}")
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise error
        reason = format_reason(error) or type(error).__name__
        raise UserError(f"{KEY}: {what} of {self.what} cannot be read ({reason})") from error


class Items(Dataset[Tensor]):
    """The images of a data set, of which each must have the target that it had when all targets were read.

    Args:
        reader: Reads them.
        values: The target of each, as the data set has them.
    """

    def __init__(self, reader: Reader, values: Values) -> None:
        self.reader = reader
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Tensor:
        image, target = self.reader.read(index)
        with self.reader.reading(f"item {index}"):
            if not np.array_equal(np.asarray(plain_value(target)), self.values[index]):
                raise UserError(
                    f"{KEY}: item {index} of {self.reader.what} now has the target {target!r}, and had "
                    f"{self.values[index]!r} before; a data set must give the same each time"
                )
            return self.reader.to_photo(image, index)


@dataclass(frozen=True)
class ItemSplit:
    """Some of the items of a data set.

    Args:
        items: The images of all items, each uint8 ``(3, H, W)``.
        name: What they are called.
        rows: Which of them belong to the split, int64 ``(N,)``.
        targets: The targets of these, ``(N,)`` or ``(N, K)``.
    """

    items: Dataset[Tensor]
    name: str
    rows: Tensor
    targets: Tensor

    groups: ClassVar[None] = None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: Tensor) -> ItemSplit:
        """The split of these images of this one."""
        return replace(self, rows=self.rows[rows], targets=self.targets[rows])

    def join(self, other: ItemSplit) -> ItemSplit:
        """The split of these images, followed by others."""
        items, rows = self.items, other.rows
        if other.items is not items:
            items, rows = ConcatDataset([items, other.items]), rows + len(items)
        targets = torch.cat([self.targets, other.targets])
        return replace(self, items=items, rows=torch.cat([self.rows, rows]), targets=targets)

    def indexed(self) -> ItemSplit:
        """The same images, with their position as the target."""
        return replace(self, targets=torch.arange(len(self)))

    def open(self, row: int) -> tuple[Tensor, str]:
        """An image, uint8 ``(3, H, W)``, and what it is called in a message."""
        return self.image(row), f"item {int(self.rows[row])} of {self.name}"

    def image(self, row: int) -> Tensor:
        """An image, uint8 ``(3, H, W)``."""
        return self.items[int(self.rows[row])]

    def thumbnail(self, row: int) -> str:
        """A small JPEG of an image in base 64."""
        return encode_thumbnail(to_pil_image(self.image(row)))

    def stamp(self) -> str:
        """What changes with the images: a hash of which they are, of their targets, and of some of them."""
        some = torch.linspace(0, len(self) - 1, min(_STAMPED, len(self))).round().long()
        return f"{self.name} {hash_tensors([self.rows, self.targets, *map(self.image, some.tolist())])}"

    def names_digest(self) -> str:
        """A hash of the rows."""
        return digest([self.rows.numpy().tobytes()])

    def first_image(self) -> tuple[str, bytes]:
        """The row of the first image, and what it holds."""
        return f"{int(self.rows[0]):012}", self.image(0).contiguous().numpy().tobytes()


def plain_value(target: Any) -> Any:
    """A target of any type as numbers, text, an array of them, or None; bytes are text in UTF-8."""
    if isinstance(target, Tensor):
        target = target.detach().cpu().numpy()
    if isinstance(target, bytes):
        return target.decode("utf-8")
    if isinstance(target, np.ndarray) and target.dtype.kind == "S":
        target = np.char.decode(target, "utf-8")
    return target[()] if isinstance(target, np.ndarray) and target.ndim == 0 else target


def stack_values(values: Sequence[Any], what: str) -> Values | None:
    """The targets of all items as one array ``(N,)`` or ``(N, K)``; None where no item has one.

    Raises:
        UserError: Some have none, or they are of several kinds or lengths.
    """
    without = [i for i, value in enumerate(values) if value is None]
    if len(without) == len(values):
        return None
    if without:
        raise UserError(f"{KEY}: {len(without):,} items of {what} have no target, first item {without[0]}")
    kinds = {str if isinstance(value, (str, bytes)) else int if np.ndim(value) == 0 else list for value in values}
    try:
        if len(kinds) > 1:
            raise ValueError("some are numbers, others text or lists")
        stacked = np.asarray(values)
        if stacked.dtype.kind not in "biufSU" or stacked.ndim > 2:
            raise ValueError(f"the first is {str(values[0])[:60]}")
    except ValueError as error:
        raise UserError(
            f"{KEY}: the targets of {what} are not numbers, names or rows of numbers ({str(error)[:200]})"
        ) from error
    return stacked
