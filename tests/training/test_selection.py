"""The model that a fine-tuning hands back."""

import json
import math
import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from small_runs import FewDigits, small_module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_ft.runs import Run
from lit_ft.training.history import HistoryWriter, read_history
from lit_ft.training.selection import Candidate, Selected, choose, select_best
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # Accuracy and loss; one standard error of 0.90 of 100 images is 0.03.
        ({"probe": (0.88, 0.40), "tuned": (0.90, 0.35)}, "tuned"),
        ({"probe": (0.88, 0.30), "tuned": (0.90, 0.35)}, "probe"),
        ({"probe": (0.86, 0.30), "tuned": (0.90, 0.35)}, "tuned"),
        ({"probe": (0.90, 0.35), "tuned": (0.90, 0.35)}, "probe"),
        ({"probe": (0.70, 0.10), "blend": (0.89, 0.30), "tuned": (0.90, 0.35)}, "blend"),
    ],
)
def test_least_loss_within_a_standard_error_of_the_best_is_chosen(scores, expected):
    candidates = [Candidate(name, 0.0, {"val/acc": acc, "val/loss": loss}) for name, (acc, loss) in scores.items()]
    assert choose(candidates, "val/acc", "max", 100).name == expected


def test_metric_without_a_known_error_decides_alone():
    candidates = [Candidate("probe", 0.0, {"val/mae": 2.0, "val/loss": 0.1}),
                  Candidate("tuned", 1.0, {"val/mae": 1.9, "val/loss": 0.2})]  # fmt: skip
    assert choose(candidates, "val/mae", "min", 100).name == "tuned"


@pytest.mark.parametrize("monitor", ["val/loss", "val/mse", "val/acc"])
@pytest.mark.parametrize(
    ("gains", "share", "expected"),
    [
        ([0.4, -0.2, 0.3, -0.1], 1.0, "probe"),  # a mean of 0.1, whose error is 0.15
        ([0.4, -0.2, 0.3, -0.1], 0.5, "tuned"),
        ([0.2, 0.1, 0.1, 0.0], 0.75, "tuned"),  # the same mean, with an error of 0.041
        ([0.2, 0.14, 0.12, -0.06], 0.75, "probe"),  # with one of 0.056
        ([0.4, -0.2, 0.3, -0.1] * 4, 1.0, "probe"),  # of 0.066
        ([0.4, -0.2, 0.3, -0.1] * 8, 1.0, "tuned"),  # of 0.046
    ],
)
def test_weights_far_from_the_probe_must_have_a_lower_loss_than_chance(monitor, gains, share, expected):
    losses = torch.linspace(0.5, 3.0, len(gains))
    both = {"probe": (0.0, losses), "tuned": (share, losses - torch.tensor(gains))}
    candidates = []
    for name, (where, own) in both.items():
        metrics = {"val/acc": 0.5, "val/mse": float(own.mean()), "val/loss": float(own.mean())}
        candidates.append(Candidate(name, where, metrics, own))
    assert choose(candidates, monitor, "max" if monitor == "val/acc" else "min", len(gains)).name == expected


def test_weights_far_from_the_probe_may_have_a_better_metric_than_chance():
    # Two standard errors of 0.80 of 100 images are 0.08.
    probe = Candidate("probe", 0.0, {"val/acc": 0.80, "val/loss": 0.3}, torch.full((100,), 0.3))
    for acc, expected in ((0.87, "probe"), (0.89, "tuned")):
        tuned = Candidate("tuned", 1.0, {"val/acc": acc, "val/loss": 0.4}, torch.full((100,), 0.4))
        assert choose([probe, tuned], "val/acc", "max", 100).name == expected


def test_blend_that_is_worse_than_both_of_what_it_blends_is_left_out():
    scores = {"probe": (0.0, 0.70, 0.855), "blend": (0.5, 0.80, 0.888), "last": (1.0, 0.80, 0.850)}
    candidates = [Candidate(name, s, {"val/acc": acc, "val/loss": loss}) for name, (s, acc, loss) in scores.items()]
    assert choose(candidates, "val/acc", "max", 400).name == "last"
    candidates[1] = Candidate("blend", 0.5, {"val/acc": 0.80, "val/loss": 0.849})
    assert choose(candidates, "val/acc", "max", 400).name == "blend"


