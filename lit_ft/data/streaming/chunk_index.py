"""Index of a streamed split: what ``index.json`` may say, checked before litdata makes paths of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

INDEX_FILE = "index.json"

# How litdata stores a sample. Nothing else is read: a set that says `pickle` here would run code of its own.
DATA_FORMAT = ["bytes"]

# litdata joins both to the folder of its cache, and fetches to and deletes from there.
_CHUNK_NAME = re.compile(r"chunk-\d+-\d+\.bin", re.ASCII)
_TIME = re.compile(r"\d+(\.\d+)?", re.ASCII)

# What `lit-ft convert` leaves unset: each would have litdata read the chunks in another way.
_UNSET = ("compression", "encryption", "format")


@dataclass(frozen=True)
class ChunkIndex:
    """What an index says of the chunks of a split.

    Args:
        content: The file, as it was checked.
        names: File name of each chunk.
        samples: Number of samples in each.
        sizes: Bytes of each.
        data_format: What each sample is made of.
    """

    content: bytes
    names: list[str]
    samples: list[int]
    sizes: list[int]
    data_format: Any

    @classmethod
    def parse(cls, content: bytes) -> ChunkIndex:
        """Checks the content of an index.

        Raises:
            ValueError: It is no index of a set that ``lit-ft convert`` wrote.
            LookupError: It lacks a part.
            TypeError: A part is of another type.
        """
        index = json.loads(content)
        chunks, config = index["chunks"], index["config"]
        names = [chunk["filename"] for chunk in chunks]
        for name in names:
            if not (isinstance(name, str) and _CHUNK_NAME.fullmatch(name)):
                raise ValueError(f"{name!r} is no name of a chunk, such as chunk-0-0.bin")
        if len(set(names)) < len(names):
            raise ValueError("a chunk is in it twice")
        # Where it is from a bucket, litdata names a folder of its cache by it.
        time = index.get("updated_at", "0")
        if not (isinstance(time, str) and _TIME.fullmatch(time)):
            raise ValueError(f"updated_at is no time: {time!r}")
        if strange := [key for key in _UNSET if config.get(key)]:
            raise ValueError(f"it has {strange[0]} {config[strange[0]]!r}, which is not read")
        if config.get("item_loader", "PyTreeLoader") != "PyTreeLoader":
            raise ValueError(f"item_loader {config['item_loader']!r} is not read")
        samples = [_count(chunk["chunk_size"]) for chunk in chunks]
        sizes = [_count(chunk["chunk_bytes"]) for chunk in chunks]
        return cls(content, names, samples, sizes, config["data_format"])


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no number of samples or bytes")
    return value
