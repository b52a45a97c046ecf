from dataclasses import replace

import pytest
import torch

from lit_ft.features.layout import Layout


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_features_come_back_as_they_lay_in_memory(memory_format, stored, tmp_path):
    features = torch.randn(2, 4, 3, 5, generator=generator()).contiguous(memory_format=memory_format)
    layout = replace(Layout.like(features), images=2, stored=stored)
    layout.reserve_file(tmp_path / "file")
    layout.map_file(tmp_path / "file")[:] = layout.encode(features)
    assert layout.nbytes == features.numel() * stored.itemsize
    assert (tmp_path / "file").stat().st_size == layout.file_bytes == layout.nbytes + 4  # the checksum of a block
    back = layout.decode(layout.map_file(tmp_path / "file"))
    assert back.dtype == torch.float32
    assert back.equal(features.to(stored).float())
    assert back.stride() == features.stride()


def test_features_lie_view_after_view():
    layout = replace(Layout.like(torch.ones(1, 4)), images=10, views=3)
    assert layout.places(torch.tensor([7, 0])).tolist() == [7, 17, 27, 0, 10, 20]


@pytest.fixture
def summed(tmp_path, monkeypatch):
    """A file of seven blocks, the last one shorter, with their checksums, of which two processes wrote a part each."""
    monkeypatch.setattr("lit_ft.features.layout._BLOCK", 64)
    layout, file = Layout(images=10, views=1, shape=(10,), is_channels_last=False, computed=torch.float32,
                          stored=torch.float32), tmp_path / "file"  # fmt: skip
    layout.reserve_file(file)
    layout.map_file(file)[:] = torch.randn(10, 10, generator=generator())
    for blocks in (range(4, 7), range(4)):
        layout.write_checksums(file, blocks)
    return layout, file


def test_any_bit_that_changes_is_seen_in_its_block_and_no_other(summed):
    layout, file = summed
    content = file.read_bytes()
    assert (layout.blocks, len(content)) == (7, 400 + 7 * 4)
    assert layout.is_intact(file, range(7))
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        damaged = place // 64 if place < 400 else (place - 400) // 4
        assert [layout.is_intact(file, range(i, i + 1)) for i in range(7)] == [i != damaged for i in range(7)]
    assert layout.is_intact(file, range(3, 3))  # of a process that has no block


def test_file_of_another_size_is_not_intact(summed):
    layout, file = summed
    content = file.read_bytes()
    for other in (content[:-1], content[:50], content + b"0", b""):
        file.write_bytes(other)
        assert not layout.is_intact(file, range(1))


def test_infinite_features_are_stored_and_too_large_ones_refused():
    layout = replace(Layout.like(torch.ones(1, 2)), stored=torch.float16)
    assert layout.encode(torch.tensor([[1.0, torch.inf]])).tolist() == [[1.0, torch.inf]]
    with pytest.raises(OverflowError, match="features of up to 1e\\+06 do not fit float16"):
        layout.encode(torch.tensor([[1.0, 1e6]]))
