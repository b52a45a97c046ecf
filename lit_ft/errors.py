"""Decides how a user's mistake is told: one line that names the key, what was given, and what to change."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from importlib import metadata

# Libraries put other things in backquotes.
_SECTIONS = (
    "model|data|trainer|unfreeze|checkpoint|early_stopping|feature_cache|report|predictions|optimizer|lr_scheduler|"
    "seed_everything|ckpt_path|folder|offline"
)
_OPTION = re.compile(rf"`((?:{_SECTIONS})(?:\.\w+)*)`")


class UserError(ValueError):
    """An error that the user can correct; its message is the one line they read.

    Options are named as in a config, in backquotes. In Python the message is without these, and on the command line
    `for_command_line` makes flags of them.

    >>> str(UserError("`model.lr`: must be above 0, got -1"))
    'model.lr: must be above 0, got -1'
    """

    def __str__(self) -> str:
        return plain(super().__str__())


def plain(text: str) -> str:
    """A message with the names of options as they are."""
    return _OPTION.sub(r"\1", text)


def for_command_line(text: str) -> str:
    """A message with options in backquotes as flags.

    >>> for_command_line("`model.lr`: must be above 0, got -1")
    '--model.lr: must be above 0, got -1'
    """
    return _OPTION.sub(r"--\1", text)


# Joiners within a word, which some scripts and emoji need; all other characters of format are invisible or turn the
# text around.
_JOINERS = "\u200c\u200d"


def printable(text: str, lines: bool = False) -> str:
    r"""Text from data as a terminal may show it: what would act upon the terminal, or hide, is spelt out.

    Args:
        text: Such as the name of a file or class, which may hold anything.
        lines: Whether its line breaks are ours, and stay.

    >>> print(printable("\x1b[2J"), printable("a\nb"), printable("\u202egnp.exe"))
    \x1b[2J a\nb \u202egnp.exe
    """
    if text.isprintable():
        return text
    kept = _JOINERS + "\n" if lines else _JOINERS
    return "".join(sign if sign in kept or not _acts(sign) else sign.encode("unicode_escape").decode() for sign in text)


def _acts(sign: str) -> bool:
    """Whether a character is a control, a format such as a bidirectional override, half of a pair, or ends a line."""
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def nearest(given: str, choices: Iterable[str], most: int = 3) -> list[str]:
    """The choices most like ``given``, best first.

    >>> nearest("resnet5", ["resnet50", "vgg16", "resnet152"], most=1)
    ['resnet50']
    """
    return difflib.get_close_matches(given, list(choices), n=most, cutoff=0.4)


def unknown(what: str, given: str, choices: Iterable[str], key: str | None = None) -> UserError:
    """The error for a name that is not among the choices.

    Args:
        what: What kind of thing was named, such as ``backbone``.
        given: The name that the user wrote.
        choices: All names that would have been right.
        key: The option under which the user wrote it.

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
    try:
        torch, torchvision = metadata.version("torch"), metadata.version("torchvision")
    except metadata.PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run: pip install torch torchvision") from error
    pins = [re.match(r"torch\s*\(?==\s*([^\s;)]+)", line) for line in metadata.requires("torchvision") or []]
    wanted = next((pin[1] for pin in pins if pin), None)
    if wanted is not None and torch.split("+")[0] != wanted:
        raise _mismatch(torch, torchvision, wanted)
    try:
        import torchvision as _  # noqa: F401
    except (RuntimeError, ImportError, OSError) as error:
        if "torch" not in str(error):
            raise
        raise _mismatch(torch, torchvision, wanted or torch.split("+")[0]) from error


def _mismatch(torch: str, torchvision: str, wanted: str) -> UserError:
    return UserError(
        f"torch {torch} and torchvision {torchvision} do not belong together: torchvision {torchvision} is built for "
        f"torch {wanted}; run: pip install --force-reinstall torch=={wanted} torchvision=={torchvision.split('+')[0]}"
    )
