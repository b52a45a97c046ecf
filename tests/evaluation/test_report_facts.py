"""Facts of a report."""

import pytest
import torch

from lit_ft.errors import UserError
from lit_ft.evaluation.report_facts import describe_choice, describe_weights, list_facts, measure_drift
from lit_ft.runs import Run


def save(path, weights, temperature=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    calibration = {"calibration": {"temperature": temperature}} if temperature else {}
    torch.save({"state_dict": weights, **calibration}, path)


def test_drift_is_the_norm_of_the_change_by_that_of_the_weights(tmp_path):
    run = Run(tmp_path)
    before = {
        "backbone.stages.stem.conv.weight": torch.tensor([3.0, 4.0]),
        "backbone.stages.stem.norm.running_mean": torch.tensor([1.0]),
        "backbone.stages.layer1.weight": torch.tensor([1.0]),
        "head.0.weight": torch.tensor([2.0, 0.0]),
        "head.0.bias": torch.tensor([0.0]),
    }
    save(run.probe, before)
    assert measure_drift(run) == {}
    after = {name: value.clone() for name, value in before.items()}
    after["backbone.stages.stem.conv.weight"] += torch.tensor([0.3, 0.4])
    after["backbone.stages.stem.norm.running_mean"] += 9.0
    after["head.0.bias"] += 1.0
    save(run.checkpoint("best"), after)
    assert measure_drift(run) == pytest.approx({"stem": 0.1, "layer1": 0.0, "head": 0.5}, abs=1e-6)
    colder = {name: value / 2 if name.startswith("head") else value for name, value in before.items()}
    save(run.checkpoint("best"), colder, temperature=2.0)
    assert measure_drift(run) == {"stem": 0.0, "layer1": 0.0, "head": 0.0}
    run.probe.write_text("no checkpoint")
    with pytest.raises(UserError, match=r"probe\.ckpt: is damaged; remove it, or run again"):
        measure_drift(run)


def test_choice_says_by_what_and_what_followed():
    chosen = {"selection": {"chosen": "epoch 3", "split": "val", "monitor": "val/loss"}}
    assert describe_choice({}) == ""
    assert describe_choice(chosen) == "Handed back: epoch 3, chosen on the val images by val/loss."
    again = describe_choice({**chosen, "refit": {"images": 1200, "epochs": 4}})
    assert "It was then fitted again on 1,200 images of train and val, 4 epochs. The validation figures are" in again


def test_weights_have_their_source_as_far_as_it_is_known():
    assert describe_weights("mnist_cnn", "MNIST") == "mnist_cnn MNIST, which comes with lit_ft"
    assert describe_weights("resnet18", "DEFAULT").startswith("resnet18 IMAGENET1K_V1; https://")
    assert describe_weights("resnet18", "/a/b.pth") == "b.pth"
    assert describe_weights("resnet18", None) is None
    assert describe_weights({"class_path": "own.Network"}, "own.pth") == "own.pth"
    assert describe_weights("nothing", "DEFAULT") == "DEFAULT"


def test_weights_of_timm_have_their_licence():
    pytest.importorskip("timm")
    found = describe_weights("timm/tf_efficientnet_lite0", "DEFAULT")
    assert "; licence apache-2.0" in found
    assert found.startswith("timm/tf_efficientnet_lite0 in1k; https://huggingface.co/")


def test_folds_are_told_and_epochs_of_a_run_alone():
    def facts(**options):
        found = list_facts({"data": {"class_path": "lit_ft.A", "init_args": options}}, [], {})
        return {name: found[name] for name in ("fold", "folds", "epochs") if name in found}

    assert facts(folds=5, fold=None) == {"folds": "5"}
    assert facts(folds=5, fold=2) == {"fold": "2 of 5", "epochs": "0"}
    assert facts(folds=None, fold=None) == facts() == {"epochs": "0"}
