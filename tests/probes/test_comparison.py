"""Backbones on the same folds, and the best of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from probe_sets import NETWORK, read_photos, write_photos

from lit_ft.errors import UserError
from lit_ft.probes.comparison import probe_images
from lit_ft.probes.heads.cross_validation import corrected_interval
from lit_ft.probes.images import ProbeImages
from lit_ft.probes.survey import BackboneChoice, survey_backbone

CPU = torch.device("cpu")
RANDOM = BackboneChoice("squeezenet1_1", None, {"input": {"size": 32}})


@pytest.fixture
def images(tmp_path: Path) -> ProbeImages:
    return read_photos(write_photos(tmp_path, {"dots": 15, "lines": 15, "plain": 15}), val_fraction=0.2)


@pytest.mark.long
def test_best_backbone_is_first_and_leads_in_the_same_folds(images: ProbeImages) -> None:
    torch.manual_seed(0)
    probe, best = probe_images([RANDOM, NETWORK], images, CPU, all_stages=False)
    assert best is NETWORK
    assert [one.name for one in probe.backbones] == ["mnist_cnn", "squeezenet1_1"]
    assert probe.best.score >= probe.backbones[1].score
    (lead,) = probe.leads
    assert lead.name == "squeezenet1_1"
    assert lead.difference == pytest.approx(probe.best.score - probe.backbones[1].score)
    assert lead.interval[0] < lead.difference < lead.interval[1]
    assert probe.findings.backbone == "mnist_cnn"
    assert (probe.metric, probe.sizes, probe.num_folds) == ("accuracy", {"train": 36, "val": 9}, 5)
    assert "the first backbone was chosen by these scores" in probe.notes[1]


@pytest.mark.long
def test_lead_is_the_interval_of_paired_differences(images: ProbeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    surveys = [survey_backbone(one, images, images.fold(), CPU, all_stages=False) for one in (NETWORK, RANDOM)]
    given = iter(surveys)
    monkeypatch.setattr("lit_ft.probes.comparison.survey_backbone", lambda *_: next(given))
    probe, _ = probe_images([NETWORK, RANDOM], images, CPU)
    differences = surveys[0].validated.fold_accuracies - surveys[1].validated.fold_accuracies
    assert abs(probe.leads[0].difference) == pytest.approx(abs(float(differences.mean())))
    if surveys[0].probe.score > surveys[1].probe.score:
        assert probe.leads[0].interval == corrected_interval(differences, 1 / 4)


@pytest.mark.long
def test_backbones_that_cannot_be_built_are_told_and_the_others_go_on(images: ProbeImages) -> None:
    probe, best = probe_images([BackboneChoice("resnet5", None), NETWORK], images, CPU, all_stages=False)
    assert best is NETWORK
    assert list(probe.failed) == ["resnet5"]
    assert probe.failed["resnet5"].startswith("--model.backbone: unknown backbone 'resnet5'")
    assert len(probe.notes) == 1  # nothing was chosen


def test_no_backbone_at_all_is_one_line(images: ProbeImages) -> None:
    choices = [BackboneChoice("resnet5", None), BackboneChoice("mnist_cnn", "nowhere.pth")]
    with pytest.raises(UserError, match=r"^resnet5: .*unknown backbone.*; mnist_cnn: .*nowhere\.pth"):
        probe_images(choices, images, CPU)


@pytest.mark.long
def test_groups_that_are_never_held_out_are_told(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"dots": 12, "lines": 12, "plain": 3})
    for i in range(3):
        (root / "plain" / f"{i:03}.png").rename(root / "plain" / f"{i}-999.png")
    with pytest.warns(UserWarning, match="no images of plain in val"):
        images = read_photos(root, groups="([0-9]+)[.]png")
    probe, _ = probe_images([NETWORK], images, CPU, all_stages=False)
    assert "3 image(s) of groups with all of a class are never held out" in probe.notes


def test_fewer_folds_and_single_images_are_told(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "train", {"dots": 12, "lines": 2, "plain": 1}).parent
    write_photos(root / "val", {"dots": 3, "lines": 1})
    with pytest.warns(UserWarning, match="no images of: plain"):
        images = read_photos(root)
    probe, _ = probe_images([NETWORK], images, CPU, all_stages=False)
    assert probe.num_folds == 2  # those of val are copies
    assert probe.notes[1:] == [
        "2 folds instead of 5, as there are too few images of a class, copies left out",
        "1 image(s) without another one of their class are never held out",
    ]
