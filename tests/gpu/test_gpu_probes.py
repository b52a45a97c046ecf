"""What features tell, with the arithmetic on a GPU: the feature pass, the solver, probes and solved heads."""

import json
from pathlib import Path

import pytest
import torch
from gpu_runs import gpu_trainer
from probe_sets import clusters, write_photos
from small_runs import FewDigits, images_of, small_module, small_resnet

from lit_ft.data.folds import make_folds
from lit_ft.data.modules.arrays import ArraySource, ArraySplit
from lit_ft.probes.feature_pass import compute_stage_features, pool_stages
from lit_ft.probes.findings.learning_curve import learning_curve
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import STRENGTHS, cross_validate
from lit_ft.probes.heads.linear_probe import fit_linear_probe
from lit_ft.probes.heads.solver import Problems, Targets, solve
from lit_ft.unfreezing.callback import GradualUnfreezing

pytestmark = pytest.mark.gpu


def targets_of(loss, classes):
    """Targets of each kind, for three classes."""
    one_hot = torch.nn.functional.one_hot(classes, 3).double()
    return {
        "softmax": Targets("softmax", classes, 3),
        "sigmoid": Targets("sigmoid", one_hot, 3, torch.tensor([1.0, 2.0, 3.0])),
        "squared": Targets("squared", one_hot, 3),
    }[loss]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "squared"])
@pytest.mark.parametrize(("num", "width"), [(300, 40), (60, 200)], ids=["more images", "more features"])
def test_solved_heads_are_those_of_the_cpu(loss, num, width, device):
    torch.set_float32_matmul_precision("high")  # as a trainer leaves it
    features, classes = clusters(num, width, 3)
    targets, l2, found = targets_of(loss, classes), torch.tensor([0.01, 1.0]), []
    for dtype, place in ((torch.float64, "cpu"), (torch.float64, device), (torch.float32, device)):
        basis = Basis(features, torch.device(place), dtype)
        problems = Problems(basis, targets, torch.ones(1, num), torch.tensor([0, 0]), l2)
        ((indices, heads),) = solve(problems, tolerance=1e-5)
        assert {one.device.type for one in (indices, heads)} == {place}
        weight, bias = basis.heads(heads)
        found.append(torch.cat([weight @ features.double().to(place).T, bias.unsqueeze(2)], dim=2).cpu())
    exact, there, single = found  # logits, as axes of features that do not vary are free
    scale = exact.abs().max()
    assert (there - exact).abs().max() <= 1e-4 * scale  # both within 1e-5 of the optimum, by the length of the heads
    assert (single - exact).abs().max() <= 1e-3 * scale


@pytest.mark.parametrize("keep", [2 << 30, 0], ids=["kept", "computed again"])
def test_cross_validation_and_learning_curve_are_those_of_the_cpu(keep, device):
    features, classes = clusters(120, 30, 3)
    targets, folds, found = Targets("softmax", classes, 3), make_folds(classes, repeats=2), []
    for place in ("cpu", device):
        basis = Basis(features, torch.device(place), keep=keep)
        validated = cross_validate(basis, targets, folds)
        curve = learning_curve(basis, targets, folds, STRENGTHS[3:5])
        found.append((validated, curve))
    (here, curve), (there, curve_there) = found
    computed = here.losses.isfinite() & there.losses.isfinite()
    assert computed.sum() > computed.numel() / 4
    torch.testing.assert_close(there.losses[computed], here.losses[computed], rtol=1e-2, atol=1e-3)
    assert there.accuracy == pytest.approx(here.accuracy, abs=2 / len(classes))
    assert there.logits.device.type == "cpu"
    assert curve_there.sizes == curve.sizes
    assert (curve_there.accuracies - curve.accuracies).abs().max() <= 3 / len(classes)


def test_probe_of_features_on_the_device_is_that_of_the_cpu(device):
    features, classes = clusters(150, 20, 3)
    targets, new = Targets("softmax", classes, 3), clusters(50, 20, 3, seed=1)[0]
    here, there = (fit_linear_probe(features.to(place), targets) for place in ("cpu", device))
    assert there.weight.device.type == device
    assert there.l2 == here.l2
    torch.testing.assert_close(there(new.to(device)).cpu(), here(new), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("build", [small_module, small_resnet], ids=["cnn", "resnet18"])
def test_features_of_stages_are_those_of_the_cpu(build, device, tmp_path, monkeypatch):
    module = build(classes=10).eval()
    size, channels = module.input_spec.size, module.normalise.channels
    with torch.inference_mode():
        expected = pool_stages(module.backbone, module.normalise(images_of(channels, size, 20)))
    monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path))  # where none are yet
    source = ArraySource(ArraySplit.whole(images_of(channels, size, 20), torch.arange(20)), module.input_spec)
    found = compute_stage_features(module.to(device).backbone, module.normalise, source, batch_size=8)
    assert list(found.stages) == list(expected)
    for name, values in found.stages.items():
        assert values.device.type == "cpu"
        torch.testing.assert_close(values, expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max()))


def test_solved_head_is_that_of_the_cpu(device, tmp_path, monkeypatch):
    found = []
    for place in ("cpu", device):
        monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path / place))
        unfreezing, module = GradualUnfreezing("linear_probe", head_fit="solved"), small_module(lr_scheduler=None)
        trainer = gpu_trainer(place, 1, unfreezing)
        trainer.fit(module, datamodule=FewDigits(shots=8, num_val=100))
        found.append((module.head[-1].weight.detach().cpu(), unfreezing.solved))
    (weight, solved), (weight_there, there) = found
    torch.testing.assert_close(weight_there, weight, rtol=1e-2, atol=1e-3 * float(weight.abs().max()))
    assert there.l2 == solved.l2
    assert there.metrics["val/loss"] == pytest.approx(solved.metrics["val/loss"], rel=1e-3)
    assert there.metrics["val/acc"] == pytest.approx(solved.metrics["val/acc"], abs=0.02)


def test_probe_command_computes_on_the_device_and_finds_the_same(device, run, monkeypatch):
    write_photos(Path("photos").absolute(), {"dots": 20, "lines": 20, "plain": 20})
    places, moved = [], torch.nn.Module.to

    def note(module, *args, **kwargs):
        places.extend(one for one in args if isinstance(one, torch.device))
        return moved(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", note)
    found = []
    for folder, accelerator in (("here", "cpu"), ("there", "auto")):
        monkeypatch.setenv("LIT_FT_CACHE", str(Path(folder, "cache").absolute()))
        places.clear()
        run("probe", "photos", "--model.backbone", "mnist_cnn", "--model.weights", "MNIST", "--folder", folder,
            "--trainer.accelerator", accelerator)  # fmt: skip
        assert {one.type for one in places} == {"cpu" if accelerator == "cpu" else device}
        found.append(json.loads(Path(folder, "probe.json").read_text()))
    (here,), (there,) = (one["backbones"] for one in found)
    assert there["score"] == pytest.approx(here["score"], abs=0.02)
    assert there["loss"] == pytest.approx(here["loss"], rel=0.02)
    assert there["logme"] == pytest.approx(here["logme"], rel=0.01, abs=0.01)
