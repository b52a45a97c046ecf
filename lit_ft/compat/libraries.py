"""Private and undocumented APIs of jsonargparse, timm, Pillow and litdata."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def parsing_settings(**settings: Any) -> Iterator[None]:
    """As jsonargparse's `set_parsing_settings`, for a while; there is no public way to reset them (4.51 to 4.53)."""
    from jsonargparse import _common, set_parsing_settings

    before = dict(_common.parsing_settings)
    set_parsing_settings(**settings)
    try:
        yield
    finally:
        _common.parsing_settings.update(before)


def group_by_matcher(names: Iterable[str], matcher: dict[str, Any]) -> list[list[str]]:
    """Names of parameters in the groups of one of timm's matchers, shallow to deep.

    timm (1.0) has ``group_matcher`` on its networks, and applies it by a function in a private module alone.
    """
    from timm.models._manipulate import group_with_matcher

    return list(group_with_matcher(iter([(name, name) for name in names]), matcher).values())


def reuse_image_memory() -> None:
    """Lets Pillow keep 64 MB of memory in each process for the next images.

    Otherwise it gives the memory of each image back, and the system clears it again: a third of the time that a large
    image takes. Pillow (11 to 13) reads the variable PILLOW_BLOCKS_MAX for this once, as it is loaded; after that only
    its private ``Image.core`` sets it.
    """
    if "PILLOW_BLOCKS_MAX" not in os.environ:
        from PIL import Image

        Image.core.set_blocks_max(4)  # type: ignore[attr-defined]


def download_from_bucket(root: str, name: str, folder: str) -> None:
    """Downloads a file of a bucket into a folder, by the same means as litdata its chunks.

    litdata (0.2.74 to 0.2.76) has no public function for other files than chunks.
    """
    from litdata.streaming.downloader import get_downloader

    get_downloader(root, folder, []).download_file(f"{root}/{name}", f"{folder}/{name}")


def chunked_index(row: int, chunk: int, ahead: list[int] | None, is_last: bool) -> Any:
    """The index of a sample for litdata's ``StreamingDataset``, with the chunks to fetch ahead.

    Its public index is a number alone, with which litdata (0.2.74 to 0.2.76) fetches single samples. Releases differ
    in the order of the fields, hence the names.
    """
    from litdata.streaming.sampler import ChunkedIndex

    return ChunkedIndex(index=row, chunk_index=chunk, chunk_indexes=ahead, is_last_index=is_last)
