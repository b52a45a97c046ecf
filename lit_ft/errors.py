"""User errors: one line that names the option, what was given, and what to change; and whose fault an exception is."""

from __future__ import annotations

import difflib
import errno
import re
import site
import sysconfig
import traceback
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

_SECTIONS = (
    "model|data|trainer|unfreeze|checkpoint|early_stopping|feature_cache|report|predictions|optimizer|lr_scheduler|"
    "seed_everything|ckpt_path|resume|name|folder|backbones|budget|refit|offline|nodes|devices|precision|bandwidth|"
    "step_seconds|tune|epochs|batch_size|image_size|folds|seed|config"
)
# Libraries put other things in backquotes, so that what begins with no section has the dashes of a flag there.
_OPTION = re.compile(rf"`(?:((?:{_SECTIONS})(?:\.\w+)*)|--([^`\s]+))`")


class UserError(ValueError):
    """An error that the user can correct; its message is the one line they read.

    Options are named as in a config, in backquotes. In Python the message is without these, and on the command line
    `for_command_line` makes flags of them.

    >>> str(UserError("`model.lr`: must be above 0, got -1"))
    'model.lr: must be above 0, got -1'
    """

    has_trained = False
    """Whether it came after a step of a training, and not before on all processes of a run alike."""

    def __str__(self) -> str:
        return plain(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """The line alone, where IPython asks what to show of it; `%debug` still has its place."""
        return [f"{type(self).__name__}: {printable(' '.join(str(self).split()))}"]


class LibraryError(UserError):
    """What a library raised over options; the command line adds how to see where."""


def plain(text: str) -> str:
    """A message with the names of options as they are."""
    return _OPTION.sub(r"\1\2", text)


def for_command_line(text: str) -> str:
    """A message with options in backquotes as flags.

    >>> for_command_line("`--modle.lr`: there is no such option; nearest: `model.lr`")
    '--modle.lr: there is no such option; nearest: --model.lr'
    """
    return _OPTION.sub(r"--\1\2", text)


_PASSWORD = re.compile(r"(:/+[^/@:\s]*:).*@|(\bpassw(?:or)?d=)[^&\s]*")


def hide_passwords(text: str) -> str:
    """A text without the passwords in its URLs.

    >>> hide_passwords("there is no postgresql://me:secret@host/studies")
    'there is no postgresql://me:...@host/studies'
    """
    return _PASSWORD.sub(lambda found: f"{found[1]}...@" if found[1] else f"{found[2]}...", text)


# Controls, formats such as a bidirectional override, halves of pairs, and ends of lines.
_ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str, lines: bool = False) -> str:
    r"""Text from data as a terminal may show it: what would act upon it, or hide, is spelt out; ``lines`` keeps breaks.

    >>> print(printable("\x1b[2J"), printable("a\nb"), printable("\u202egnp.exe"))
    \x1b[2J a\nb \u202egnp.exe
    """
    if text.isprintable():
        return text
    kept = "\u200c\u200d" + "\n" * lines  # joiners within a word, which some scripts and emoji need
    acting = {sign for sign in text if sign not in kept and unicodedata.category(sign) in _ACTING}
    return "".join(sign.encode("unicode_escape").decode() if sign in acting else sign for sign in text)


def nearest(given: str, choices: Iterable[str], most: int = 3) -> list[str]:
    """The choices most like ``given``, best first.

    >>> nearest("resnet5", ["resnet50", "vgg16", "resnet152"], most=1)
    ['resnet50']
    """
    return difflib.get_close_matches(given, list(choices), n=most, cutoff=0.4)


def unknown(what: str, given: str, choices: Iterable[str], key: str | None = None) -> UserError:
    """The error for a name that is not among the choices for ``what`` it names, given under the option ``key``.

    >>> str(unknown("stage", "layer5", ["layer4", "head"], key="`unfreeze.phases`"))
    "unfreeze.phases: unknown stage 'layer5'; nearest: layer4 (choose from layer4, head)"
    """
    names = list(choices)
    close = nearest(given, names)
    message = f"{key + ': ' if key else ''}unknown {what} {given!r}"
    if close:
        message += f"; nearest: {', '.join(close)}"
    if names and len(names) <= 12:
        message += f" (choose from {', '.join(names)})"
    return UserError(message)