def test_metric_decides_where_a_validation_step_of_the_users_logs_no_loss():
    # Two standard errors of 0.82 of 100 images are 0.077.
    for acc, expected in ((0.89, "blend"), (0.91, "tuned")):
        scores = {"probe": (0.0, 0.80), "blend": (0.5, 0.82), "tuned": (1.0, acc)}
        candidates = [Candidate(name, share, {"val/acc": score}) for name, (share, score) in scores.items()]
        assert choose(candidates, "val/acc", "max", 100).name == expected


def test_metric_that_is_not_defined_is_the_worst():
    nan, found = Candidate("probe", 0.0, {"val/r2": math.nan, "val/loss": 0.1}), {"val/r2": 0.1, "val/loss": 0.2}
    assert choose([nan, Candidate("tuned", 1.0, found)], "val/r2", "max", 9).name == "tuned"
    assert choose([nan, nan], "val/r2", "max", 1) is nan


def test_r2_is_no_share_of_images():
    candidates = [Candidate("probe", 0.0, {"val/r2": 0.5, "val/loss": 0.40}),
                  Candidate("tuned", 1.0, {"val/r2": 0.6, "val/loss": 0.41})]  # fmt: skip
    assert choose(candidates, "val/r2", "max", 20).name == "tuned"


class WorseAtLast(L.Callback):
    """Turns the head around in the last epoch, before its validation."""

    def on_validation_start(self, trainer, pl_module):
        if trainer.state.fn == "fit" and trainer.current_epoch == trainer.max_epochs - 1:
            with torch.no_grad():
                pl_module.head[-1].weight.neg_()


def finetuned(
    folder, lr, strategy="lp_ft", max_epochs=2, before=lambda run: None, head_fit="solved", callbacks=(),
    ckpt_path=None, **options,
):  # fmt: skip
    """A run, its trainer, and what keeps its best; ``before`` is done before the selection."""
    module = small_module(lr=lr, lr_scheduler=None)
    data = FewDigits(shots=8, batch_size=16)
    checkpoint = ModelCheckpoint(folder / "checkpoints", "best", "val/acc", mode="max", enable_version_counter=False)
    L.seed_everything(1)
    trainer = Trainer(
        accelerator="cpu", max_epochs=max_epochs, enable_progress_bar=False, enable_model_summary=False,
        logger=TensorBoardLogger(folder.parent, folder.name, version=""), num_sanity_val_steps=0,
        callbacks=[GradualUnfreezing(strategy, head_fit=head_fit), checkpoint, HistoryWriter(), *callbacks], **options,
    )  # fmt: skip
    trainer.run = Run(folder)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    ended = {name: value.clone() for name, value in module.state_dict().items()}
    before(trainer.run)
    select_best(trainer, module)
    assert ckpt_path or all(value.equal(ended[name]) for name, value in module.state_dict().items())
    return trainer, checkpoint


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.long
def test_probe_is_handed_back_where_training_has_destroyed_it(tmp_path, capsys):
    trainer, checkpoint = finetuned(tmp_path / "run", lr=3.0)
    run = trainer.run
    assert checkpoint.best_model_path == str(run.checkpoint("best"))
    best, probe = state(run.checkpoint("best")), state(run.checkpoint("probe"))
    assert all(value.equal(probe[name]) for name, value in best.items())
    solved = next(c for c in trainer.callbacks if isinstance(c, GradualUnfreezing)).solved
    written = json.loads(run.metrics.read_text())["val"]
    assert written["checkpoint"] == "checkpoints/best.ckpt"
    assert written["val/acc"] == pytest.approx(solved.metrics["val/acc"])
    assert float(checkpoint.best_model_score) == pytest.approx(solved.metrics["val/acc"])
    rule = "the least loss of those with nearly the best val/acc (above 50% only if clearly better)"
    chosen = f"Chosen  linear probe, by {rule}, so that fine-tuning has not paid\n  candidate "
    assert chosen in capsys.readouterr().out
    trainer.validate(small_module(), datamodule=FewDigits(shots=8), ckpt_path=checkpoint.best_model_path, verbose=False)
    assert float(trainer.callback_metrics["val/acc"]) == pytest.approx(solved.metrics["val/acc"])


