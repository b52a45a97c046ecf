import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.datasets.items import ItemSplit
from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.images.decode import decode
from lit_ft.data.images.transforms import train_transform
from lit_ft.data.loading import photo_source
from lit_ft.data.loading.loader import Loader
from lit_ft.data.loading.photo_source import PhotoSource, _Photos, transform_seeded
from lit_ft.data.loading.sampler import EpochSampler, Picks
from lit_ft.data.loading.workers import Workers
from lit_ft.errors import UserError


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(11)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return FileSplit(PackedPaths.pack("", paths), torch.arange(11))


def make_loader(split, num_workers=0, batch_size=3, rank=0, world_size=1):
    sampler = EpochSampler(len(split.paths), batch_size, training=True, seed=1, rank=rank, world_size=world_size)
    return Loader(PhotoSource(split, train_transform(InputSpec(16, 18), "basic"), Workers(num_workers)), sampler)


def read(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_same(left, right):
    assert [y.tolist() for _, y in left] == [y.tolist() for _, y in right]
    assert all(a.equal(b) for (a, _), (b, _) in zip(left, right, strict=True))


def test_batches_are_the_same_with_workers_and_after_a_resume(split):
    plain, workers = make_loader(split), make_loader(split, num_workers=2)
    for epoch in (0, 1):  # the workers live on from one to the other
        assert_same(read(plain, epoch), read(workers, epoch))
    workers.position.load_state_dict({"epoch": 2, "batches": 2, "of": 4})
    assert_same(read(plain, 2)[2:], read(workers, 2))


def test_workers_left_in_mid_epoch_start_the_next_one_anew(split):
    workers = make_loader(split, num_workers=1)
    next(iter(workers))
    assert_same(read(make_loader(split), 1), read(workers, 1))


def test_augmentation_varies_by_epoch_and_sample(split):
    same = FileSplit(split.paths.part(torch.zeros(4, dtype=torch.long)), torch.arange(4))
    crops = [x for epoch in (0, 1) for images, _ in read(make_loader(same, batch_size=4), epoch) for x in images]
    assert len({bytes(x.numpy()) for x in crops}) == 8


def test_augmentation_of_a_sample_is_the_same_with_any_number_of_processes(split):
    def by_sample(loaders):
        return {int(y): x for loader in loaders for xs, ys in read(loader, 3) for x, y in zip(xs, ys, strict=True)}

    alone = by_sample([make_loader(split)])
    shared = by_sample([make_loader(split, rank=r, world_size=2) for r in range(2)])
    assert alone.keys() == shared.keys()
    assert all(alone[i].equal(shared[i]) for i in alone)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_global_generator_alone(split, num_workers):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    read(make_loader(split, num_workers))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_file_is_told_in_one_line(split, num_workers):
    split.paths[4].write_bytes(split.paths[4].read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        read(make_loader(split, num_workers))
    assert str(caught.value).startswith(f"{split.paths[4]}: cannot be read as an image (")
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_what_workers_get_can_be_pickled(split):
    dataset = make_loader(split).source._loader.dataset
    asked = [(2, [7]), (3, [8, 9])]
    images, targets = pickle.loads(pickle.dumps(dataset))[asked]
    assert images.equal(dataset[asked][0])
    assert targets.tolist() == [2, 3, 3]


def generators(views=3):
    return [torch.Generator().manual_seed(view) for view in range(views)]


def alone(source, batches):
    """The views of each batch, each read on its own, those of an image together; and their targets."""
    by_view = [list(source.read(batches, generator)) for generator in generators()]
    for parts in zip(*by_view, strict=True):
        images = torch.stack([images for images, _ in parts], dim=1).flatten(0, 1)
        yield images, parts[0][1].repeat_interleave(3)


BATCHES = [Picks(torch.tensor([4, 0, 9]), torch.tensor([1, 7, 2])), Picks(torch.tensor([3]), torch.tensor([10]))]


@pytest.mark.long
@pytest.mark.parametrize("num_workers", [0, 1])
def test_views_are_those_that_are_read_one_by_one(split, num_workers):
    source = make_loader(split, num_workers).source
    assert_same(list(source.read_views(BATCHES, generators())), list(alone(source, BATCHES)))


@pytest.fixture
def opens(monkeypatch):
    """The files that Pillow opens."""
    paths, opened = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: paths.append(str(file)) or opened(file, **options))
    return paths


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_photo_is_opened_once_for_all_its_views(split, opens, fit):
    spec = InputSpec(16, 18, fit=fit)
    source = PhotoSource(split, train_transform(spec, "trivial"))
    found = list(source.read_views(BATCHES, generators()))
    assert opens == [str(split.paths[row]) for row in (4, 0, 9, 3)]
    assert_same(found, list(alone(source, BATCHES)))


def test_bands_are_read_once_for_all_views_and_cached_copies_are_cut_as_one_by_one(split):
    read = []

    def reader(path):
        read.append(path)
        return decode(path)

    cache = [torch.randint(256, (3, 20, 24), dtype=torch.uint8, generator=g) for g in generators(11)]
    crops = train_transform(InputSpec(16, 18), "basic")
    found = list(PhotoSource(split, crops, reader=reader).read_views(BATCHES, generators()))
    assert read == [str(split.paths[row]) for row in (4, 0, 9, 3)]
    assert_same(found, list(alone(PhotoSource(split, crops), BATCHES)))
    cached = PhotoSource(split, crops, cache=cache)
    assert_same(list(cached.read_views(BATCHES, generators())), list(alone(cached, BATCHES)))


def test_data_set_with_changes_of_its_own_makes_them_in_each_view():
    class Noise(Dataset):
        def __getitem__(self, row):
            return torch.randint(256, (3, 20, 24), dtype=torch.uint8)

    split = ItemSplit(Noise(), "noise", torch.arange(11), torch.arange(11))
    source = PhotoSource(split, train_transform(InputSpec(16, 18), "basic"))
    found = list(source.read_views(BATCHES, generators()))
    assert_same(found, list(alone(source, BATCHES)))
    assert len({bytes(view.numpy()) for images, _ in found for view in images}) == 12


def test_damaged_photo_is_told_where_several_views_are_read(split):
    split.paths[9].write_bytes(split.paths[9].read_bytes()[:200])
    with pytest.raises(UserError, match=rf"^{split.paths[9]}: cannot be read as an image \("):
        list(make_loader(split).source.read_views(BATCHES, generators()))


@pytest.mark.slow
def test_a_process_that_is_started_anew_reads_the_same(split):
    plain, spawned = make_loader(split), make_loader(split, num_workers=1)
    spawned.source._loader._loader[0].multiprocessing_context = "spawn"
    assert_same(read(plain), read(spawned))


def test_batches_have_the_pixels_of_the_transform_of_the_whole_image(split):
    loader = make_loader(split, batch_size=11)
    [(images, rows)] = read(loader, 2)
    [(_, places)] = loader.sampler.batches()
    seeds = torch.randint(2**63 - 1, (11,), generator=loader.sampler.augment_generator())[places]
    for image, row, seed in zip(images, rows.tolist(), seeds.tolist(), strict=True):
        torch.manual_seed(seed)
        assert image.equal(train_transform(InputSpec(16, 18), "basic")(decode(split.paths[row])))


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_large_jpeg_is_decoded_smaller_for_a_part_of_a_square_but_not_to_be_evaluated(tmp_path, fit):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((800, 600), Image.Resampling.BICUBIC).save(tmp_path / "x.jpg", quality=95)
    path, spec = str(tmp_path / "x.jpg"), InputSpec(64, 64, fit=fit)
    whole = decode(path)
    assert transform_seeded(spec.geometry(), path, 0).equal(spec.geometry()(whole))
    crops = train_transform(spec, "basic")
    found, exact = transform_seeded(crops, path, 7).int(), transform_seeded(crops, whole, 7).int()
    assert found.equal(transform_seeded(crops, decode(path, least=91), 7))
    assert 0 < (found - exact).abs().float().mean() < 2.0  # levels of 255


def test_identity_tells_files_caches_transforms_and_versions_apart(split, monkeypatch):
    spec = InputSpec(16, 18)

    def identity(augment="none", made=None, size=16):
        transform = spec.geometry() if augment == "none" else train_transform(InputSpec(size, 18), augment)
        source = PhotoSource(split, transform, cache=made and SimpleNamespace(made=made))
        assert source.is_augmented == (augment != "none")
        return source.identity()

    mirrored = v2.Compose([*spec.geometry().transforms, v2.RandomHorizontalFlip()])
    assert PhotoSource(split, mirrored).is_augmented

    others = [{"augment": "basic"}, {"augment": "trivial"}, {"augment": "basic", "size": 12}, {"made": "1"}]
    found = {identity(), *(identity(**other) for other in others)}
    assert len(found) == 1 + len(others)
    monkeypatch.setattr(photo_source, "READ_BY", "2 12.0.0")
    assert identity() not in found
    monkeypatch.undo()
    assert identity() in found
    Image.new("RGB", (20, 24)).save(split.paths.full(3))
    assert identity() not in found


@pytest.mark.parametrize("error", [RuntimeError("[enforce fail] not enough memory\nmore"), MemoryError()])
@pytest.mark.parametrize("cached", [False, True])
def test_an_image_whose_transform_fails_is_named(split, error, cached):
    def fails(image):
        raise error

    cache = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * len(split) if cached else None
    photos = _Photos(split, v2.Compose([v2.Resize([16]), fails]), cache)
    found = photos[[(2, [0])]]
    reason = "[enforce fail] not enough memory" if isinstance(error, RuntimeError) else "out of memory"
    assert isinstance(found, UserError)
    assert str(found) == f"{split.paths.full(2)}: cannot be brought to the size of the network's images ({reason})"
    with pytest.raises(UserError, match=r"^chunk 3: cannot be brought to the size"):
        transform_seeded(v2.Compose([fails]), torch.zeros(3, 8, 8, dtype=torch.uint8), 0, "chunk 3")
