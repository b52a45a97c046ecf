import pytest
import torch

from lit_ft.data.loading.sampler import EpochSampler, mix_seed
from lit_ft.errors import UserError


def batches(rank=0, epoch=0, **options):
    sampler = EpochSampler(rank=rank, **options)
    sampler.set_epoch(epoch)
    return [b.rows.tolist() for b in sampler.batches()]


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
    assert [len(b.rows) for b in sampler.batches()] == sizes
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
    with pytest.raises(UserError, match=r"trainer.devices: 2 image.* among 3 process.* at most 2"):
        EpochSampler(2, 4, world_size=3)


def test_places_count_over_all_processes():
    ranks = [EpochSampler(7, 2, shuffle=True, rank=r, world_size=2).batches() for r in range(2)]
    assert [[b.places.tolist() for b in rank] for rank in ranks] == [[[0, 2], [4, 6]], [[1, 3], [5]]]
    alone = torch.cat([b.rows for b in EpochSampler(7, 7, shuffle=True).batches()])
    assert all(alone[b.places].equal(b.rows) for rank in ranks for b in rank)


@pytest.mark.parametrize("world_size", [1, 3])
def test_balanced_epochs_have_as_many_of_each_class_and_repeat_evenly(world_size):
    classes = torch.tensor([0] * 20 + [1] * 3 + [3] * 8)  # of class 2 there are none
    for epoch in range(3):
        ranks = [
            batches(r, epoch, num_samples=31, batch_size=4, training=True, classes=classes, world_size=world_size)
            for r in range(world_size)
        ]
        rows = torch.tensor([i for rank in ranks for batch in rank for i in batch])
        assert sorted(classes[rows].bincount().tolist()) == [0, 10, 10, 11]
        times = rows.bincount(minlength=31)
        assert times[:20].max() == 1
        assert set(times[20:23].tolist()) <= {3, 4}
        assert set(times[23:].tolist()) <= {1, 2}


def test_balanced_order_depends_on_seed_and_epoch_and_mixes_the_classes():
    options = {"num_samples": 400, "batch_size": 400, "training": True, "classes": torch.arange(400) // 300}
    [first], [same], [other] = (batches(seed=1, epoch=e, **options) for e in (2, 2, 3))
    assert first == same != other
    labels = torch.tensor(first) // 300
    assert 70 < labels[:200].sum() < 130  # half of 200, standard deviation 5


def test_without_shuffling_nothing_is_balanced():
    assert batches(num_samples=4, batch_size=4, shuffle=False, classes=torch.tensor([0, 0, 0, 1])) == [[0, 1, 2, 3]]
