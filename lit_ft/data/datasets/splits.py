"""The data set of each split, made by the arguments that the signature of its class says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from lit_ft.assets import download_dataset
from lit_ft.data.datasets.classes import KEY, DatasetClass
from lit_ft.data.loading.protocols import Split
from lit_ft.errors import UserError
from lit_ft.own_code import UserCodeError, format_own_traceback, format_reason, running_own_code
from lit_ft.rank_zero import rank_zero_warn

SplitArguments = Mapping[Split, Mapping[str, Any]]
"""What the data set of each split is made with, beside the arguments of all."""

_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "trainval", "training", "train-standard"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def check_split_args(given: Mapping[str, Any] | None) -> None:
    """Raises `UserError` for arguments of other splits than there are, or none of those to train on."""
    if given is not None and ("train" not in given or not {*given} <= {"train", "val", "test"}):
        names = ", ".join(given) or "none"
        raise UserError(f"`data.split_args`: has {names}; give train, and perhaps val and test")


def make_splits(
    cls: DatasetClass,
    arguments: Mapping[str, Any],
    by_split: SplitArguments | None = None,
    make: Callable[..., Any] | None = None,
) -> dict[Split, Any]:
    """Makes the data set of each split that there is.

    Args:
        cls: The class.
        arguments: What all are made with.
        by_split: What each is made with, too; where it is not given, the signature tells: by ``train``, true or
            false, or by ``split``, a name. A class with neither has one set, of which splits are held out.
        make: What makes a data set of these; the class itself when not given.

    Raises:
        UserError: It cannot be made; a `UserCodeError` where the user's own class raises.
    """
    make = make or cls.made_by
    chooser = None if by_split else cls.chooser(arguments)
    if chooser == "train":
        by_split = {"train": {"train": True}, "test": {"train": False}}
    found: dict[Split, Any] = {}
    with _refusals(cls, arguments):
        if chooser == "split":
            return _make_named(cls, arguments, make)
        for split, own in (by_split or {"train": {}}).items():
            with _asking(cls, "__init__", split):
                found[split] = make(**{**arguments, **own})
    return found


def fetch_splits(
    cls: DatasetClass, folder: Path, arguments: Mapping[str, Any], by_split: SplitArguments | None
) -> None:
    """Fetches the files of each split into a folder; the arguments are those of `make_splits`.

    Raises:
        UserError: The class cannot fetch them, or it failed.
    """
    if "download" not in cls.parameters:
        raise UserError(f"`data.download`: {cls.name} cannot fetch its files; get them yourself, or leave it out")

    def make(**given: Any) -> Any:
        download_dataset(cls.made_by, folder, **{name: value for name, value in given.items() if name != "download"})
        return cls.made_by(**given)

    make_splits(cls, arguments, by_split, make)


def _make_named(cls: DatasetClass, arguments: Mapping[str, Any], make: Callable[..., Any]) -> dict[Split, Any]:
    """The data sets of the names of splits that the class knows."""
    found: dict[Split, Any] = {}
    chosen = ""
    for split, names in _SPLIT_NAMES.items():
        if split == "val" and chosen == "trainval":  # which has those
            continue
        reason: Exception | None = None
        for name in names:
            with _asking(cls, "__init__", split):
                try:
                    made = make(**arguments, split=name)
                except Exception as error:  # anybody's code can fail in any way
                    if not _knows_no_split(cls, error, name):
                        raise
                    reason = error
                    continue
            with _asking(cls, "__len__", split):
                if split == "train" or len(made):
                    found[split], chosen = made, chosen or name
                    break
        if reason is not None and split not in found and split == "train":
            raise _no_training_split(cls, reason) from reason
        if split not in found and cls.is_own:
            rank_zero_warn(f"{KEY}: {cls.name} has no split called {split}, so it is held out where one is needed")
    return found


def _no_training_split(cls: DatasetClass, reason: Exception) -> UserError:
    line = (
        f"{KEY}: {cls.name} has no split called train ({_reason(reason)}); give the arguments of each: "
        "`data.split_args` '{train: {split: NAME}}'"
    )
    # What says nothing can also be a fault of the user's own.
    return UserCodeError(line, format_own_traceback(reason)) if cls.is_own else UserError(line)


def _knows_no_split(cls: DatasetClass, error: Exception, name: str) -> bool:
    """Whether an exception says that there is no split of a name."""
    kinds: tuple[type[Exception], ...] = (ValueError, LookupError, AssertionError)
    if cls.is_own:  # of which some look for a file of that name
        kinds = (*kinds, FileNotFoundError, NotADirectoryError)
    is_one = isinstance(error, kinds) and not isinstance(error, UserError)  # such as of a download
    return is_one and (name in str(error) or not str(error))


def _asking(cls: DatasetClass, method: str, split: Split) -> AbstractContextManager[None]:
    return running_own_code(KEY, cls.path, f"at {method} of {split}")


@contextmanager
def _refusals(cls: DatasetClass, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Raises what a library raises within as a user error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, (ValueError, TypeError)):
            raise UserError(f"`data.dataset_args`: {cls.name}: {_reason(error)}") from error
        place = arguments.get("root")
        if place is None or isinstance(error, ImportError):
            raise UserError(f"{KEY}: {cls.name} cannot be made ({_reason(error)})") from error
        fetch = "; to fetch what is missing: `data.download` true" if "download" in cls.parameters else ""
        raise UserError(f"`data.root`: {cls.name} cannot be read from {place} ({_reason(error)}){fetch}") from error


def _reason(error: BaseException) -> str:
    """What an exception says, in a line, without the advice to download by an argument of the class."""
    text = format_reason(error)
    kept = [part for part in text.split(". ") if "download=True" not in part]
    return ". ".join(kept).rstrip(".") or text or type(error).__name__
