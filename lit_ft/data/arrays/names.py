"""Names of arrays: which are the images and which the labels of each split, and which the names of the classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from lit_ft.data.files.folders import format_some
from lit_ft.data.loading.protocols import Split
from lit_ft.errors import UserError, unknown
from lit_ft.rank_zero import rank_zero_warn

Role = Literal["images", "labels", "classes"]

_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "t10k": "test",
}  # fmt: skip
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("x", "image", "images", "img", "imgs", "data"), "images"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets"), "labels"),
    **dict.fromkeys(("classes", "categories"), "classes"),
}
_JOINED = re.compile(rf"(?<![a-z0-9])(?:([xy])({'|'.join(_SPLITS)})|({'|'.join(_SPLITS)})([xy]))(?![a-z0-9])")


def read_name(name: str) -> tuple[Split | None, Role | None]:
    """The split and the kind of an array, as far as its name says, by the habits of Keras, MedMNIST and MNIST.

    >>> read_name("x_train"), read_name("val_labels"), read_name("t10k-images"), read_name("class_names")
    (('train', 'images'), ('val', 'labels'), ('test', 'images'), (None, 'classes'))
    """
    if name in ("arr_0", "arr_1"):  # as numpy calls what is given none
        return None, "images" if name == "arr_0" else "labels"
    words = re.findall("[a-z0-9]+", _split_joined(name))
    split = next((_SPLITS[word] for word in words if word in _SPLITS), None)
    kinds: list[Role] = [_ROLES[word] for word in words if word in _ROLES]
    if "classes" in kinds or ("names" in words and {"class", "label", "target"} & {*words}):
        return split, "classes"
    return split, kinds[-1] if kinds else None


def _split_joined(name: str) -> str:
    """A name in small letters, with a space within words such as xtrain and trainImages."""
    return _JOINED.sub(r"\1\3 \2\4", re.sub("(?<=[a-z0-9])(?=[A-Z])", " ", name).lower())


def pair_arrays(
    names: Iterable[str], given: Mapping[Split, Sequence[str]], described: Mapping[str, str], place: str
) -> dict[Split, tuple[str, str]]:
    """The names of images and of labels, by split.

    Args:
        names: The names of all arrays.
        given: Those that the user names; where there are any, nothing else is used.
        described: What each array is called in a message, with its shape.
        place: Where they are.

    Raises:
        UserError: Images or labels of a split are missing, or there are several.
    """
    names = list(names)
    if given:
        return {split: _check_given(split, pair, names, place) for split, pair in given.items()}
    found: dict[tuple[Split, Role], list[str]] = {}
    for name in names:
        split, kind = read_name(name)
        if kind in ("images", "labels"):
            found.setdefault((split or "train", kind), []).append(name)
    if not any(split == "train" for split, _ in found):
        listed = format_some([described[name] for name in names], 8) or "no arrays"
        raise UserError(
            f"`data.root`: {place} has {listed}, and no array is called as train images, such as x_train or "
            "train_images; name images and labels: `data.train` [IMAGES,LABELS]"
        )
    others: list[Split] = ["val", "test"]
    for split in others:
        whole = {kind for kind in ("images", "labels") if (split, kind) in found}
        if len(whole) == 1:
            rank_zero_warn(f"`data.root`: {place} has {whole.pop()} for {split} and not both, so they are not used")
            others = [one for one in others if one != split]
    splits: list[Split] = ["train", *(split for split in others if (split, "images") in found)]
    listed = f"{place} has {format_some([described[name] for name in names], 8)}"
    return {split: (_only(found, split, "images", listed), _only(found, split, "labels", listed)) for split in splits}


def _only(found: Mapping[tuple[Split, Role], list[str]], split: Split, kind: Role, listed: str) -> str:
    """The one array of a kind and split; of several, that which names its split."""
    several = found.get((split, kind), [])
    named = [name for name in several if read_name(name)[0]]
    several = named if len(named) == 1 else several
    if len(several) == 1:
        return several[0]
    what = f"several are {split} {kind}, {format_some(several)}" if several else f"none is called as {split} {kind}"
    raise UserError(f"`data.root`: {listed}: {what}; name the two that are meant: `data.{split}` [IMAGES,LABELS]")


def _check_given(split: Split, pair: Sequence[str], names: Sequence[str], place: str) -> tuple[str, str]:
    if len(pair) != 2:
        raise UserError(f"`data.{split}`: takes two names, of images and of labels, got {', '.join(pair) or 'none'}")
    for name in pair:
        if name not in names:
            raise unknown(f"array of {place}", name, names, f"`data.{split}`")
    return pair[0], pair[1]
