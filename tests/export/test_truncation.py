"""Networks that are cut after a stage."""

import pytest
import torch
from small_runs import FewDigits

from lit_ft.errors import UserError
from lit_ft.export.truncation import refuse_stage, truncate
from lit_ft.model.module import FineTuneModule


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return FineTuneModule("mnist_cnn", weights="MNIST", classes=[str(k) for k in range(10)]).eval()


@pytest.fixture(scope="module")
def data(model):
    data = FewDigits()
    data.setup()
    data.input_spec = model.input_spec
    return data


@pytest.mark.parametrize("stage", ["conv", "dense"])
def test_head_is_solved_on_the_features_of_the_stage(model, data, stage):
    cut = truncate(model, data, stage)
    split = data.splits["val"]
    images = model.normalise(split.images[split.rows])
    with torch.no_grad():
        outputs = model.backbone.activations(images)
        features = outputs["conv"].mean(dim=(2, 3)) if stage == "conv" else model.backbone(images)
        torch.testing.assert_close(cut.parts.body(images), features, atol=1e-5, rtol=1e-4)
        logits = cut.parts.head(features)
    assert cut.metric == "val/acc"
    known = cut.parts.calibration
    sets = known.label_sets(logits.softmax(dim=1))
    assert sets[torch.arange(len(sets)), split.targets].float().mean() >= 0.9
    assert known.references.shape == features.shape
    assert not bool(known.are_unlike(features).any())  # themselves
    assert bool(known.are_unlike(-features).all())
    hits = (logits.argmax(dim=1) == split.targets).float()
    assert hits.mean().item() == pytest.approx(cut.after)
    assert cut.after > 0.3  # of ten classes
    assert (cut.compute < 1, cut.parameters < 1) == ((True, True) if stage == "conv" else (False, False))


def test_more_is_predicted_at_the_later_stage(model, data):
    accuracies = {stage: truncate(model, data, stage).after for stage in ("conv", "dense")}
    assert accuracies["dense"] > accuracies["conv"] > 0.1


def test_stage_that_the_backbone_has_not_is_refused(model):
    with pytest.raises(UserError, match=r"^--until: unknown stage 'layer1'"):
        refuse_stage(model, "layer1", "--until")
    refuse_stage(model, "conv", "--until")
