import inspect
import os
import subprocess
import sys

import pytest

from lit_ft.compat import chunked_index


@pytest.mark.parametrize(("given", "expected"), [(None, "4"), ("2", "2")])
def test_pillow_keeps_memory_unless_its_variable_says_otherwise(given, expected):
    variables = {name: value for name, value in os.environ.items() if name != "PILLOW_BLOCKS_MAX"}
    code = "import lit_ft.data.images.decode; from PIL import Image; print(Image.core.get_blocks_max())"
    environment = variables | ({"PILLOW_BLOCKS_MAX": given} if given else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_pillow_has_no_public_way_to_keep_memory():
    from PIL import Image

    assert not hasattr(Image, "set_blocks_max")


def test_litdata_takes_an_index_with_the_chunks_ahead():
    pytest.importorskip("litdata")
    place = chunked_index(7, 2, [2, 5], is_last=True)
    assert (place.index, place.chunk_index, place.chunk_indexes, place.is_last_index) == (7, 2, [2, 5], True)


def test_litdata_downloads_single_files_by_its_downloaders():
    pytest.importorskip("litdata")
    from litdata.streaming import downloader

    assert list(inspect.signature(downloader.get_downloader).parameters)[:3] == ["remote_dir", "cache_dir", "chunks"]
    parameters = list(inspect.signature(downloader.Downloader.download_file).parameters)
    assert parameters == ["self", "remote_chunkpath", "local_chunkpath"]
