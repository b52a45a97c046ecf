import json
import os
import signal
from pathlib import Path

import preempted_runs
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small_runs import differences

ARGS = ["finetune", "--config", preempted_runs.QUICKSTART, "--model.head.dropout", 0.5, "--data.batch_size", 8]
ARGS += ["--unfreeze.head_epochs", 2, "--unfreeze.epochs_per_stage", 2, "--trainer.max_epochs", 6, "--report", "null"]
EMA = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}


@pytest.mark.slow
def test_run_ended_by_signals_at_any_moment_ends_as_the_uninterrupted_one(tmp_path):
    found = preempted_runs.launch(tmp_path, 60)
    print(found)
    assert found["wrong"] == []
    assert found["sent"] == 60


class SentOnce(Callback):
    """Sends this process a signal in a batch of an epoch, unless the file ``sent`` is there."""

    def __init__(self, during: str = "train", epoch: int = 2, batch: int = 3):
        self.during, self.place = during, (epoch, batch)

    def send(self, trainer, during, batch_idx):
        if (self.during, self.place) == (during, (trainer.current_epoch, batch_idx)) and not Path("sent").exists():
            Path("sent").touch()
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.send(trainer, "train", batch_idx)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.send(trainer, "val", batch_idx)


SLOW = pytest.mark.slow
SOLVED = ("--unfreeze.head_fit", "solved")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "callbacks", "place", "saved"),
    [
        pytest.param([], [], ("val", 2, 1), (2, 39), id="validation"),
        pytest.param([], [], ("train", 2, 3), (2, 30), id="training", marks=SLOW),
        pytest.param(["--trainer.accumulate_grad_batches", 3], [], ("train", 2, 3), (2, 12), id="sums", marks=SLOW),
        pytest.param([], [EMA], ("val", 2, 1), (2, 39), id="averages_in_validation", marks=SLOW),
        pytest.param([], [EMA], ("train", 2, 3), (2, 30), id="averages", marks=SLOW),
        pytest.param(["--trainer.val_check_interval", 0.5], [], ("val", 2, 1), (2, 33), id="half_epochs", marks=SLOW),
        pytest.param(["--trainer.check_val_every_n_epoch", 2], [], ("val", 3, 1), (3, 52), id="two_epochs", marks=SLOW),
        pytest.param([*SOLVED, "--refit", "true"], [], ("val", 3, 1), (3, 52), id="refit", marks=SLOW),
        pytest.param(["--trainer.logger", "false"], [], ("train", 3, 4), (3, 44), id="no_logger", marks=SLOW),
    ],
)  # fmt: skip
def test_run_ended_in_a_batch_resumes_there_and_ends_as_the_uninterrupted_one(
    options, callbacks, place, saved, lit_ft, tmp_path, monkeypatch
):
    sends = {
        "class_path": "test_preemption.SentOnce",
        "init_args": dict(zip(("during", "epoch", "batch"), place, strict=True)),
    }
    args = [*ARGS, *options, "--trainer.callbacks", json.dumps([*callbacks, sends])]
    ends = []
    for name, codes in (("whole", [0]), ("ended", [143, 0])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        if name == "whole":
            Path("sent").touch()
        assert lit_ft(*args)[0] == codes[0]
        run = preempted_runs.only_run(tmp_path / name)
        if name == "ended":
            found = torch.load(run.last, weights_only=True)
            assert (found["epoch"], found["global_step"]) == saved
            assert lit_ft(*args, "--resume", "auto")[0] == codes[1]
        ends.append(preempted_runs.end_of(run))
    assert differences(*ends) == []
