"""Fine-tuning trials: what is refused, what is compared, and what ends in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_sets import NETWORK, read_photos, write_photos
from torch import Tensor

from lit_ft import DigitsDataModule, FineTuneModule, GradualUnfreezing
from lit_ft.errors import UserError
from lit_ft.probes.feature_pass import compute_stage_features
from lit_ft.probes.heads.linear_probe import fit_linear_probe
from lit_ft.probes.images import ProbeImages, read_images
from lit_ft.probes.survey import BackboneProbe, survey_backbone
from lit_ft.probes.trial import HeldOut, compare
from lit_ft.training import trial_fit
from lit_ft.training.trial_fit import TrialConfig, refuse_untried, try_fine_tuning

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path: Path) -> ProbeImages:
    return read_photos(write_photos(tmp_path, {"dots": 20, "lines": 20}), batch_size=8, num_workers=0)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[HeldOut]:
    """What is compared of each fold."""
    taken: list[HeldOut] = []

    def take(given: list[HeldOut], images: ProbeImages) -> Any:
        taken.extend(given)
        return compare(given, images)

    monkeypatch.setattr(trial_fit, "compare", take)
    return taken


def budget_of(images: ProbeImages, num_folds: int = 1) -> float:
    """What lets two epochs of so many of two folds be planned, where a pass takes a second, which it does not."""
    return num_folds * len(images.firsts) / 2 * (2 + 4 * 2) + 1


def config(budget: float, max_epochs: int = 2, strategy: Any = "full", **options: Any) -> TrialConfig:
    given = {"backbone": "mnist_cnn", "weights": "MNIST", "lr": 1e-4, **options}

    def build() -> tuple[FineTuneModule, GradualUnfreezing]:
        return FineTuneModule(**given), GradualUnfreezing(strategy, head_fit="solved")

    trainer = {"max_epochs": max_epochs, "enable_progress_bar": False, "callbacks": None}
    return TrialConfig(build, strategy, trainer, CPU, budget)


def best_of(images: ProbeImages) -> BackboneProbe:
    probe = survey_backbone(NETWORK, images, images.fold()[:1], CPU, all_stages=False).probe
    return replace(probe, feature_seconds=len(images), solver_seconds=0.0)


@pytest.mark.long
def test_probe_is_the_head_that_is_solved_on_the_same_images(images: ProbeImages, parts: list[HeldOut]) -> None:
    found = try_fine_tuning(config(budget_of(images, 2)), images, best_of(images))
    rows = torch.cat([part.rows for part in parts])
    assert rows.sort().values.tolist() == images.firsts.tolist()
    assert (found.num_folds, found.num_epochs) == (2, 2)
    assert found.predicted_seconds == 2 * len(rows) / 2 * (2 + 4 * 2)
    assert (found.num_held_out, found.num_images) == (len(rows), len(images.firsts))
    train = images.firsts[~torch.isin(images.firsts, parts[0].rows)]
    module = FineTuneModule("mnist_cnn", "MNIST", classes=2).eval()

    def pass_part(rows: Tensor) -> Tensor:
        source = images.data.with_splits({"train": images.part(rows)}).source("train", augment=False)
        return compute_stage_features(module.backbone, module.normalise, source).last

    head = fit_linear_probe(pass_part(train), replace(images.targets, values=images.targets.values[train]))
    torch.testing.assert_close(parts[0].probe, head(pass_part(parts[0].rows)).double(), atol=1e-3, rtol=1e-3)
    assert torch.equal(parts[0].targets.values, images.targets.values[parts[0].rows])


@pytest.mark.long
def test_fine_tuned_model_differs_and_nothing_does_without_a_rate(images: ProbeImages, parts: list[HeldOut]) -> None:
    budget, best = budget_of(images), best_of(images)
    try_fine_tuning(config(budget, lr=1e-3), images, best)
    assert all((part.tuned - part.probe).abs().max() > 0.1 for part in parts)
    parts.clear()
    found = try_fine_tuning(config(budget, lr=1e-12), images, best)
    assert all(torch.allclose(part.tuned.double(), part.probe, atol=1e-3) for part in parts)
    assert found.comparison.score.change == 0.0


def test_random_weights_are_the_same_in_each_fold(
    images: ProbeImages, parts: list[HeldOut], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tensor] = []
    given = config(budget_of(images, 2), weights=None)

    def build() -> tuple[FineTuneModule, GradualUnfreezing]:
        module, unfreezing = given.build()
        made.append(next(module.backbone.parameters()).clone())
        return module, unfreezing

    try_fine_tuning(replace(given, build=build), images, best_of(images))
    assert len(made) == 2
    assert torch.equal(*made)


def test_data_module_is_as_before_and_nothing_is_left(
    images: ProbeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = {name: value for name, value in vars(images.data).items() if name != "splits"}
    splits = dict(images.data.splits)
    try_fine_tuning(config(budget_of(images)), images, best_of(images))
    assert list(folder.iterdir()) == []
    assert images.data.splits == splits
    assert {name for name, value in before.items() if vars(images.data)[name] is not value} == {"input_spec"}


@pytest.mark.long
def test_cache_of_resized_photos_is_left_alone(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", {"dots": 20, "lines": 20})
    images = read_photos(root, cache=str(tmp_path / "cache"), num_workers=0)
    best = best_of(images)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    try_fine_tuning(config(budget_of(images)), images, best)
    assert before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before


def test_time_that_is_up_ends_the_first_fold_after_a_step_and_is_told(images: ProbeImages) -> None:
    # Predicted to take next to nothing, so that all is planned; and the deadline has passed before the first step.
    found = try_fine_tuning(config(budget=1e-4), images, replace(best_of(images), feature_seconds=0.0))
    assert (found.planned.num_tried, found.planned.num_epochs) == (5, 2)
    assert found.num_folds == 1
    assert found.num_epochs == 1 / 4  # a batch of 8 of about 30 images
    assert found.num_held_out == pytest.approx(len(images.firsts) / 5, abs=1)
    assert found.seconds > found.budget


@pytest.mark.long
def test_folds_for_which_no_time_is_left_are_left_out(images: ProbeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(trial_fit.time, "monotonic", lambda: now[0])
    try_fold: Callable[..., HeldOut] = trial_fit._try_fold

    def take_time(*args: Any) -> HeldOut:
        part = try_fold(*args)
        now[0] += 40.0
        return part

    monkeypatch.setattr(trial_fit, "_try_fold", take_time)
    found = try_fine_tuning(config(budget=100.0), images, replace(best_of(images), feature_seconds=1e-9))
    assert (found.planned.num_tried, found.num_folds, found.num_epochs, found.seconds) == (5, 2, 2, 80.0)


@pytest.mark.long
def test_strategies_of_one_phase_have_few_epochs_and_others_all(images: ProbeImages) -> None:
    best = best_of(images)
    # Of half of the images: 2 + 4 E passes, where E epochs are tried.
    budget = (2 + 4 * 4) * len(images.firsts) / 2 + 1
    found = try_fine_tuning(config(budget, max_epochs=6), images, best)
    assert (found.planned.num_epochs, found.planned.num_images) == (4, len(images.firsts))
    with pytest.raises(UserError, match=r"budget: .* suffices for .* images"):
        try_fine_tuning(config(budget, max_epochs=6, strategy="gradual"), images, best)


def test_plan_that_does_not_fit_is_refused(images: ProbeImages) -> None:
    with pytest.raises(UserError, match="needs at least 2 epochs"):
        try_fine_tuning(config(1e4, max_epochs=1, strategy="gradual"), images, best_of(images))


@pytest.mark.long
def test_sets_in_memory_and_balanced_batches_are_tried(parts: list[HeldOut]) -> None:
    images = read_images(DigitsDataModule(shots=4, sampling="balanced"))
    found = try_fine_tuning(config(budget_of(images)), images, best_of(images))
    assert found.num_held_out == len(images.firsts)  # in two folds, although one was planned
    assert found.planned.num_tried == 1
    assert found.comparison.score.probe > 0.8


def test_loss_that_is_not_finite_is_refused(images: ProbeImages) -> None:
    with pytest.raises(UserError, match="not finite"):
        try_fine_tuning(config(budget_of(images), lr=1e30), images, best_of(images))


@pytest.mark.parametrize(
    ("model", "unfreeze", "max_epochs", "message"),
    [
        ({}, None, 3, "unfreeze null leaves nothing to try; leave one of the two out"),
        ({}, {"strategy": "linear_probe"}, 3, "unfreeze.strategy linear_probe leaves nothing to try"),
        ({}, {}, 0, "trainer.max_epochs 0 leaves nothing to try"),
        ({"head": {"hidden": [8]}}, {}, 3, "a solved head, and that is linear, without model.head.hidden"),
        ({"head": {"kind": "cosine"}}, {}, 3, "not model.head.kind cosine"),
        ({"mix": {"cutmix": 1.0}}, {}, 3, "images as they are, without model.mix"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    model: dict[str, Any], unfreeze: dict[str, Any] | None, max_epochs: int, message: str
) -> None:
    with pytest.raises(UserError, match=f"budget: .*{message}"):
        refuse_untried(model, unfreeze, max_epochs)


def test_defaults_and_runs_without_an_end_can_be_tried() -> None:
    refuse_untried({"head": None, "mix": {"mixup": 0.0}}, {"strategy": "gradual"}, -1)
    refuse_untried({}, {}, None)