def check_torchvision() -> None:
    """Raises `UserError` where the installed torch and torchvision were not built for one another.

    A torchvision wheel states the one torch release it was compiled against. With any other, importing it ends in
    ``operator torchvision::nms does not exist``, which tells nobody what to install.
    """
    from importlib import metadata  # slow to load, and `lit-ft --help` does without it

    try:
        torch, torchvision = metadata.version("torch"), metadata.version("torchvision")
    except metadata.PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run: pip install torch torchvision") from error
    pins = [re.match(r"torch\s*\(?==\s*([^\s;)]+)", line) for line in metadata.requires("torchvision") or []]
    release = torch.split("+")[0]
    wanted = next((pin[1] for pin in pins if pin), release)
    cause: Exception | None = None
    if wanted == release:
        try:
            import torchvision as _  # noqa: F401

            return
        except (RuntimeError, ImportError, OSError) as error:
            if "torch" not in str(error):
                raise
            cause = error
    raise UserError(
        f"torch {torch} and torchvision {torchvision} do not belong together: torchvision {torchvision} is built for "
        f"torch {wanted}; run: pip install --force-reinstall torch=={wanted} torchvision=={torchvision.split('+')[0]}"
    ) from cause


# What lit_ft is made of; a class path in a config that begins with another name is of the user's own package.
_BASE = {"lit_ft", "lightning", "pytorch_lightning", "torch", "torchvision", "torchmetrics", "timm", "litdata"}

_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}

# As in the traceback that a worker process hands on as text.
_FRAME = re.compile(r'^\s*File "([^"]+)", line \d+', re.MULTILINE)


def iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that caused it, each once: ``raise e from e`` makes a circle."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def find_user_error(error: BaseException | None) -> UserError | None:
    """The user error that an exception wraps: jsonargparse and Lightning raise their own instead of it.

    An exception that the user's own code raised instead of it wraps nothing: it is a fault of that code.
    """
    for cause in iterate_causes(error):
        if isinstance(cause, UserError):
            return cause
        if _passed_user_file(cause, ()):
            return None
    return None


def is_from_user_code(error: BaseException, packages: Collection[str] = ()) -> bool:
    """Whether an exception, or one that caused it, was raised in the user's own code, or passed through it.

    That is any file that belongs neither to lit_ft, nor to the standard library, nor to the installed packages, except
    those of the user, ``packages``, as `find_user_packages` finds them.
    """
    return any(_passed_user_file(cause, packages) for cause in iterate_causes(error))


def find_user_packages(config: Any) -> set[str]:
    """The packages of the classes that a config names, except those that lit_ft is made of."""
    named: set[str] = set()
    if isinstance(config, Mapping):
        paths = [path for path in (config.get("class_path"), config.get("dataset")) if isinstance(path, str)]
        named = {path.partition(".")[0] for path in paths if "." in path} - _BASE
        config = list(config.values())
    return named.union(*map(find_user_packages, config if isinstance(config, (list, tuple)) else ()))


def find_full_disk(error: BaseException | None) -> OSError | None:
    """The error of a disk, or of a user's share of it, that is full, if that caused an exception."""
    causes = iterate_causes(error)
    return next((cause for cause in causes if isinstance(cause, OSError) and cause.errno in _FULL), None)


@contextmanager
def refuse_unwritable(path: Path | str) -> Iterator[None]:
    """Raises a `UserError` with the file that cannot be written, which Python does not name where a disk is full."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _passed_user_file(error: BaseException, packages: Collection[str]) -> bool:
    if any(_is_user_frame(frame, packages) for frame, _ in traceback.walk_tb(error.__traceback__)):
        return True
    faulty = [error.filename] if isinstance(error, SyntaxError) and error.filename else []
    return any(_is_user_file(file, packages) for file in (*faulty, *_FRAME.findall(text_of(error))))


def _is_user_frame(frame: FrameType, packages: Collection[str]) -> bool:
    file = frame.f_code.co_filename
    if not Path(file).is_file():  # such as a cell of a notebook
        return frame.f_globals.get("__name__") == "__main__"
    return _is_user_file(file, packages)


def text_of(error: BaseException) -> str:
    """What an exception says; nothing where it cannot."""
    try:
        return str(error)
    except Exception:  # anybody's exception can fail in any way
        return ""


def _is_user_file(file: str, packages: Collection[str]) -> bool:
    if not Path(file).is_file():  # made of a string, as dataclasses make their methods, or by Cython
        return False
    parts = Path(file).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts[:-1]:
            return parts[parts.index(folder) + 1].removesuffix(".py") in packages
    return not any(Path(file).resolve().is_relative_to(folder) for folder in _library_folders())


@cache
def _library_folders() -> tuple[Path, ...]:
    shared = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    folders = [*shared, *site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent)]
    return tuple(Path(folder).resolve() for folder in folders)
