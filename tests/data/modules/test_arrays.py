from types import SimpleNamespace

import pytest
import torch
from host_syncs import META, HostSyncs
from scipy.stats import chisquare
from torchvision.transforms import v2

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.images.transforms import PerImage, ShiftFlip
from lit_ft.data.loading.sampler import Picks
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySource, ArraySplit

SIZE, SHIFT = 16, 4
POLICIES = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment, "augmix": v2.AugMix}


class Planted(ArrayDataModule):
    """Images of which each pixel tells its row and column, both from 1 on, and the image its number."""

    basic_augment = ShiftFlip(SHIFT, flip=True)
    class_names = tuple("0123456789")
    test_name = "planted"

    def __init__(self, count=50, seed=0, rank=0, world_size=1, device="cpu", **options):
        super().__init__(**{"spec": InputSpec(SIZE, SIZE), "batch_size": 16, **options})
        self.count, self.order_seed = count, seed
        self.trainer = SimpleNamespace(
            lightning_module=None,
            strategy=SimpleNamespace(root_device=torch.device(device)),
            global_rank=rank,
            world_size=world_size,
            train_dataloader=None,
            fit_loop=SimpleNamespace(epoch_loop=None),
        )

    def read_splits(self):
        rows, columns = torch.meshgrid(torch.arange(1, SIZE + 1), torch.arange(1, SIZE + 1), indexing="ij")
        images = torch.stack([rows, columns, torch.zeros_like(rows)]).repeat(self.count, 1, 1, 1)
        images[:, 2] = torch.arange(self.count).view(-1, 1, 1)
        whole = ArraySplit.whole(images.to(torch.uint8), torch.arange(self.count))
        return {"train": whole, "val": whole.part(torch.arange(5)), "test": ArraySplit.whole(*tensors(4))}


def tensors(count, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count)


