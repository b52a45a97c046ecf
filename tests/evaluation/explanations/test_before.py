"""What a model was fine-tuned from, as far as it is at hand."""

import lightning as L
import pytest
import torch
from small_runs import small_module

from lit_ft.evaluation.explanations.before import find_before
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run


def save(module, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**content, "pytorch-lightning_version": L.__version__}, path)
    return str(path)


@pytest.fixture
def run(tmp_path):
    """A run whose probe and best checkpoint have other weights."""
    run = Run(tmp_path / "version_0")
    probe, best = small_module(classes=["a", "b"]), small_module(classes=["a", "b"])
    best.load_state_dict(probe.state_dict())
    with torch.no_grad():
        best.head[-1].bias += 1.0
    save(probe, run.probe)
    save(best, run.checkpoint("best"))
    run.config.write_text("{}")
    return run


def load(path):
    return FineTuneModule.load_from_checkpoint(path)


def test_linear_probe_of_the_run_is_found_by_its_folder_and_by_a_checkpoint(run):
    model = load(run.checkpoint("best"))
    for given in (run.folder, run.checkpoint("best")):
        found = find_before(str(given), model)
        assert found.reasons == []
        assert found.name == "the linear probe that the run began with"
        assert found.backbone is found.probe.backbone
        assert not found.probe.training
        torch.testing.assert_close(model.head[-1].bias, found.probe.head[-1].bias + 1.0)


def test_without_a_probe_the_pretrained_backbone_is_read_from_its_weights(run):
    run.probe.unlink()
    model = load(run.checkpoint("best"))
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1.0)
    found = find_before(str(run.folder), model)
    assert found.probe is None
    assert found.name == "the pretrained backbone, without a head"
    assert found.reasons == ["no map before fine-tuning: the run has no probe.ckpt, which one with a solved head keeps"]
    own = next(model.backbone.parameters()) - 1.0
    torch.testing.assert_close(next(found.backbone.parameters()), own, rtol=0, atol=1e-6)
    assert not found.backbone.training


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (None, "the run began with random weights, or does not say with which"),
        ("gone.pth", "the weights gone.pth that the run began with are not on this machine"),
        ("NOTAG", "the weights NOTAG that the run began with are not on this machine"),
    ],
)
def test_weights_that_are_not_at_hand_are_told(run, weights, reason):
    run.probe.unlink()
    model = small_module(classes=["a", "b"])
    model.hparams["source_weights"] = weights
    save(model, run.checkpoint("best"))
    found = find_before(str(run.folder), model)
    assert (found.probe, found.backbone, found.name) == (None, None, "unknown")
    assert found.reasons[1] == f"stages are not compared: {reason}"


def test_probe_itself_a_moved_checkpoint_and_a_damaged_probe_are_told(run, tmp_path):
    model = load(run.checkpoint("best"))
    assert "probe.ckpt is itself the linear probe" in find_before(str(run.probe), model).reasons[0]
    moved = tmp_path / "moved.ckpt"
    run.checkpoint("best").rename(moved)
    assert "moved.ckpt is not in the folder of its run" in find_before(str(moved), model).reasons[0]
    run.probe.write_bytes(b"none")
    assert "probe.ckpt is not a checkpoint, or it is damaged" in find_before(str(run.folder), model).reasons[0]


def test_probe_of_other_classes_is_not_taken(run):
    save(small_module(classes=["a", "c"]), run.probe)
    found = find_before(str(run.folder), load(run.checkpoint("best")))
    assert found.probe is None
    assert "is of other classes or another backbone" in found.reasons[0]
