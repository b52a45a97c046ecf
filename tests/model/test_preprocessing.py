import re
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torchvision.transforms import v2

from lit_ft.errors import UserError
from lit_ft.model.preprocessing import BatchMix, MixConfig, draw_rectangles, erase
from lit_ft.tasks.task import check_task

B, K = 6, 4
ALL = MixConfig(mixup=0.4, cutmix=1.0, erase=0.5)


def batch(height=12, width=10):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, 3, height, width, generator=generator), torch.arange(B) % K


def drawn(num, height, width, seed=0):
    """Height, width, top and left of rectangles."""
    torch.manual_seed(seed)
    top, left, bottom, right = draw_rectangles(num, height, width).numpy()
    return bottom - top, right - left, top, left


def test_rectangles_have_the_published_areas_and_aspects():
    side = 1000  # so large that rounding is no matter, and hardly a shape too large
    high, wide, _, _ = drawn(20_000, side, side)
    area, aspect = high * wide / side**2, high / wide
    assert area.min() >= 0.02 - 1e-3
    assert area.max() <= 0.33 + 1e-3
    assert aspect.min() >= 0.3 * 0.98
    assert aspect.max() <= 3.3 * 1.02
    assert stats.kstest(area, stats.uniform(0.02, 0.31).cdf).pvalue > 0.01
    assert stats.kstest(np.log(aspect), stats.uniform(np.log(0.3), np.log(11)).cdf).pvalue > 0.01


def test_rectangles_lie_anywhere_within_the_image():
    high, wide, top, left = drawn(20_000, 30, 50)
    assert min(top.min(), left.min()) == 0
    for side, start, size in ((30, top, high), (50, left, wide)):
        assert (start + size).max() == side
        blurred = (start + np.random.default_rng(0).random(len(start))) / (side - size + 1)
        found, _ = np.histogram(blurred, bins=20, range=(0, 1))
        assert stats.chisquare(found).pvalue > 0.01


def test_each_sample_has_a_rectangle_independent_of_the_others_and_of_its_other_numbers():
    num, side = 20_000, 1000
    high, wide, top, left = drawn(num, side, side)
    numbers = [high * wide, np.log(high / wide), top / (side - high), left / (side - wide)]
    pairs = [(number[:-1], number[1:]) for number in numbers] + list(combinations(numbers, 2))
    # About a thousandth of the shapes is too large and drawn again, which ties the area to the aspect by as little.
    assert max(abs(np.corrcoef(one, other)[0, 1]) for one, other in pairs) < 4 / num**0.5


def test_rectangles_are_those_of_torchvision_also_where_many_shapes_do_not_fit():
    height, width = 8, 24
    ours = np.stack(drawn(4000, height, width))
    torch.manual_seed(1)
    theirs, image, single = [], torch.zeros(1, height, width), v2.RandomErasing(p=1.0)
    for _ in range(4000):
        found = single.make_params([image])
        theirs.append([0] * 4 if found["v"] is None else [found[key] for key in "hwij"])
    assert (ours[0] < height).all()
    for mine, other in zip(ours, np.array(theirs).T, strict=True):
        values = np.arange(max(mine.max(), other.max()) + 1)
        table = np.array([[(numbers == value).sum() for value in values] for numbers in (mine, other)])
        table = table[:, table.sum(axis=0) > 10]
        assert stats.chi2_contingency(table).pvalue > 0.01


def test_image_in_which_no_rectangle_fits_is_left_as_it_is():
    images = torch.ones(50, 3, 1, 1)
    assert erase(images, 1.0).equal(images)
    high, wide, _, _ = drawn(50, 100, 1)  # none is narrower than 1, however often it is drawn
    assert (high * wide).sum() == 0


def test_erased_is_one_rectangle_of_zeros_in_all_channels_and_nothing_else():
    torch.manual_seed(0)
    images = torch.rand(2000, 3, 16, 12).add(1).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    erased = erase(images, 0.3)
    assert images.equal(before)
    gone = erased == 0
    assert erased[~gone].equal(images[~gone])
    assert gone.all(1).equal(gone.any(1))
    rows, columns = gone[:, 0].any(2), gone[:, 0].any(1)
    assert gone[:, 0].equal(rows[:, :, None] & columns[:, None, :])
    for part in (rows, columns):  # without gaps
        assert part.int().diff(dim=1).abs().sum(1).max() <= 2
    share = rows.any(1).float().mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    assert len(gone[rows.any(1), 0].unique(dim=0)) > 400  # and not the same for all


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("hard", [True, False])
def test_one_kind_is_that_of_torchvision_with_the_same_random_state(kind, hard):
    images, targets = batch()
    targets = targets if hard else torch.rand(B, K).softmax(1)
    torch.manual_seed(3)
    expected = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[kind](alpha=0.7, num_classes=K)(images, targets)
    torch.manual_seed(3)
    found = BatchMix(MixConfig(**{kind: 0.7}), "multiclass", K)(images, targets)
    assert all(mine.equal(theirs) for mine, theirs in zip(found, expected, strict=True))
    assert not found[0].equal(images)


