"""Surveys of one backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from probe_sets import NETWORK, clusters, read_photos, write_photos
from torch import Tensor, nn

from lit_ft import ImageFolderDataModule
from lit_ft.backbones.backbone import Backbone, StageCost
from lit_ft.data.folds import make_folds
from lit_ft.errors import UserError
from lit_ft.model.module import FineTuneModule
from lit_ft.model.preprocessing import Normalise
from lit_ft.probes import survey
from lit_ft.probes.feature_pass import StageFeatures
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import cross_validate
from lit_ft.probes.heads.logme import logme
from lit_ft.probes.heads.solver import Targets
from lit_ft.probes.images import ProbeImages, read_images
from lit_ft.probes.survey import BackboneChoice, measure_stages, survey_backbone

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path: Path) -> ProbeImages:
    return read_photos(write_photos(tmp_path, {"dots": 15, "lines": 15}), val_fraction=0.2)


def test_figures_are_those_of_the_features(images: ProbeImages) -> None:
    folds = images.fold()
    found = survey_backbone(NETWORK, images, folds, CPU)
    probe, values = found.probe, images.targets.values
    expected = cross_validate(Basis(found.features), images.targets, folds)
    assert (probe.score, probe.interval, probe.loss) == (
        expected.accuracy,
        expected.accuracy_interval(),
        expected.loss,
    )
    assert probe.score > 0.8
    assert probe.l2 == expected.strengths[expected.best]
    assert probe.logme == logme(found.features, values)
    assert (probe.name, probe.weights, probe.num_features) == ("mnist_cnn", "MNIST", 128)
    assert probe.parameters == sum(p.numel() for p in NETWORK.build().parameters())
    assert probe.epoch_seconds == pytest.approx(3 * probe.feature_seconds * 24 / 30)
    assert [stage.name for stage in probe.stages] == ["conv", "dense"]


@pytest.mark.long
@pytest.mark.parametrize("options", [{"sampling": "balanced"}, {"class_weight": "balanced"}])
def test_classes_count_as_in_training(tmp_path: Path, options: dict[str, str]) -> None:
    root = write_photos(tmp_path, {"dots": 20, "lines": 5})
    class_weight = options.pop("class_weight", None)
    data = ImageFolderDataModule(root=str(root), val_fraction=0.2, **options)
    images = read_images(data, class_weight)
    # Of 16 and 4 to train on; balanced draws are seen from all 20 and 5.
    per_class = [20 / (2 * 16), 20 / (2 * 4)] if class_weight else [1 / 20, 1 / 5]
    weights = torch.tensor(per_class)[images.targets.values]
    torch.testing.assert_close(images.weights, weights)
    folds = images.fold()
    found = survey_backbone(NETWORK, images, folds, CPU)
    expected = cross_validate(Basis(found.features), images.targets, folds, weights)
    assert found.validated.losses.equal(expected.losses)
    assert not expected.losses.allclose(cross_validate(Basis(found.features), images.targets, folds).losses)


def test_features_are_of_train_then_val_in_the_size_of_the_backbone(images: ProbeImages) -> None:
    backbone = NETWORK.build()
    found = survey.pass_images(backbone, images)
    assert images.data.input_spec == backbone.spec
    val = images.data.val_dataloader()
    with torch.no_grad():
        normalise = Normalise(backbone.spec.mean, backbone.spec.std, backbone.memory_format)
        expected = torch.cat([backbone(normalise(batch)) for batch, _ in val])
    torch.testing.assert_close(found.last[-6:], expected, atol=1e-4, rtol=1e-4)


def test_stages_are_compared_with_the_last_one_in_the_same_folds() -> None:
    strong, classes = clusters(90, 12, 3)
    weak = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    targets, folds = Targets("softmax", classes, 3), make_folds(classes, 3, 2)
    last = cross_validate(Basis(strong), targets, folds)
    costs = [StageCost("a", 10, 300, (4,)), StageCost("b", 30, 100, (12,))]
    first, second = measure_stages(StageFeatures({"a": weak, "b": strong}, 0.0), costs, last, CPU)
    assert first.score == cross_validate(Basis(weak), targets, folds[:1]).accuracy
    assert second.score == float(last.correct[0].mean())
    assert first.difference == first.score - second.score < 0
    assert (first.compute, first.parameters) == (0.75, 10)
    assert (second.difference, second.compute, second.parameters) == (0.0, 1.0, 40)


def test_only_the_last_stage_is_measured_if_so_asked(images: ProbeImages) -> None:
    assert survey_backbone(NETWORK, images, images.fold(), CPU, all_stages=False).probe.stages == []


def test_random_weights_are_those_of_a_run_whatever_was_built_before() -> None:
    choice = BackboneChoice("mnist_cnn", None)
    torch.manual_seed(3)
    expected = FineTuneModule("mnist_cnn", weights=None).backbone.state_dict()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for built in (choice.build(), choice.build()):
        assert all(torch.equal(value, expected[name]) for name, value in built.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    name = next(iter(expected))
    assert not torch.equal(choice.build().state_dict()[name], expected[name])


def with_features(monkeypatch: pytest.MonkeyPatch, features: torch.Tensor) -> None:
    def instead(backbone: Backbone, images: ProbeImages) -> StageFeatures:
        return StageFeatures(dict.fromkeys(backbone.stages, features), 1.0)

    monkeypatch.setattr(survey, "pass_images", instead)


def test_features_that_are_not_finite_are_refused(images: ProbeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.rand(30, 4)
    features[3] = float("nan")
    with_features(monkeypatch, features)
    with pytest.raises(UserError, match="features of 1 of 30 images are not finite, first those of image 3"):
        survey_backbone(NETWORK, images, images.fold(), CPU)


@pytest.mark.parametrize("rounding", [0.0, torch.finfo(torch.float32).eps])
def test_features_that_are_all_equal_are_refused(
    images: ProbeImages, monkeypatch: pytest.MonkeyPatch, rounding: float
) -> None:
    with_features(monkeypatch, torch.ones(30, 4) + rounding * (torch.arange(120).view(30, 4) % 3))
    with pytest.raises(UserError, match="features of all 30 images are equal"):
        survey_backbone(NETWORK, images, images.fold(), CPU)


def test_options_say_how_a_backbone_is_built() -> None:
    backbone = BackboneChoice("squeezenet1_1", None, {"input": {"size": 64}, "pool": "flatten"}).build()
    assert (backbone.spec.size, backbone.num_features, backbone.training) == (64, 512 * 3 * 3, False)


class Own(nn.Module):
    """A network whose stages are compared with the whole, for which all random numbers are seeded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(images).mean(dim=(2, 3)))
        return logits


def test_building_draws_the_same_weights_and_starts_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("get_rng_state", "manual_seed_all"):  # of which the first starts it, and then no process forks for it
        monkeypatch.setattr(torch.cuda, name, None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    own = {"class_path": f"{__name__}.Own", "stages": {"conv": "conv"}, "classifier": "fc"}
    choice, before = BackboneChoice(own, None, {"input": {"size": 8, "resize": 8}}), torch.get_rng_state()
    first, second = (choice.build().state_dict()["stages.conv.conv.weight"] for _ in range(2))
    assert first.equal(second)
    assert torch.get_rng_state().equal(before)
