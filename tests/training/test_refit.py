"""The second fit on training and validation images."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.data import StreamDataModule
from lit_ft.errors import UserError
from lit_ft.runs import Run
from lit_ft.training.handed_back import is_refitted
from lit_ft.training.history import HistoryWriter
from lit_ft.training.refit import Refit, join_validation
from lit_ft.training.selection import Selected, blend
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing

NUM_TRAIN, NUM_VAL = 80, 37  # of `FewDigits` with 8 shots


class Epochs(L.Callback):
    """What the first fit, and no second one, tells a callback of the user's."""

    def __init__(self):
        self.steps = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


def make(folder, *callbacks, lr=0.01, length=None, **options):
    """A trainer with a run, its module, and its data."""
    L.seed_everything(1)
    checkpoint = ModelCheckpoint(folder / "checkpoints", "best", "val/acc", mode="max", enable_version_counter=False)
    unfreezing = GradualUnfreezing(**{"strategy": "lp_ft", "head_fit": "solved", **options})
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, enable_progress_bar=False, enable_model_summary=False, logger=False,
        num_sanity_val_steps=0, **(length or {}), callbacks=[unfreezing, checkpoint, HistoryWriter(), *callbacks],
    )  # fmt: skip
    trainer.run = Run(folder)
    return trainer, small_module(lr=lr, head={"dropout": 0.0}), FewDigits(shots=8, batch_size=16)


def refitted(folder, selected, *callbacks, **options):
    """The state of the model after a refit of what is said to be chosen, and its trainer."""
    trainer, module, data = make(folder, *callbacks, **options)
    again = Refit(trainer, module, data)
    trainer.callbacks.append(again)
    trainer.fit(module, datamodule=data)
    again.fit(trainer, module, selected)
    return {name: value.clone() for name, value in module.state_dict().items()}, trainer


@pytest.mark.long
def test_probe_is_solved_again_on_training_and_validation_images(tmp_path, capsys):
    trainer, module, data = make(tmp_path / "run", lr=3.0)  # by which training destroys everything
    trainer.finetune(module, datamodule=data, refit=True)
    written = json.loads(trainer.run.metrics.read_text())
    assert written["refit"] == {
        "checkpoint": "checkpoints/best.ckpt", "images": NUM_TRAIN + NUM_VAL, "epochs": 0, "share": 0.0
    }  # fmt: skip
    assert f"Refit   on {NUM_TRAIN + NUM_VAL} images of train and val;" in capsys.readouterr().out
    best = str(trainer.run.checkpoint("best"))
    with pytest.warns(UserWarning, match="was trained on its validation images, too"):
        trainer.validate(module, datamodule=data, ckpt_path=best, verbose=False)
    trainer.validate(module, datamodule=FewDigits(num_val=30), ckpt_path=best, verbose=False)  # others, so no warning
    trainer.validate(module, datamodule=data, ckpt_path=trainer.run.probe, verbose=False)
    assert set(json.loads(trainer.run.metrics.read_text())) - set(written) == {
        "val_refit", "val_FewDigits", "val_probe"
    }  # fmt: skip
    # The same by a run that has all of these images to train on.
    other, fresh, whole = make(tmp_path / "whole", strategy="linear_probe")
    whole.setup("fit")
    whole = join_validation(whole)
    other.fit(fresh, datamodule=whole)
    best = torch.load(trainer.run.checkpoint("best"), weights_only=True)["state_dict"]
    probe = torch.load(other.run.checkpoint("probe"), weights_only=True)["state_dict"]
    temperature = written["calibration"]["temperature"]  # of the validation images before they were trained on
    for name, value in best.items():
        expected = probe[name] / temperature if name.startswith("head") else probe[name]
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-3)
    few = torch.load(trainer.run.checkpoint("probe"), weights_only=True)["state_dict"]
    assert not torch.allclose(best["head.0.weight"], few["head.0.weight"], atol=1e-3)