def test_of_two_kinds_each_batch_has_one():
    images = torch.arange(B, dtype=torch.float32).view(B, 1, 1, 1).expand(B, 1, 40, 40)
    torch.manual_seed(0)
    mix = BatchMix(MixConfig(mixup=1.0, cutmix=1.0), "multiclass", B)
    colours = [len(mix(images, torch.arange(B))[0][3].unique()) for _ in range(200)]
    # Laid over each other two images of one colour have one; beside each other two.
    assert 70 < colours.count(2) < 130
    assert colours.count(1) + colours.count(2) == 200


def test_targets_say_what_the_images_consist_of():
    # Each image has a channel for each class, which is 1 where a pixel is of that class.
    images = torch.eye(K).view(K, K, 1, 1).expand(K, K, 20, 20)
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, targets = BatchMix(MixConfig(mixup=1.0, cutmix=1.0), "multiclass", K)(images, torch.arange(K))
        torch.testing.assert_close(mixed.mean((2, 3)), targets)
        torch.testing.assert_close(targets.sum(1), torch.ones(K))


def test_labels_and_numbers_are_mixed_with_the_images():
    images, _ = batch()
    labels = torch.tensor([[0, 1, 1]] * 3 + [[1, 0, 1]] * 3)
    torch.manual_seed(0)
    _, mixed = BatchMix(MixConfig(cutmix=1.0), "multilabel", 3)(images, labels)
    assert mixed.dtype == torch.float32
    assert mixed[:, 2].tolist() == pytest.approx([1.0] * B)
    assert 0 < mixed[0, 0] < 1
    # What is linear in an image stays so: each target is the image's mean.
    for targets in (images.mean((1, 2, 3)), images.mean((1, 2, 3)).unsqueeze(1)):
        seen, mixed = BatchMix(MixConfig(mixup=1.0), "regression", 1)(images, targets)
        assert mixed.shape == (B, 1)
        torch.testing.assert_close(mixed, seen.mean((1, 2, 3)).unsqueeze(1))
        assert not torch.allclose(mixed.flatten(), targets.flatten())


def test_batch_of_one_image_is_mixed_with_itself():
    image, target = torch.randn(1, 3, 9, 7), torch.tensor([2])
    for config in (MixConfig(mixup=0.5), MixConfig(cutmix=0.5)):
        mixed, targets = BatchMix(config, "multiclass", K)(image, target)
        torch.testing.assert_close(mixed, image)
        torch.testing.assert_close(targets, F.one_hot(target, K).float())
    assert BatchMix(MixConfig(erase=1.0), "multiclass", K)(image, target)[0].eq(0).any()


def test_erasing_alone_keeps_the_targets():
    images, targets = batch()
    assert BatchMix(MixConfig(erase=1.0), "multiclass", K)(images, targets)[1] is targets


@pytest.mark.parametrize(("config", "is_on"), [(MixConfig(), False), (MixConfig(erase=1), True), (ALL, True)])
def test_what_is_off_changes_nothing_and_draws_nothing(config, is_on):
    mix, before = BatchMix(config, "multiclass", K), torch.get_rng_state()
    images, targets = batch()
    found = mix(images, targets)
    assert mix.is_on is is_on
    assert torch.get_rng_state().equal(before) is not is_on
    assert (found[0] is images and found[1] is targets) is not is_on


def test_whole_number_is_taken_for_alpha():
    assert BatchMix(MixConfig(mixup=1, cutmix=1), "multiclass", K)(*batch())[1].shape == (B, K)


@pytest.mark.parametrize(
    ("options", "task", "text"),
    [
        ({"mixup": -0.1}, "multiclass", "model.mix.mixup: must be a number that is at least 0, got -0.1"),
        ({"cutmix": float("inf")}, "multiclass", "model.mix.cutmix: must be a number that is at least 0, got inf"),
        ({"mixup": float("nan")}, "multilabel", "model.mix.mixup: must be a number that is at least 0, got nan"),
        ({"erase": 1.1}, "multiclass", "model.mix.erase: must be at least 0 and at most 1, got 1.1"),
        ({"erase": -0.5}, "regression", "model.mix.erase: must be at least 0 and at most 1, got -0.5"),
        ({"cutmix": 1.0}, "regression", "model.mix.cutmix: is for classes, not model.task regression; take model.mix"),
    ],
)
def test_mixing_that_cannot_be_is_refused(options, task, text):
    with pytest.raises(UserError, match=f"^{re.escape(text)}"):
        check_task(task, 0.0, cutmix=MixConfig(**options).cutmix)
