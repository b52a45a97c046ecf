import pytest
import torch

from lit_ft.data.split import class_counts, hold_out, keep_fraction, keep_shots
from lit_ft.errors import UserError

TARGETS = torch.tensor([0] * 40 + [1] * 20)


def test_hold_out_keeps_the_proportions_and_loses_nothing():
    kept, held = hold_out(TARGETS, 0.25, 0, "--data.val_fraction")
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(60))
    assert class_counts(TARGETS[held], 2) == [10, 5]
    assert kept.equal(kept.sort().values)


def test_hold_out_depends_on_the_seed_alone():
    held = [hold_out(TARGETS, 0.25, seed, "k")[1].tolist() for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize(("targets", "part"), [([0, 0, 0, 1], 0.5), ([0, 0, 1, 1, 2, 2], 0.1)])
def test_hold_out_of_too_few_images(targets, part):
    with pytest.raises(UserError, match=r"^--data.val_fraction: .* of \d images of \d classes \(the smallest has \d\)"):
        hold_out(torch.tensor(targets), part, 0, "--data.val_fraction")


def test_shots_nest_and_are_balanced():
    few, more = (set(keep_shots(TARGETS, n, 0, ["a", "b"]).tolist()) for n in (1, 5))
    assert few < more
    assert class_counts(TARGETS[sorted(more)], 2) == [5, 5]
    assert more != set(keep_shots(TARGETS, 5, 1, ["a", "b"]).tolist())


def test_more_shots_than_images():
    with pytest.raises(UserError, match=r"^--data.shots: class 'b' has 20 images to train on, 21 were asked"):
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