@pytest.mark.long
def test_epochs_of_a_refit_are_those_of_the_first_fit_with_more_images(tmp_path):
    other, fresh, whole = make(tmp_path / "whole")
    whole.setup("fit")
    whole = join_validation(whole)
    other.fit(fresh, datamodule=whole)  # three epochs
    expected = fresh.state_dict()
    watch = Epochs()
    state, _ = refitted(tmp_path / "run", Selected(1.0, 3), watch)
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    assert watch.steps == [5, 10, 15]  # of 80 images, in batches of 16
    shorter, _ = refitted(tmp_path / "shorter", Selected(1.0, 2))
    assert not torch.allclose(
        shorter["backbone.stages.conv.conv.0.weight"], state["backbone.stages.conv.conv.0.weight"]
    )


@pytest.mark.long
def test_refit_of_a_blend_blends_its_own_probe_and_weights(tmp_path):
    whole, _ = refitted(tmp_path / "whole", Selected(1.0, 2), lr=0.0003)
    probe, _ = refitted(tmp_path / "probe", Selected(0.0, 2), lr=0.0003)
    half, _ = refitted(tmp_path / "half", Selected(0.5, 2), lr=0.0003)
    for name, value in blend(probe, whole, 0.5).items():
        torch.testing.assert_close(half[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_refit_whose_blend_is_worse_than_both_ends_leaves_what_was_chosen(tmp_path):
    with pytest.warns(UserWarning, match="the refit is left out, as its blend has a greater loss than both"):
        _, trainer = refitted(tmp_path / "run", Selected(0.5, 2), lr=0.01)
    assert not is_refitted(str(trainer.run.checkpoint("best")))
    assert "refit" not in json.loads(trainer.run.metrics.read_text())


@pytest.mark.long
def test_averaged_weights_are_averaged_again_from_the_solved_head(tmp_path):
    state, trainer = refitted(tmp_path / "run", Selected(1.0, 3), EMAWeightAveraging(decay=0.999))
    probe = torch.load(trainer.run.checkpoint("probe"), weights_only=True)["state_dict"]
    solved = next(callback for callback in trainer.callbacks if isinstance(callback, GradualUnfreezing)).solved
    other = small_trainer(1)
    other.validate(small_module(), FewDigits(shots=8), ckpt_path=str(trainer.run.checkpoint("probe")), verbose=False)
    assert float(other.callback_metrics["val/acc"]) == pytest.approx(solved.metrics["val/acc"])
    # With this decay the average stays where the first step led to, but for 2.5% of the way.
    name = "backbone.stages.conv.conv.0.weight"
    plain, _ = refitted(tmp_path / "plain", Selected(1.0, 3))
    assert (state[name] - probe[name]).norm() < 0.2 * (plain[name] - probe[name]).norm()


@pytest.mark.long
def test_where_validation_images_are_tested_on_that_is_done_before(tmp_path):
    trainer, module, data = make(tmp_path / "run")
    splits = data.read_splits
    data.read_splits = lambda: {name: split for name, split in splits().items() if name != "test"}
    with pytest.warns(UserWarning, match="the validation images are tested on"):
        trainer.finetune(module, datamodule=data, refit=True)
    written = json.loads(trainer.run.metrics.read_text())
    assert written["test"]["test/acc"] == pytest.approx(written["val"]["val/acc"])
    assert list(written) == ["val", "selection", "calibration", "test", "refit"]


@pytest.mark.long
def test_resumed_run_selects_among_the_models_of_its_fit(tmp_path):
    trainer, module, data = make(tmp_path / "run", ModelCheckpoint(tmp_path / "run/checkpoints", "last"))
    trainer.finetune(module, datamodule=data, refit=True)
    before = json.loads(trainer.run.metrics.read_text())
    resumed, module, data = make(tmp_path / "run", ModelCheckpoint(tmp_path / "run/checkpoints", "last"))
    resumed.finetune(module, datamodule=data, refit=True, ckpt_path=str(tmp_path / "run/checkpoints/last.ckpt"))
    after = json.loads(trainer.run.metrics.read_text())
    assert after["val"] == pytest.approx(before["val"])
    assert after["refit"] == before["refit"]


def test_resumed_run_refits_its_best_epoch_again_after_the_refit_took_its_place(tmp_path):
    def fit(**resumed):
        last = ModelCheckpoint(tmp_path / "run/checkpoints", "last")
        trainer, module, data = make(tmp_path / "run", last, lr=3.0, head_fit="trained")  # the first epoch is the best
        trainer.finetune(module, datamodule=data, refit=True, **resumed)
        return json.loads(trainer.run.metrics.read_text())

    before = fit()
    assert before["refit"]["epochs"] < 3
    assert "is_refitted" not in torch.load(tmp_path / "run/checkpoints/best_epoch.ckpt", weights_only=True)
    after = fit(ckpt_path=str(tmp_path / "run/checkpoints/last.ckpt"))
    assert after["refit"] == before["refit"]
    assert after["test"] == pytest.approx(before["test"])


@pytest.mark.long
def test_least_length_of_the_first_fit_does_not_lengthen_the_refit(tmp_path):
    expected, _ = refitted(tmp_path / "plain", Selected(1.0, 1))
    state, _ = refitted(tmp_path / "least", Selected(1.0, 1), length={"min_epochs": 3, "min_steps": 15})
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name])


