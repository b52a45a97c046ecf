"""Cache, between runs, of arrays and facts that are derived from data files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_ft.assets import cache_folder, name_unfinished
from lit_ft.rank_zero import rank_zero_warn

_HASHED_ROWS = 4096

Derived = tuple[dict[str, Tensor], dict[str, Any]]  # arrays by name, and plain facts about them


def change_time(facts: os.stat_result) -> int:
    """When a file or folder was last changed, in nanoseconds."""
    # Not by its mtime, which programs that copy or unpack set back; but on Windows, where ctime is another thing.
    return facts.st_mtime_ns if os.name == "nt" else facts.st_ctime_ns


def file_stamp(path: str | Path) -> list[Any]:
    """What changes when a file does: path, size and time of the last change; raises ``OSError`` where it is gone."""
    facts = os.stat(path)
    return [str(path), facts.st_size, change_time(facts)]


def file_stamp_number(path: str) -> int:
    """The stamp as a number of 64 bits, never 0, for very many files."""
    _, size, time = file_stamp(path)
    digest = hashlib.blake2b(b"%d %d " % (size, time) + os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """A hash of the values of some tensors, wherever they lie."""
    total = hashlib.sha256()
    for tensor in tensors:
        # Part by part, as each is copied where it is not contiguous, and all may be more than fits into memory.
        for part in torch.split(tensor.detach(), _HASHED_ROWS) if tensor.ndim else (tensor.detach(),):
            total.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def match_layout(arrays: Mapping[str, Tensor], like: Mapping[str, tuple[torch.dtype, int]]) -> bool:
    """Whether arrays have just these names, types and numbers of dimensions."""
    return {name: (array.dtype, array.ndim) for name, array in arrays.items()} == dict(like)


def load_or_derive(name: str, key: str, is_valid: Callable[[Derived], bool], make: Callable[[], Derived]) -> Derived:
    """Arrays and facts of an earlier run, mapped into memory, or derived now and stored.

    One entry is stored for each ``key``, the source of a kind of thing; ``is_valid`` is whether an entry is of the kind
    that ``make`` gives, and still holds. The write is atomic, and the file may be deleted at any time; one of another
    program is replaced. Where the folder cannot be written, a warning says so.
    """
    found = load_derived(name, key)
    return found if found is not None and is_valid(found) else store_derived(name, key, make())


def load_derived(name: str, key: str) -> Derived | None:
    """The entry of a name and key, mapped into memory, whether it still holds or not."""
    path = place_derived(name, key)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:  # its tensors are mapped, and read when they are used
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["facts"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RecursionError):
        return None  # damaged, or of another program: it is made anew
    return (arrays, facts) if isinstance(facts, dict) else None


def store_derived(name: str, key: str, made: Derived) -> Derived:
    """Stores the entry of a name and key, and returns it mapped into memory."""
    path = place_derived(name, key)
    unfinished = name_unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(made[0], unfinished, {"facts": json.dumps(made[1])})
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # there may be no such folder
            unfinished.unlink()
        warn_unwritable(path.parent, error)
        return made
    # From the file, so that what is used does not depend on whether it was made in this run.
    return load_derived(name, key) or made


def place_derived(name: str, key: str) -> Path:
    """The file of the entry of a name and key."""
    return cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"


def warn_unwritable(folder: Path, error: Exception) -> None:
    """Warns that nothing can be kept in the cache folder."""
    rank_zero_warn(f"{folder}: cannot be written ({error}); to keep what is worked out: set LIT_FT_CACHE")
