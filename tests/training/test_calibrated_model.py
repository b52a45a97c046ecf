"""Calibration of the model that a fine-tuning hands back."""

import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from small_runs import FewDigits, small_module
from torch import nn
from torch.nn import functional as F

import lit_ft
from lit_ft.model.calibration import Calibration
from lit_ft.model.heads import takes_temperature
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run, find_best_callback
from lit_ft.tasks.task import Task
from lit_ft.training.calibrated_model import _calibrate, _format, calibration_error
from lit_ft.training.handed_back import is_handed_back
from lit_ft.training.history import HistoryWriter
from lit_ft.training.selected import ValidationOutputs
from lit_ft.training.selection import select_best
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing

NUM_VAL = 150


def finetuned(folder, head_fit="solved", callbacks=(), monitor="val/acc", **options):
    """A finished run, what it was before it was calibrated, and its data."""
    L.seed_everything(1)
    mode = "max" if monitor == "val/acc" else "min"
    checkpoint = ModelCheckpoint(folder / "checkpoints", "best", monitor, mode=mode, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, enable_progress_bar=False, enable_model_summary=False, logger=False,
        num_sanity_val_steps=0,
        callbacks=[GradualUnfreezing("lp_ft", head_fit=head_fit), checkpoint, HistoryWriter(), *callbacks],
    )  # fmt: skip
    trainer.run = Run(folder)
    module = small_module(lr=0.05, lr_scheduler=None, **{"head": {"dropout": 0.0}, **options})
    data = FewDigits(num_val=NUM_VAL, shots=8, batch_size=16)
    before = {}

    def keep(owner, model):
        selected = select_best(owner, model)
        before.update(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"])
        return selected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_ft.training.trainer.select_best", keep)
        trainer.finetune(module, datamodule=data)
    return trainer, before, data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finetuned(tmp_path_factory.mktemp("calibrated") / "run")


def validation(state, data):
    """Logits and targets of the validation images, by weights of the module."""
    module = small_module(head={"dropout": 0.0}, classes=10).eval()
    module.load_state_dict(state)
    images, targets = (torch.cat(column) for column in zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        return module(images), targets


def test_temperature_of_the_validation_images_is_in_the_head(run):
    trainer, before, data = run
    best = torch.load(trainer.run.checkpoint("best"), weights_only=True)
    temperature = json.loads(trainer.run.metrics.read_text())["calibration"]["temperature"]
    assert abs(math.log(temperature)) > 0.02
    changed = {name for name, value in best["state_dict"].items() if not value.equal(before[name])}
    assert changed == {"head.0.weight", "head.0.bias"}
    (old, targets), (new, _) = validation(before, data), validation(best["state_dict"], data)
    torch.testing.assert_close(new, old / temperature, atol=1e-4, rtol=1e-4)
    losses = [float(F.cross_entropy(logits, targets)) for logits in (new, old, new * 0.9, new * 1.1)]
    assert losses[0] == min(losses)
    assert is_handed_back(best)
    assert "optimizer_states" not in best


def test_run_tells_the_error_before_and_after(run):
    trainer, before, data = run
    logits, targets = validation(before, data)
    facts = json.loads(trainer.run.metrics.read_text())["calibration"]
    task = Task("multiclass", 10)
    assert facts["images"] == NUM_VAL
    assert facts["ece_before"] == pytest.approx(calibration_error(logits.softmax(1), targets, task), abs=1e-4)
    after = (logits / facts["temperature"]).softmax(dim=1)
    assert facts["ece_after"] == pytest.approx(calibration_error(after, targets, task), abs=1e-4)
    known = Calibration.from_plain(torch.load(trainer.run.checkpoint("best"), weights_only=True)["calibration"])
    in_sets = known.label_sets(after).gather(1, targets.unsqueeze(1)).float().mean()
    assert float(in_sets) == pytest.approx(0.91, abs=0.015)  # 136 of 150
    assert facts["unsure"] == pytest.approx(float(known.are_unsure(after).float().mean()))
    before_loss, after_loss = (float(F.cross_entropy(one, targets)) for one in (logits, logits / facts["temperature"]))
    assert (facts["loss_before"], facts["loss_after"]) == pytest.approx((before_loss, after_loss), rel=1e-4)
    assert json.loads(trainer.run.metrics.read_text())["val"]["val/loss"] == pytest.approx(after_loss, rel=1e-4)


@pytest.mark.parametrize("head_fit", ["solved", "trained"])
def test_score_of_the_best_checkpoint_is_its_loss_as_calibrated(tmp_path, head_fit):
    trainer, _, data = finetuned(tmp_path / "run", head_fit, monitor="val/loss")
    best = find_best_callback(trainer)
    score = float(best.best_model_score)
    (found,) = trainer.validate(trainer.lightning_module, data.val_dataloader(), best.best_model_path, verbose=False)
    assert score == pytest.approx(found["val/loss"], rel=1e-5)
    facts = json.loads(trainer.run.metrics.read_text())["calibration"]
    assert facts["loss_after"] < facts["loss_before"] - 1e-3


def test_loaded_model_knows_what_it_is_unsure_of_and_what_is_unlike(run):
    trainer, _, data = run
    model = lit_ft.load(trainer.run.folder, device="cpu")
    digits = torch.cat([images for images, _ in data.test_dataloader()])
    found = model.predict(digits)
    assert sum(one.unlike_training for one in found) <= len(found) // 4
    for one in found:
        assert one.label_set[0] == one.label
        least = max(0.5, model.calibration.least_probability)
        assert one.unsure == (len(one.label_set) > 1 or one.probability < least)
    noise = model.predict(torch.randint(256, (20, 1, 28, 28), dtype=torch.uint8))
    assert sum(one.unlike_training for one in noise) >= 18
    step = model.predict_step(digits, 0)
    assert step["unsure"].tolist() == [one.unsure for one in found]
    assert step["unlike_training"].tolist() == [one.unlike_training for one in found]


def test_fit_forgets_the_calibration(run):
    trainer, _, data = run
    model = FineTuneModule.load_from_checkpoint(trainer.run.checkpoint("best"))
    assert model.calibration is not None
    L.Trainer(fast_dev_run=True, accelerator="cpu", enable_progress_bar=False, logger=False).fit(model, datamodule=data)
    assert model.calibration is None
    assert model.predict(next(iter(data.test_dataloader()))[0])[0].unsure is None


def test_run_whose_head_was_trained_is_calibrated_too(tmp_path):
    trainer, before, _ = finetuned(tmp_path / "run", head_fit="trained", head={"kind": "cosine"})
    best = torch.load(trainer.run.checkpoint("best"), weights_only=True)
    temperature = json.loads(trainer.run.metrics.read_text())["calibration"]["temperature"]
    assert best["share_fine_tuned"] == 1.0
    changed = {name for name, value in best["state_dict"].items() if not value.equal(before[name])}
    assert changed == {"head.0.scale_bias"}
    expected = (10 + before["head.0.scale_bias"]) / temperature - 10
    torch.testing.assert_close(best["state_dict"]["head.0.scale_bias"], expected)
    assert (trainer.run.checkpoints / "best_epoch.ckpt").is_file()


def test_error_is_how_far_probabilities_are_from_shares():
    # Two bins: 0.9 with half of them right, and 0.6 with all of them.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    targets = torch.tensor([0, 1, 0, 0])
    assert calibration_error(probabilities, targets, Task("multiclass", 2)) == pytest.approx(0.4)
    # Of labels: 0.9 of which half are, 0.1 of which half, 0.6 of which all, 0.4 of which none.
    labels = F.one_hot(targets, 2)
    assert calibration_error(probabilities, labels, Task("multilabel", 2)) == pytest.approx(0.4)
    assert calibration_error(probabilities, probabilities, Task("regression", 2)) is None


def test_averages_do_not_take_the_place_of_what_is_handed_back(tmp_path):
    trainer, _, data = finetuned(tmp_path / "run", "trained", callbacks=[EMAWeightAveraging(decay=0.5)])
    best = trainer.run.checkpoint("best")
    # A later test with the same callback would take these for its weights.
    assert not {"current_model_state", "averaging_state"} & torch.load(best, weights_only=True).keys()
    written = json.loads(trainer.run.metrics.read_text())["test"]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    module = FineTuneModule.load_from_checkpoint(best)
    (again,) = L.Trainer(**quiet).test(module, datamodule=data, verbose=False)
    assert again["test/loss"] == pytest.approx(written["test/loss"], rel=1e-5)


def test_head_of_a_users_own_is_not_divided():
    own = nn.Sequential(nn.Linear(2, 3), nn.Hardtanh())
    assert [takes_temperature(head) for head in (own, own[:1], nn.Linear(2, 3))] == [False, True, False]


@pytest.mark.parametrize(
    ("num", "lacking", "told"),
    [
        (8, ["unsure", "unlike_training"], "; too few for the columns unsure and unlike_training of predictions"),
        (18, ["unlike_training"], "; unsure of 100.0%; too few for the column unlike_training of predictions"),
        (19, [], "; unsure of 100.0%"),
    ],
)
def test_columns_for_which_there_are_too_few_images_are_told(num, lacking, told):
    outputs = ValidationOutputs(torch.zeros(num, 3), torch.arange(num) % 3, torch.randn(num, 4), torch.arange(num), {})
    found, facts = _calibrate(Task("multiclass", 3), outputs, can_divide=True)
    flags = {"unsure": found.are_unsure(torch.ones(1, 3) / 3), "unlike_training": found.are_unlike(torch.ones(1, 4))}
    assert [name for name, flag in flags.items() if flag is None] == lacking
    assert _format(facts, found, Task("multiclass", 3)).endswith(f"before, {facts['loss_after']:.4f} after it{told}")
