"""Lightning's finders in a run: it goes on as one that was given what they found."""

import re

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from small_runs import FewDigits, differences, final_state, small_module, small_trainer

from lit_ft.evaluation.run_report import RunReport
from lit_ft.model.fit.finders import format_found
from lit_ft.unfreezing.callback import GradualUnfreezing

RATE = ["LearningRateFinder", "--trainer.callbacks.min_lr", 1e-4, "--trainer.callbacks.max_lr", 0.1]
RATE += ["--trainer.callbacks.num_training_steps", 24, "--trainer.callbacks.early_stop_threshold", "null"]
SIZE = ["BatchSizeFinder", "--trainer.callbacks.max_trials", 3, "--trainer.callbacks.steps_per_trial", 1]


@pytest.mark.parametrize(
    "found_by",
    [["--trainer.callbacks+", *RATE], ["--trainer.callbacks", *SIZE, "--trainer.callbacks+", *RATE]],
    ids=["rate", "size and rate"],
)
def test_run_goes_on_as_one_that_was_given_what_was_found(run, found_by):
    options = ["--trainer.max_epochs", 4, "--model.lr_decay", 0.5, "--lr_scheduler.warmup_fraction", 0.3]
    printed = run("fit", *options, "--name", "finds", *found_by)
    (found,) = re.findall(r"Found +(.*)", printed)
    values = dict(re.findall(r"(\S+) (\S+)", found))
    assert 1e-4 < float(values["model.lr"]) < 0.1
    assert int(values["data.batch_size"]) == (8 if "BatchSizeFinder" in found_by else 32)
    flags = [part for name, value in values.items() for part in (f"--{name}", value)]
    given = run("fit", *options, "--name", "given", "--data", "DigitsDataModule", "--data.shots", 10, *flags)
    plans = [re.findall(r" +[12] +\d.*head +.*", text) for text in (printed, given)]
    assert plans[0] == plans[1] != []
    checkpoints = [torch.load(f"logs/{name}/version_0/checkpoints/last.ckpt") for name in ("finds", "given")]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert differences(*(checkpoint[key] for checkpoint in checkpoints)) == []
    assert checkpoints[0]["hyper_parameters"]["lr"] == float(values["model.lr"])


def test_found_values_are_those_of_a_run_with_lightnings_own_trainer(tmp_path):
    def fitted(module, data, *callbacks):
        torch.manual_seed(0)
        trainer = small_trainer(5, *callbacks, GradualUnfreezing("full"), RunReport(), default_root_dir=tmp_path)
        trainer.fit(module, datamodule=data)
        return final_state(trainer, module)

    module, data = small_module(lr_decay=0.5), FewDigits(batch_size=4)
    size = BatchSizeFinder(max_trials=2, steps_per_trial=1)
    rate = LearningRateFinder(min_lr=1e-4, num_training_steps=20, early_stop_threshold=None)
    found = fitted(module, data, size, rate)
    assert data.batch_size == size.optimal_batch_size == 4
    assert module.hparams["lr"] == rate.optimal_lr.suggestion() != 0.05
    given = fitted(small_module(lr=module.hparams["lr"], lr_decay=0.5), FewDigits(batch_size=4))
    assert differences(found, given) == []


def test_resumed_run_keeps_what_was_found(run, refused):
    run("fit", "--trainer.max_epochs", 2)
    last = ("--ckpt_path", "logs/run/version_0/checkpoints/last.ckpt")
    line = refused("fit", "--trainer.max_epochs", 3, *last, "--trainer.callbacks+", *RATE)
    assert "--trainer.callbacks: LearningRateFinder would find other values than those of the run that is" in line


def test_finder_alone_is_a_list_of_one(run):
    assert "Found  model.lr " in run("fit", "--trainer.max_epochs", 2, "--trainer.callbacks", *RATE)


def test_data_without_a_batch_size_is_not_named():
    assert format_found(small_module(lr=0.25), None) == "Found  model.lr 0.25"
