"""The callback of a trial: what it reports, and when it ends the run."""

import optuna
import pytest
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.runs import Run
from lit_ft.training.history import append_row
from lit_ft.tuning.study import quiet_optuna
from lit_ft.tuning.watch import TrialWatch


class EndsAfter(optuna.pruners.BasePruner):
    """Ends each trial once it has so many epochs, and notes when it was asked."""

    def __init__(self, epochs):
        self.epochs, self.asked = epochs, []

    def prune(self, study, trial):
        self.asked.append(trial.last_step)
        return trial.last_step >= self.epochs


def fit(trial, epochs=3, **options):
    shown = []
    watch = TrialWatch(trial, "val/acc", shown.append)
    trainer = small_trainer(epochs, watch, **options)
    trainer.fit(small_module(), datamodule=FewDigits())
    return watch, trainer, shown


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def test_each_epoch_is_reported_and_the_last_one_ends_no_trial():
    pruner = EndsAfter(3)
    trial = optuna.create_study(pruner=pruner).ask()
    watch, trainer, shown = fit(trial, num_sanity_val_steps=1)
    values = trial.study.trials[0].intermediate_values
    assert list(values) == [1, 2, 3]
    assert list(values.values()) == shown
    assert values[3] == pytest.approx(float(trainer.callback_metrics["val/acc"]))
    assert pruner.asked == [1, 2]
    assert not watch.is_pruned


def test_trial_without_prospect_ends_after_its_epoch_as_a_run_does():
    trial = optuna.create_study(pruner=EndsAfter(2)).ask()
    watch, trainer, _ = fit(trial, epochs=9)
    assert watch.is_pruned
    assert trainer.current_epoch == 2
    assert not trainer.interrupted
    assert list(trial.study.trials[0].intermediate_values) == [1, 2]


def test_only_epochs_with_a_validation_are_reported():
    trial = optuna.create_study(pruner=EndsAfter(1)).ask()
    watch, trainer, _ = fit(trial, epochs=5, check_val_every_n_epoch=2)
    assert list(trial.study.trials[0].intermediate_values) == [2]
    assert trainer.current_epoch == 2
    assert watch.is_pruned


def test_resumed_trial_reports_the_epochs_before(tmp_path):
    trainer = small_trainer(2, default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(small_module(), datamodule=FewDigits())
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    for epoch, value in ((0, 0.25), (1, 0.5), (2, 0.75)):  # the last one is trained again
        append_row(Run(tmp_path).history, {"epoch": epoch, "step": 2 * epoch, "val/acc": value})
    trial = optuna.create_study(pruner=EndsAfter(9)).ask()
    watch = TrialWatch(trial, "val/acc", lambda value: None)
    resumed = small_trainer(3, watch, default_root_dir=tmp_path)
    resumed.fit(small_module(), datamodule=FewDigits(), ckpt_path=checkpoint)
    values = trial.study.trials[0].intermediate_values
    assert list(values) == [1, 2, 3]
    assert (values[1], values[2]) == (0.25, 0.5)
    assert values[3] == pytest.approx(float(resumed.callback_metrics["val/acc"]))
