import pytest
import torch

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.sampler import Picks
from lit_ft.data.modules.arrays import ArraySource, ArraySplit
from lit_ft.features.source import FeatureSource, Layout, view_generator, write_outputs

NUM, VIEWS = 7, 3


@pytest.fixture
def source():
    images = torch.arange(NUM * 3 * 64).remainder(251).view(NUM, 3, 8, 8).to(torch.uint8)
    return ArraySource(ArraySplit.whole(images, 10 * torch.arange(NUM)), InputSpec(8, 8), [ShiftFlip(2, flip=True)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_outputs_come_back_as_they_lay_in_memory(memory_format, stored, tmp_path):
    output = torch.randn(2, 4, 3, 5, generator=generator()).contiguous(memory_format=memory_format)
    layout = Layout.of(output, images=2, views=1, stored=stored)
    layout.reserve(tmp_path / "file")
    layout.mapped(tmp_path / "file")[:] = layout.to_memory(output)
    assert layout.nbytes == output.numel() * stored.itemsize
    assert (tmp_path / "file").stat().st_size == layout.file_bytes == layout.nbytes + 4  # the checksum of a block
    back = layout.from_memory(layout.mapped(tmp_path / "file"))
    assert back.dtype == torch.float32
    assert back.equal(output.to(stored).float())
    assert back.stride() == output.stride()


@pytest.fixture
def summed(tmp_path, monkeypatch):
    """A file of seven blocks, the last one shorter, with their checksums, of which two processes wrote a part each."""
    monkeypatch.setattr("lit_ft.features.source._BLOCK", 64)
    layout, file = Layout(images=10, views=1, shape=(10,), is_channels_last=False, computed=torch.float32,
                          stored=torch.float32), tmp_path / "file"  # fmt: skip
    layout.reserve(file)
    layout.mapped(file)[:] = torch.randn(10, 10, generator=generator())
    for blocks in (range(4, 7), range(4)):
        layout.write_sums(file, blocks)
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


def test_infinite_outputs_are_kept_and_too_large_ones_refused():
    layout = Layout.of(torch.ones(1, 2), images=1, views=1, stored=torch.float16)
    assert layout.to_memory(torch.tensor([[1.0, torch.inf]])).tolist() == [[1.0, torch.inf]]
    with pytest.raises(OverflowError, match="outputs of up to 1e\\+06 do not fit float16"):
        layout.to_memory(torch.tensor([[1.0, 1e6]]))


def kept_of(source, shares, seed=0):
    layout = Layout.of(torch.ones(1, 192), NUM, VIEWS)
    kept = torch.full((VIEWS * NUM, 192), -1.0)
    for share in shares:
        done = write_outputs(kept, layout, source, lambda images: images.flatten(1).float(), share, 3, seed)
        assert sum(done) == VIEWS * len(share)
    return layout, kept


def test_shares_of_processes_make_the_whole_and_views_and_seeds_differ(source):
    # The last batch is of a single image.
    _, whole = kept_of(source, [range(NUM)])
    assert (whole >= 0).all()
    assert kept_of(source, [range(4), range(4, NUM)])[1].equal(whole)
    first, second, third = whole.view(VIEWS, NUM, -1)
    assert not first.equal(second)
    assert not second.equal(third)
    assert not kept_of(source, [range(NUM)], seed=1)[1].equal(whole)
    rows = torch.arange(NUM)
    ((images, _),) = source.read([Picks(rows, rows)], view_generator(0, 1))
    assert images.flatten(1).float().equal(second)


def test_view_of_an_image_belongs_to_its_place_in_the_epoch(source):
    layout = Layout.of(torch.ones(1, 1), NUM, VIEWS)
    kept = torch.arange(VIEWS * NUM).view(-1, 1).float()
    features = FeatureSource(kept, layout, source, depth=2)

    def read(*places):
        rows = torch.full((len(places),), 5)  # an image again and again
        ((output, targets),) = features.read([Picks(rows, torch.tensor(places))], generator())
        assert output.depth == 2
        assert targets.tolist() == [50] * len(places)
        assert (output.values % NUM == 5).all()
        return (output.values.flatten() // NUM).int().tolist()

    assert set(read(*range(NUM))) == set(range(VIEWS))
    assert read(4, 5) == read(*range(NUM))[4:6]  # who reads the rest does not matter
