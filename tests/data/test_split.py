import pytest
import torch

from lit_ft.data.split import class_counts, hold_out, keep_fraction, keep_shots, rows_by_class
from lit_ft.errors import UserError

TARGETS = torch.tensor([0] * 40 + [1] * 20)


def test_hold_out_keeps_the_proportions_and_loses_nothing():
    kept, held = hold_out(TARGETS, 0.25, 0, "`data.val_fraction`")
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(60))
    assert class_counts(TARGETS[held], 2) == [10, 5]
    assert kept.equal(kept.sort().values)


def test_hold_out_depends_on_the_seed_alone():
    held = [hold_out(TARGETS, 0.25, seed, "k")[1].tolist() for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize(("targets", "part"), [([0, 0, 0, 1], 0.5), ([0, 0, 1, 1, 2, 2], 0.1)])
def test_hold_out_of_too_few_images(targets, part):
    with pytest.raises(UserError, match=r"^data.val_fraction: .* of \d images of \d classes \(the smallest has \d\)"):
        hold_out(torch.tensor(targets), part, 0, "`data.val_fraction`")


def test_shots_nest_and_are_balanced():
    few, more = (set(keep_shots(TARGETS, n, 0, ["a", "b"]).tolist()) for n in (1, 5))
    assert few < more
    assert class_counts(TARGETS[sorted(more)], 2) == [5, 5]
    assert more != set(keep_shots(TARGETS, 5, 1, ["a", "b"]).tolist())


def test_more_shots_than_images():
    with pytest.raises(UserError, match=r"^data.shots: class 'b' has 20 images to train on, 21 were asked"):
        keep_shots(TARGETS, 21, 0, ["a", "b"])


def test_fractions_nest_in_proportion_and_keep_one_of_each_class():
    few, more = (set(keep_fraction(TARGETS, part, 0).tolist()) for part in (0.1, 0.5))
    assert few < more
    assert class_counts(TARGETS[sorted(few)], 2) == [4, 2]
    assert class_counts(TARGETS[sorted(more)], 2) == [20, 10]
    assert more != set(keep_fraction(TARGETS, 0.5, 1).tolist())
    assert class_counts(TARGETS[keep_fraction(TARGETS, 0.001, 0)], 2) == [1, 1]


def test_fraction_of_images_without_classes():
    assert len(keep_fraction(torch.zeros(60, 3), 0.25, 0)) == 15
    assert class_counts(torch.tensor([[1, 0], [1, 1]]), 2) == [2, 1]


def test_hold_out_of_what_has_no_classes():
    kept, held = hold_out(torch.rand(50, 2), 10, 0, "k")
    assert (len(kept), len(held)) == (40, 10)
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(50))


def groups_of_sizes(seed, num_groups=60, num_classes=4):
    """Groups of 1 to 30 rows, each of one or two classes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 31, (num_groups,), generator=generator)
    groups = torch.arange(num_groups).repeat_interleave(sizes)
    first = torch.randint(num_classes, (num_groups,), generator=generator)
    other = torch.randint(2, (len(groups),), generator=generator)
    order = torch.randperm(len(groups), generator=generator)
    return ((first[groups] + other) % num_classes)[order], groups[order]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_classes_in_proportion(seed, share):
    targets, groups = groups_of_sizes(seed, num_groups=300)
    kept, held = hold_out(targets, round(share * len(targets)), seed, "k", groups)
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(len(targets)))
    assert kept.equal(kept.sort().values)
    assert not set(groups[kept].tolist()) & set(groups[held].tolist())
    shares = torch.tensor(class_counts(targets[held], 4)) / torch.tensor(class_counts(targets, 4))
    assert (shares - share).abs().max() < 0.002


def test_groups_held_out_depend_on_the_seed_alone():
    targets, groups = groups_of_sizes(0)
    held = [hold_out(targets, 0.2, seed, "k", groups)[1].tolist() for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]
    # nor on what the groups are called
    assert hold_out(targets, 0.2, 1, "k", groups * 7 + 3)[1].tolist() == held[0]


def test_a_class_of_one_group_stays_in_training():
    targets, groups = torch.tensor([0] * 8 + [1] * 8), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3] + [9] * 8)
    for seed in range(10):
        kept, held = hold_out(targets, 4, seed, "k", groups)
        assert class_counts(targets[kept], 2)[1] == 8
        assert set(targets[held].tolist()) == {0}
    # also where most are held out
    assert class_counts(targets[hold_out(targets, 0.8, 0, "k", groups)[0]], 2)[1] == 8


def test_where_all_groups_are_large_the_nearest_is_held_out():
    groups = torch.tensor([0] * 30 + [1] * 25 + [2] * 40)
    _, held = hold_out(torch.arange(95) % 2, 0.1, 0, "k", groups)
    assert set(groups[held].tolist()) == {1}


def test_hold_out_of_too_few_groups():
    with pytest.raises(
        UserError, match=r"^data.val_fraction: 4 of 20 images in 1 group\(s\) cannot be held out so that"
    ):
        hold_out(torch.arange(20) % 2, 4, 0, "`data.val_fraction`", torch.zeros(20, dtype=torch.long))
    with pytest.raises(UserError, match=r"in 2 group\(s\) cannot be held out so that images of each class are left"):
        hold_out(torch.arange(20) % 2, 4, 0, "k", torch.arange(20) % 2)


def test_numbers_are_counted_as_images():
    assert class_counts(torch.tensor([[0.5, -2], [1, 3], [0, 0]]), 2) == [3, 3]


def test_rows_by_class_are_those_of_each_class_in_order():
    targets = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))
    targets[targets == 2] = 3
    found = rows_by_class(targets, 7)
    assert [rows.tolist() for rows in found] == [(targets == k).nonzero().squeeze(1).tolist() for k in range(7)]
