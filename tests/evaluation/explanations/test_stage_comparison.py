"""Stages before and after fine-tuning, on images that the model was not trained on."""

import math

import pytest
import torch
from small_runs import FewDigits, small_module

from lit_ft.errors import UserError
from lit_ft.evaluation.explanations import stage_comparison
from lit_ft.evaluation.explanations.before import Before
from lit_ft.evaluation.explanations.stage_comparison import choose_images, compare_stages, describe, gather_photos
from lit_ft.evaluation.explanations.transfer import StageChange, Transfer
from lit_ft.model.calibration import Calibration
from lit_ft.model.heads import divide_logits

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def models():
    """A pretrained model, and the same with another dense stage."""
    torch.manual_seed(0)
    before, after = small_module(classes=DIGITS).eval(), small_module(classes=DIGITS).eval()
    after.load_state_dict(before.state_dict())
    for parameter in after.backbone.stages["dense"].parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    return before, after


def test_validation_images_are_taken_and_test_images_where_the_model_was_trained_on_those(models):
    images = choose_images(FewDigits(), models[1], is_refitted=False)
    assert images.title == "37 validation images"
    assert len(images.targets.values) == len(images.source) == 37
    images = choose_images(FewDigits(), models[1], is_refitted=True)
    assert images.title == "20 test images"
    assert len(images.targets.values) == len(images.source) == 20


def test_of_many_images_some_are_taken_evenly(models, monkeypatch):
    monkeypatch.setattr(stage_comparison, "MOST", 5)
    images = choose_images(FewDigits(), models[1], is_refitted=False)
    assert images.title == "5 validation images of 37"
    data = FewDigits()
    data.setup()
    rows = torch.tensor([0, 9, 18, 27, 36])
    assert images.targets.values.equal(data.splits["val"].targets[rows])


def test_only_what_was_trained_has_changed(models):
    before, after = models
    found = compare_stages(Before(before, before.backbone, []), after, choose_images(FewDigits(), after, False))
    conv, dense, head = found.stages
    assert (conv.name, conv.drift) == ("conv", 0.0)
    assert conv.cka == pytest.approx(1.0, abs=1e-6)
    assert conv.before == conv.after
    assert dense.drift > 0.5
    assert dense.cka < 0.99
    assert dense.before > 0.5  # MNIST's own features of digits
    assert (head.name, head.drift) == ("head", 0.0)
    assert all(map(math.isnan, (head.cka, head.before, head.after)))
    assert (found.score, found.images, found.notes) == ("accuracy", "37 validation images", [])


def test_without_a_backbone_before_there_are_probes_alone(models):
    found = compare_stages(Before(None, None, ["gone"]), models[1], choose_images(FewDigits(), models[1], False))
    assert all(math.isnan(stage.drift) and math.isnan(stage.cka) for stage in found.stages)
    assert [math.isnan(stage.before) for stage in found.stages] == [True] * 2  # of the head nothing is known
    assert found.stages[0].after > 0.2


def test_images_that_the_model_was_trained_on_are_compared_but_not_probed(models):
    class Untested(FewDigits):
        def read_splits(self):
            splits = super().read_splits()
            del splits["test"]
            return splits

    before, after = models
    images = choose_images(Untested(), after, is_refitted=True)
    found = compare_stages(Before(before, before.backbone, []), after, images)
    assert images.title == "37 validation images"
    assert found.stages[0].cka == pytest.approx(1.0, abs=1e-6)
    assert math.isnan(found.stages[0].after)
    (note,) = found.notes
    assert note.startswith("stages are not probed: the model was trained on the validation images, too, by its refit")


def test_few_images_and_none_are_told(models):
    before, after = models
    given = Before(before, before.backbone, [])
    found = compare_stages(given, after, choose_images(FewDigits(num_val=6), after, False))
    assert "features are not compared: 6 images are too few" in found.notes
    assert found.stages[1].drift > 0.5
    found = compare_stages(given, after, "the data is gone")
    assert found.notes == ["features are not compared: the data is gone"]
    assert (found.images, found.stages[1].drift > 0.5) == ("", True)


def test_model_that_is_the_probe_and_one_without_finite_features_are_told(models):
    before, _ = models
    found = compare_stages(Before(before, before.backbone, []), before, "gone")
    assert "no weight of the backbone has changed: what was handed back is a linear probe" in found.notes
    broken = small_module(classes=DIGITS).eval()
    torch.nn.init.constant_(next(broken.parameters()), math.nan)
    found = compare_stages(Before(before, before.backbone, []), broken, choose_images(FewDigits(), broken, False))
    assert found.notes == ["features are not compared: some are not finite"]


def test_temperature_of_the_head_is_no_drift(models):
    before, _ = models
    calibrated = small_module(classes=DIGITS).eval()
    calibrated.load_state_dict(before.state_dict())
    divide_logits(calibrated.head, 1.25)
    calibrated.calibration = Calibration(1.25)
    kept = calibrated.head[-1].weight.clone()
    found = compare_stages(Before(before, before.backbone, []), calibrated, "gone")
    assert found.stages[-1].drift == 0.0  # not even rounding
    assert calibrated.head[-1].weight.equal(kept)


def test_photos_stand_in_for_the_images_of_a_run(models, photo_root):
    before, after = models
    paths = [str(path) for path in sorted(photo_root.rglob("*.png"))[:12]]
    found = compare_stages(Before(before, before.backbone, []), after, gather_photos(paths, after, "no data"))
    assert found.images == "12 given photos"
    assert found.notes == ["stages are not probed: no data"]
    assert found.stages[0].cka == pytest.approx(1.0, abs=1e-6)


def test_data_of_other_classes_or_kinds_is_refused(models):
    with pytest.raises(UserError, match="the data has other classes by now"):
        choose_images(FewDigits(), small_module(classes=["a", "b"]), False)
    with pytest.raises(UserError, match="object is read as a stream"):
        choose_images(object(), models[1], False)


def test_table_has_what_is_known():
    stages = [StageChange("stem", drift=0.25), StageChange("head")]
    assert describe(Transfer(stages)) == [("stage", "drift"), ("stem", "0.250"), ("head", "")]
    assert describe(Transfer([StageChange("stem")])) == []
    probed = Transfer([StageChange("stem", 0.1, 0.9, 0.5, 0.75)], score="accuracy")
    assert describe(probed)[0] == ("stage", "drift", "CKA", "accuracy before", "accuracy after")
