"""Whose fault an exception is: a mistake in an option, the user's own code, or a disk that is full."""

from __future__ import annotations

import errno
import os
import re
import site
import sysconfig
import threading
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_ft.errors import UserError

_INSTALLED = ("site-packages", "dist-packages")
_SHARED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")] + [
    Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())
]
_OURS = [folder.resolve() for folder in (*_SHARED, Path(__file__).parent)]

# Of what lit_ft is made of; a class path in a config that begins with another name is of the user's own package.
_BASE = frozenset(
    {"lit_ft", "lightning", "pytorch_lightning", "torch", "torchvision", "torchmetrics", "timm", "litdata"}
)

_FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))

# As in the traceback that a worker process hands on as text.
_FRAME = re.compile(r'^\s*File "([^"]+)", line \d+', re.MULTILINE)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came of, each once: ``raise e from e`` makes a circle."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def mistake_behind(error: BaseException | None) -> UserError | None:
    """The user's mistake that an exception wraps: jsonargparse and Lightning raise their own in its stead.

    What the user's own code raised in its stead is no wrapping, but a fault of that code.
    """
    for link in chain(error):
        if isinstance(link, UserError):
            return link
        if _passed_own_file(link, ()):
            return None
    return None


def is_of_own_code(error: BaseException, packages: Collection[str] = ()) -> bool:
    """Whether an exception, or one that it came of, was raised in the user's own code, or passed through it.

    That is any file that belongs neither to lit_ft, nor to the standard library, nor to the installed packages, but for
    those of the user.

    Args:
        error: The exception.
        packages: The user's own among the installed packages, as `own_packages` finds them.
    """
    return any(_passed_own_file(link, packages) for link in chain(error))


def is_of_checkpoint(error: BaseException) -> bool:
    """Whether an exception was raised as Lightning took up what a checkpoint holds."""
    frames = [frame for link in chain(error) for frame in traceback.extract_tb(link.__traceback__)]
    places = [(Path(frame.filename).name, frame.name.lstrip("_")) for frame in frames]
    return any(file == "checkpoint_connector.py" and name.startswith("restore") for file, name in places)


def own_packages(config: Any) -> set[str]:
    """The packages of the classes that a config names, but for those that lit_ft is made of."""
    if isinstance(config, str):
        return set()
    if not isinstance(config, Mapping):
        return {name for item in config for name in own_packages(item)} if isinstance(config, (list, tuple)) else set()
    path = config.get("class_path")
    named = {path.partition(".")[0]} - _BASE if isinstance(path, str) and "." in path else set()
    return named | {name for item in config.values() for name in own_packages(item)}


def full_disk(error: BaseException | None) -> OSError | None:
    """What an exception came of if a disk, or what a user may have of it, is full."""
    return next((link for link in chain(error) if isinstance(link, OSError) and link.errno in _FULL), None)


@contextmanager
def names_file(path: Path | str) -> Iterator[None]:
    """Names the file that cannot be written, of which Python says nothing where a disk is full.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Lets no thread print that a disk is full: TensorBoard's raises the same again where it is next written to."""
    hook = threading.excepthook

    def quiet(failed: threading.ExceptHookArgs) -> None:
        if full_disk(failed.exc_value) is None:
            hook(failed)

    threading.excepthook = quiet
    try:
        yield
    finally:
        threading.excepthook = hook


def _passed_own_file(error: BaseException, packages: Collection[str]) -> bool:
    frames: Iterable[str] = (frame.filename for frame in traceback.extract_tb(error.__traceback__))
    return any(_is_own(file, packages) for file in (*frames, *_FRAME.findall(str(error))))


def _is_own(file: str, packages: Collection[str]) -> bool:
    if not Path(file).is_file():  # made of a string, as dataclasses make their methods, or by Cython
        return False
    parts = Path(file).parts
    for folder in _INSTALLED:
        if folder in parts[:-1]:
            return parts[parts.index(folder) + 1].removesuffix(".py") in packages
    place = Path(os.path.realpath(file))
    return not any(place.is_relative_to(folder) for folder in _OURS)