@pytest.mark.long
def test_blends_leave_history_and_board_as_the_run_wrote_them(tmp_path):
    trainer, _ = finetuned(tmp_path / "run", lr=0.001)
    assert [row["epoch"] for row in read_history(trainer.run.history)] == [0, 1]
    board = EventAccumulator(str(trainer.run.folder)).Reload()
    assert [event.step for event in board.Scalars("val/acc")] == [4, 9]


def test_probe_alone_is_the_best_checkpoint_of_a_run_without_epochs(tmp_path):
    trainer, checkpoint = finetuned(tmp_path / "run", lr=0.01, strategy="linear_probe")
    best, probe = state(trainer.run.checkpoint("best")), state(trainer.run.checkpoint("probe"))
    assert checkpoint.best_model_path == str(trainer.run.checkpoint("best"))
    assert all(value.equal(probe[name]) for name, value in best.items())


def test_probe_alone_is_named_as_the_user_names_checkpoints(tmp_path):
    named = ModelCheckpoint(tmp_path / "own", "{epoch}-{val/loss:.1f}", "val/loss", auto_insert_metric_name=False)
    finetuned(tmp_path / "run", 0.1, "linear_probe", callbacks=[named])
    loss = json.loads(Run(tmp_path / "run").metrics.read_text())["val"]["val/loss"]
    assert named.best_model_path == str(tmp_path / "own" / f"0-{loss:.1f}.ckpt")
    assert state(named.best_model_path).keys()


@pytest.mark.long
def test_fine_tuned_weights_without_a_validation_are_told(tmp_path):
    with pytest.warns(UserWarning, match="no epoch was validated and saved, so the linear probe is handed back"):
        _, checkpoint = finetuned(tmp_path / "run", 0.1, check_val_every_n_epoch=5)
    probe = state(Run(tmp_path / "run").probe)
    assert all(value.equal(probe[name]) for name, value in state(checkpoint.best_model_path).items())


@pytest.mark.long
def test_selection_that_was_killed_as_it_saved_begins_again_from_the_best_epoch(tmp_path, monkeypatch):
    def move(run):
        run.checkpoint("best").replace(run.checkpoint("best_epoch"))

    take(monkeypatch, -1)
    _, whole = finetuned(tmp_path / "whole", 0.1)
    _, killed = finetuned(tmp_path / "killed", 0.1, before=move)
    assert killed.best_model_score == whole.best_model_score
    assert all(value.equal(state(whole.best_model_path)[name]) for name, value in state(killed.best_model_path).items())


@pytest.mark.long
def test_averaged_weights_are_compared_also_by_a_run_that_is_resumed_at_its_end(tmp_path, capsys):
    def tell(**resumed):
        last = ModelCheckpoint(tmp_path / "run/checkpoints", "last")
        finetuned(tmp_path / "run", 0.1, callbacks=[EMAWeightAveraging(decay=0.9), last], **resumed)
        return capsys.readouterr().out.partition("Chosen")[2]

    assert tell() == tell(ckpt_path=str(tmp_path / "run/checkpoints/last.ckpt"))


@pytest.mark.long
def test_run_without_its_probe_keeps_its_best_epoch(tmp_path):
    with pytest.warns(UserWarning, match="the linear probe is not compared: no .*probe.ckpt"):
        trainer, checkpoint = finetuned(tmp_path / "run", lr=3.0, before=lambda run: run.checkpoint("probe").unlink())
    assert checkpoint.best_model_path == str(trainer.run.checkpoint("best"))


@pytest.mark.long
def test_best_within_an_epoch_is_compared_and_kept(tmp_path, capsys):
    # Its score is in no row of the history.
    trainer, _ = finetuned(tmp_path / "run", lr=0.001, val_check_interval=1)
    capsys.readouterr()
    assert {"best.ckpt", "probe.ckpt"} <= {path.name for path in trainer.run.checkpoints.iterdir()}
    select_best(trainer, trainer.lightning_module)
    chosen = capsys.readouterr().out
    assert re.search(r"\n  linear probe +0\.", chosen)
    assert re.search(r"\n  75% epoch 1, 25% linear probe +0\.", chosen)
    assert re.search(r"\n  epoch \d +0\.", chosen)


