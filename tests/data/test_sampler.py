import pytest
import torch

from lit_ft.data.sampler import EpochSampler, mix_seed
from lit_ft.errors import UserError


def batches(rank=0, epoch=0, **options):
    sampler = EpochSampler(rank=rank, **options)
    sampler.set_epoch(epoch)
    return [b.tolist() for b in sampler.batches()]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [3, 10, 23, 24, 25])
@pytest.mark.parametrize("training", [True, False])
def test_shards_are_disjoint_and_cover_the_set(world_size, num_samples, training):
    ranks = [
        batches(r, num_samples=num_samples, batch_size=4, training=training, world_size=world_size)
        for r in range(world_size)
    ]
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(num_samples))
    assert len({len(rank) for rank in ranks}) == 1
    most = 4 + 1 + training  # a single image joins the batch before it, one more may be the shard's surplus
    assert all(len(batch) == 4 for rank in ranks for batch in rank[:-1])
    assert all(1 <= len(rank[-1]) <= most for rank in ranks)


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "training", "sizes"),
    [
        (10, 4, False, [4, 4, 2]),
        (9, 4, False, [4, 4, 1]),
        (9, 4, True, [4, 5]),
        (1, 4, True, [1]),
        (3, 1, True, [1, 1, 1]),
        (8, 4, True, [4, 4]),
    ],
)
def test_batch_sizes(num_samples, batch_size, training, sizes):
    sampler = EpochSampler(num_samples, batch_size, training=training)
    assert [len(b) for b in sampler.batches()] == sizes
    assert len(sampler) == len(sizes)


def test_batch_sizes_under_two_processes_follow_the_smaller_shard():
    ranks = [batches(r, num_samples=9, batch_size=4, world_size=2) for r in range(2)]
    assert [[len(b) for b in rank] for rank in ranks] == [[5], [4]]


def test_eval_order_is_that_of_the_set():
    assert batches(num_samples=5, batch_size=2, epoch=3) == [[0, 1], [2, 3], [4]]
    assert batches(1, num_samples=5, batch_size=2, world_size=2) == [[1, 3]]


def test_training_order_depends_on_seed_and_epoch_alone():
    first = batches(num_samples=50, batch_size=10, training=True, seed=1, epoch=2)
    torch.manual_seed(99)
    assert batches(num_samples=50, batch_size=10, training=True, seed=1, epoch=2) == first
    assert batches(num_samples=50, batch_size=10, training=True, seed=1, epoch=3) != first
    assert batches(num_samples=50, batch_size=10, training=True, seed=2, epoch=1) != first


def test_all_processes_share_one_order():
    [whole] = batches(num_samples=12, batch_size=12, training=True, seed=5)
    for rank in range(2):
        [half] = batches(rank, num_samples=12, batch_size=6, training=True, seed=5, world_size=2)
        assert half == whole[rank::2]


def test_seeds_do_not_collide():
    seeds = [mix_seed(s, e, k) for s in (0, 1, 2, 2**32, 2**32 + 1, 2**64 - 1) for e in range(4) for k in range(2)]
    assert len(set(seeds)) == 6 * 4 * 2


def test_augmentation_is_apart_from_the_order_and_equal_in_all_processes():
    draws = [
        torch.randint(10**9, (3,), generator=EpochSampler(8, 2, seed=4, rank=r, world_size=2).augment_generator())
        for r in range(2)
    ]
    assert draws[0].equal(draws[1])
    assert EpochSampler(8, 2, seed=4).augment_generator().initial_seed() != mix_seed(4, 0)


def test_fewer_images_than_processes():
    with pytest.raises(UserError, match=r"--trainer.devices: 2 image.* among 3 process.* at most 2"):
        EpochSampler(2, 4, world_size=3)
