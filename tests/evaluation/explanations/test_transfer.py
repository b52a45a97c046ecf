"""Drift, likeness of features and probes of stages."""

import math

import pytest
import torch
from small_runs import small_module

from lit_ft.data.folds import make_folds
from lit_ft.evaluation.explanations.transfer import linear_cka, measure_cka, measure_drift, probe_stages
from lit_ft.probes.heads.solver import Targets


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_drift_is_nothing_where_weights_are_unchanged_and_relative_elsewhere():
    before, after = small_module(classes=3), small_module(classes=3)
    after.load_state_dict(before.state_dict())
    assert measure_drift(before.stage_modules(), after.stage_modules()) == {"conv": 0.0, "dense": 0.0, "head": 0.0}
    with torch.no_grad():
        for parameter in after.backbone.stages["dense"].parameters():
            parameter.mul_(1.5)
        for parameter in after.head.parameters():
            parameter.zero_()
    found = measure_drift(before.stage_modules(), after.stage_modules())
    assert found == pytest.approx({"conv": 0.0, "dense": 0.5, "head": 1.0}, rel=1e-6)


def test_drift_of_a_backbone_alone_has_no_head_and_of_zeros_is_unknown():
    before, after = small_module(classes=3), small_module(classes=3)
    assert list(measure_drift(before.backbone.stage_modules(), after.stage_modules())) == ["conv", "dense"]
    with torch.no_grad():
        for parameter in before.head.parameters():
            parameter.zero_()
    assert math.isnan(measure_drift(before.stage_modules(), after.stage_modules())["head"])


def test_equal_features_are_alike_whatever_their_rotation_shift_and_scale():
    features = random(30, 8)
    rotation = torch.linalg.qr(random(8, 8, seed=1).double())[0].float()
    for other in (features, features @ rotation, 3 * features + 7, features @ rotation[:, :8] - 2):
        assert linear_cka(features, other) == pytest.approx(1.0, abs=1e-5)
    assert linear_cka(features, torch.cat([features, features], dim=1)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("channels", [4, 500])
def test_independent_features_are_not_alike_also_where_channels_outnumber_images(channels):
    found = [linear_cka(random(40, channels, seed=2 * i), random(40, channels, seed=2 * i + 1)) for i in range(6)]
    # Unbiased, so that they are of either sign: with N images their deviation is about 1 / N times a few.
    assert max(map(abs, found)) < 0.3
    assert min(found) < 0.0
    mixed = linear_cka(random(40, 4), random(40, 4) + 0.5 * random(40, 4, seed=9))
    assert 0.3 < mixed < 0.99


def test_estimator_is_that_of_song_and_others():
    one, two = random(7, 3), random(7, 5, seed=1)
    num, ones = 7, torch.ones(7, dtype=torch.float64)

    def hsic(first, second):
        left, right = ((f.double() @ f.double().T).fill_diagonal_(0) for f in (first, second))
        value = (left @ right).trace() + (ones @ left @ ones) * (ones @ right @ ones) / ((num - 1) * (num - 2))
        return (value - 2 / (num - 2) * (ones @ left @ right @ ones)) / (num * (num - 3))

    wanted = hsic(one, two) / (hsic(one, one) * hsic(two, two)).sqrt()
    assert linear_cka(one, two) == pytest.approx(float(wanted), rel=1e-5)


def test_constant_features_are_like_nothing_and_three_images_too_few():
    assert math.isnan(linear_cka(torch.ones(9, 3), random(9, 3)))
    with pytest.raises(ValueError, match="needs 4 images at least, got 3"):
        linear_cka(random(3, 2), random(3, 2))


def test_stages_are_compared_by_name():
    same, other = random(20, 4), random(20, 4, seed=1)
    found = measure_cka({"a": same, "b": same}, {"a": same, "b": other})
    assert found["a"] == pytest.approx(1.0)
    assert abs(found["b"]) < 0.5


def test_probe_of_a_stage_with_the_class_in_its_features_is_right_and_of_noise_by_chance():
    classes = torch.arange(60) % 3
    told = torch.nn.functional.one_hot(classes, 3).float() + 0.05 * random(60, 3)
    targets = Targets("softmax", classes, 3)
    found = probe_stages({"noise": random(60, 5), "told": told}, targets, make_folds(classes, repeats=1), "after")
    assert found["told"] == 1.0
    assert found["noise"] < 0.65  # a third, by five deviations of 60 trials