@pytest.mark.long
def test_score_of_a_blend_is_its_own_also_after_a_test(tmp_path, monkeypatch):
    take(monkeypatch, 2)
    trainer, checkpoint = finetuned(tmp_path / "run", lr=0.001)
    score = float(checkpoint.best_model_score)
    assert json.loads(trainer.run.metrics.read_text())["val"]["val/acc"] == pytest.approx(score)
    saved = torch.load(checkpoint.best_model_path, weights_only=True)["callbacks"][checkpoint.state_key]
    assert float(saved["best_model_score"]) == pytest.approx(score)
    assert (trainer.run.checkpoints / "best_epoch.ckpt").is_file()


def take(monkeypatch, place):
    """Lets a certain candidate be chosen."""
    monkeypatch.setattr("lit_ft.training.selection.choose", lambda candidates, *_: candidates[place])


@pytest.mark.long
def test_blend_is_of_the_last_epoch_also_where_another_is_the_best(tmp_path, monkeypatch):
    take(monkeypatch, 2)
    trainer, checkpoint = finetuned(tmp_path / "run", lr=0.001, callbacks=[WorseAtLast()])
    run, last = trainer.run, trainer.lightning_module.state_dict()
    assert torch.load(run.checkpoints / "best_epoch.ckpt", weights_only=True)["epoch"] == 0
    probe, best = state(run.checkpoint("probe")), torch.load(checkpoint.best_model_path, weights_only=True)
    halves = {name: (value + last[name]) / 2 for name, value in probe.items() if value.is_floating_point()}
    assert all(best["state_dict"][name].allclose(half, atol=1e-6) for name, half in halves.items())
    assert (best["epoch"], best["share_fine_tuned"]) == (1, 0.5)
    assert not {"optimizer_states", "lr_schedulers"} & best.keys()


@pytest.mark.long
def test_best_epoch_is_handed_back_as_it_is_also_after_another_choice(tmp_path, monkeypatch):
    take(monkeypatch, 0)
    trainer, _ = finetuned(tmp_path / "run", lr=0.001, callbacks=[WorseAtLast()])
    kept = (trainer.run.checkpoints / "best_epoch.ckpt").read_bytes()
    take(monkeypatch, 5)
    assert select_best(trainer, trainer.lightning_module) == Selected(share=1.0, num_epochs=1)
    assert trainer.run.checkpoint("best").read_bytes() == kept


@pytest.mark.long
def test_limited_validation_is_the_same_for_all(tmp_path, capsys):
    trainer, _ = finetuned(tmp_path / "run", lr=0.001, limit_val_batches=1)
    other = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, limit_val_batches=1)
    (metrics,) = other.validate(
        small_module(), FewDigits(shots=8, batch_size=16), str(trainer.run.checkpoint("probe")), verbose=False
    )
    assert re.search(rf"linear probe +{metrics['val/acc']:.4f}", capsys.readouterr().out)


def test_run_whose_head_was_trained_is_left_alone():
    trainer = SimpleNamespace(callbacks=[GradualUnfreezing()], checkpoint_callbacks=[], log_dir=None, current_epoch=3)
    assert select_best(trainer, None) == Selected(share=1.0, num_epochs=3)


def test_best_before_the_first_unfreezing_is_told(tmp_path, capsys):
    finetuned(tmp_path / "run", lr=3.0, head_fit="trained", max_epochs=3)
    assert "Best epoch 0, before the first unfreezing at epoch 1: that has not paid" in capsys.readouterr().out


@pytest.mark.long
def test_epochs_that_brought_no_better_are_told(tmp_path, capsys):
    finetuned(tmp_path / "run", lr=3.0, max_epochs=3)
    chosen = capsys.readouterr().out
    best = int(re.search(r"epoch (\d) ", chosen)[1])
    assert (f"; the last {2 - best} of 3 epochs brought no better" in chosen) == (best < 2)