def epoch_of(data, number=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def offsets(images):
    """Row and column offset from 0 to 2 SHIFT, and whether mirrored, of planted images, ``(B, 3)``."""
    row, column = images[:, 0, SIZE // 2, SIZE // 2].long(), images[:, 1, SIZE // 2, SIZE // 2].long()
    mirrored = (images[:, 1, 8, 7] > images[:, 1, 8, 8]).long()
    return torch.stack([row - SIZE // 2 - 1, column - SIZE // 2 - 1 + mirrored, mirrored], dim=1) + torch.tensor(
        [SHIFT, SHIFT, 0]
    )


def is_uniform(cells, number):
    counts = torch.bincount(cells, minlength=number)
    assert len(counts) == number
    return chisquare(counts).pvalue > 0.01


def test_shifts_and_flips_are_uniform_and_independent_of_one_another_and_of_the_neighbours():
    data = Planted(250)
    seen = torch.empty(80, 250, 3, dtype=torch.long)
    order = torch.empty(80, 250, dtype=torch.long)
    for epoch in range(80):
        batches = epoch_of(data, epoch)
        order[epoch] = torch.cat([targets for _, targets in batches])
        seen[epoch] = offsets(torch.cat([images for images, _ in batches]))
    wide = 2 * SHIFT + 1
    top, left, mirrored = seen.unbind(2)
    assert is_uniform((((top * wide) + left) * 2 + mirrored).flatten(), wide * wide * 2)
    for value, number in ((top, wide), (left, wide), (mirrored, 2)):
        assert is_uniform((value[:, :-1] * number + value[:, 1:]).flatten(), number**2)  # the next in the batch
        assert is_uniform((value[:, :-16] * number + value[:, 16:]).flatten(), number**2)  # of the next batch
        image = torch.empty_like(value).scatter_(1, order, value)
        assert is_uniform((image[:-1] * number + image[1:]).flatten(), number**2)  # the same image an epoch later
        assert is_uniform((value[:-1] * number + value[1:]).flatten(), number**2)  # the same place an epoch later


def test_batches_are_what_was_drawn_for_their_places():
    data = Planted(21)
    loader = data.train_dataloader()
    drawn = ShiftFlip(SHIFT, flip=True).draw(21, loader.sampler.augment_generator())
    batches = list(loader)
    assert [len(targets) for _, targets in batches] == [16, 5]
    assert torch.cat([offsets(images) for images, _ in batches]).equal(drawn)


@pytest.mark.parametrize("flip", [True, False])
def test_images_whose_channels_come_last_in_memory_are_augmented_as_others_are(flip):
    images, targets = tensors(9)
    batches = []
    for layout in (torch.contiguous_format, torch.channels_last):
        split = ArraySplit.whole(images.contiguous(memory_format=layout), targets)
        source = ArraySource(split, InputSpec(SIZE, SIZE), [ShiftFlip(SHIFT, flip)])
        picks = [Picks(torch.tensor([7, 2, 4]), torch.arange(3))]
        batches += [batch for batch, _ in source.read(picks, torch.Generator().manual_seed(3))]
    assert batches[0].equal(batches[1])


@pytest.mark.parametrize("augment", ["none", "basic", "trivial", "augmix"])
@pytest.mark.parametrize("count", [33, 40])  # the last batch has one image more, or is partial
def test_batches_are_a_function_of_seed_epoch_and_rank(augment, count):
    def by_image(epoch=2, world_size=1, **options):
        shards = [
            epoch_of(Planted(count, rank=r, world_size=world_size, augment=augment, **options), epoch)
            for r in range(world_size)
        ]
        numbers = [int(target) for shard in shards for _, targets in shard for target in targets]
        assert sorted(numbers) == list(range(count))  # disjoint and covering
        images = [image for shard in shards for images, _ in shard for image in images]
        return numbers, dict(zip(numbers, images, strict=True))

    order, alone = by_image()
    torch.manual_seed(99)
    for options in ({}, {"world_size": 3}, {"batch_size": 7}):
        _, again = by_image(**options)
        assert all(alone[i].equal(again[i]) for i in range(count))
    for options in ({"epoch": 3}, {"seed": 1}):
        other_order, other = by_image(**options)
        assert other_order != order
        assert all(alone[i].equal(other[i]) for i in range(count)) == (augment == "none")


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_are_torchvisions_after_the_basic_augmentation_with_a_seed_a_place(name, channels, monkeypatch):
    images, targets = tensors(20, channels)
    monkeypatch.setattr(
        Planted,
        "read_splits",
        lambda _: {"train": ArraySplit.whole(images, targets), "test": ArraySplit.whole(*tensors(3))},
    )
    torch.manual_seed(5)
    before = torch.get_rng_state()
    data = Planted(augment=name)
    loader = data.train_dataloader()
    batches = list(loader)
    assert torch.get_rng_state().equal(before)

    generator = loader.sampler.augment_generator()
    basic = ShiftFlip(SHIFT, flip=True)
    drawn, seeds = basic.draw(20, generator), torch.randint(2**63 - 1, (20,), generator=generator)
    expected = basic(images[torch.cat([y for _, y in batches])], drawn)
    for image, seed in zip(expected, seeds.tolist(), strict=True):
        torch.manual_seed(seed)
        image.copy_(POLICIES[name]()(image))
    given = torch.cat([x for x, _ in batches])
    assert given.dtype == torch.uint8
    assert given.equal(expected)
    assert next(iter(data.test_dataloader()))[0].equal(tensors(3)[0])  # never augmented


def test_images_are_copied_once_to_the_device_of_the_model_where_they_fit(monkeypatch):
    free = {"bytes": 4 * 50 * 3 * SIZE * SIZE}
    monkeypatch.setattr("lit_ft.data.modules.arrays.free_memory", lambda device: free["bytes"])
    data = Planted(device="meta")  # a device that is not the CPU and that every machine has
    batches = epoch_of(data)
    assert {images.device.type for images, _ in batches} == {"meta"}
    assert {tuple(images.shape) for images, _ in batches} == {(16, 3, SIZE, SIZE), (2, 3, SIZE, SIZE)}
    assert sorted(torch.cat([targets for _, targets in batches]).tolist()) == list(range(50))
    near = [data.source(split, augment=False).split.images for split in ("train", "val")]
    assert near[0] is near[1]
    free["bytes"] = 0  # what is there needs no more
    assert next(iter(data.val_dataloader()))[0].is_meta
    assert next(iter(data.test_dataloader()))[0].device.type == "cpu"  # other images, for which no room is left


def test_images_that_are_augmented_one_by_one_or_do_not_fit_stay_in_memory(monkeypatch):
    monkeypatch.setattr("lit_ft.data.modules.arrays.free_memory", lambda device: 10**9)
    assert not epoch_of(Planted(device="meta", augment="trivial"))[0][0].is_meta
    monkeypatch.setattr("lit_ft.data.modules.arrays.free_memory", lambda device: 4 * 50 * 3 * SIZE * SIZE - 1)
    assert not epoch_of(Planted(device="meta"))[0][0].is_meta


def test_identity_tells_images_rows_sizes_and_augmentations_apart():
    def identity(images=0, rows=(0, 1, 2), size=SIZE, augments=()):
        split = ArraySplit.whole(*tensors(4, seed=images)).part(torch.tensor(rows))
        return ArraySource(split, InputSpec(size, size), augments).identity()

    policies = [[PerImage(policy())] for policy in POLICIES.values()]
    others = [{"images": 1}, {"rows": (0, 1, 3)}, {"size": 8}, {"augments": [ShiftFlip(2)]},
              {"augments": [ShiftFlip(2, flip=True)]}, *({"augments": policy} for policy in policies)]  # fmt: skip
    assert identity() == identity()
    assert len({identity(), *(identity(**other) for other in others)}) == 1 + len(others)


def test_batch_of_images_on_a_gpu_waits_for_no_step_before():
    images = torch.zeros(9, 3, 8, 8, dtype=torch.uint8, device=META)
    source = ArraySource(ArraySplit.whole(images, torch.arange(9)), InputSpec(16, 16), [ShiftFlip(2, flip=True)])
    with HostSyncs() as syncs:
        ((batch, targets),) = source.read([Picks(torch.tensor([3, 1]), torch.arange(2))], torch.Generator())
    assert (batch.device, batch.shape, targets.tolist()) == (META, (2, 3, 16, 16), [3, 1])
    assert syncs.found == []