def test_steps_that_end_the_first_fit_are_more_with_more_images(tmp_path):
    # 8 steps of 80 images, 5 an epoch, end in the second phase, as do 12 of 117 images, 8 an epoch, but not 8 of them.
    length, seen = {"max_steps": 8}, []
    trainer, module, data = make(tmp_path / "run", head_fit="trained", length=length)
    again = Refit(trainer, module, data)
    trainer.callbacks.append(again)
    trainer.fit(module, datamodule=data)
    other = type(trainer).again
    trainer.again = lambda *given, **named: seen.append(other(trainer, *given, **named)) or seen[0]
    again.fit(trainer, module, Selected(1.0, 2))
    assert (trainer.global_step, seen[0].global_step) == (8, 12)


def test_refit_without_validation_is_refused(tmp_path):
    trainer, module, data = make(tmp_path, length={"limit_val_batches": 0})
    with pytest.raises(UserError, match=r"refit: without validation nothing is chosen.*limit_val_batches out"):
        trainer.finetune(module, datamodule=data, refit=True)


@pytest.mark.long
def test_refit_of_a_trainer_from_python_is_handed_back(tmp_path):
    trainer, module, data = make(tmp_path / "run", strategy="linear_probe")
    trainer.run, trainer.loggers = None, [CSVLogger(tmp_path)]
    trainer.finetune(module, datamodule=data, refit=True)
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert best["is_refitted"]
    torch.testing.assert_close(best["state_dict"], dict(module.state_dict()))


@pytest.mark.long
def test_interrupted_refit_tells_the_trainer_of_the_first_fit(tmp_path, monkeypatch):
    trainer, module, data = make(tmp_path / "run")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_ft.training.refit._AtStart.setup", interrupt)
    with pytest.raises(SystemExit):
        trainer.finetune(module, datamodule=data, refit=True)
    assert trainer.interrupted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "plateau"}, "refit: without validation no phase ends by a plateau"),
        ({"strategy": "phases", "phases": [{"train": ["head"], "plateau": {}}, {"train": ["*"]}]}, "by a plateau"),
    ],
)
def test_plan_that_needs_validation_is_refused(tmp_path, options, message):
    trainer, module, data = make(tmp_path / "run", **options)
    with pytest.raises(UserError, match=message):
        trainer.finetune(module, datamodule=data, refit=True)
    assert not (tmp_path / "run").exists()


def test_schedule_or_data_that_cannot_be_refitted_are_refused(tmp_path):
    trainer, _, data = make(tmp_path / "run")
    module = small_module(lr_scheduler={"class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau"})
    with pytest.raises(UserError, match="refit: without validation ReduceLROnPlateau has no metric"):
        Refit(trainer, module, data)
    with pytest.raises(UserError, match="refit: StreamDataModule cannot train on its validation images"):
        Refit(trainer, small_module(), StreamDataModule(root=str(tmp_path)))
    with pytest.raises(UserError, match="refit: true is for FineTuneModule"):
        Refit(trainer, L.LightningModule(), data)


def test_refit_has_its_epochs_whatever_the_time_that_the_fit_had():
    limited = Trainer(accelerator="cpu", max_time="00:00:00:01", logger=False, enable_checkpointing=False)
    assert any(isinstance(callback, Timer) for callback in limited.callbacks)
    assert not any(isinstance(callback, Timer) for callback in limited.again([]).callbacks)
