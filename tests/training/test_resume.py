import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.compat import validate_first

WHOLE = {"enable_validation": True, "val_check_interval": 1.0, "check_val_every_n_epoch": 1}


def counts(ready, processed, completed):
    return {"ready": ready, "started": ready, "processed": processed, "completed": completed}


def saved(is_last_batch=True, completed=5):
    """A checkpoint of the third step of the second epoch, whose validations have two batches."""
    batches = {"total": counts(6, 6, completed), "current": counts(3, 3, completed - 3), "is_last_batch": is_last_batch}
    validation = {"total": counts(0, 0, 0), "current": counts(2, 2, 2), "is_last_batch": True}
    progress = {"epoch_loop.batch_progress": batches, "epoch_loop.val_loop.batch_progress": validation}
    return {"epoch": 1, "loops": {"fit_loop": progress}}


@pytest.mark.parametrize("every", [1, 2])
def test_run_saved_before_its_validation_starts_with_it(every):
    checkpoint = saved()
    validate_first(checkpoint, SimpleNamespace(**{**WHOLE, "check_val_every_n_epoch": every}))
    progress = checkpoint["loops"]["fit_loop"]
    assert progress["epoch_loop.batch_progress"]["total"] == counts(6, 6, 6)
    assert progress["epoch_loop.batch_progress"]["current"] == counts(3, 3, 3)
    assert progress["epoch_loop.val_loop.batch_progress"]["total"] == counts(1, 0, 0)
    assert progress["epoch_loop.val_loop.batch_progress"]["current"] == counts(0, 0, 0)


@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        pytest.param(saved(is_last_batch=False), {}, id="within_the_epoch"),
        pytest.param(saved(completed=6), {}, id="after_the_validation"),
        pytest.param({"epoch": 1, "state_dict": {}}, {}, id="weights_alone"),
        pytest.param(saved(), {"enable_validation": False}, id="no_validation"),
        pytest.param(saved(), {"check_val_every_n_epoch": 3}, id="no_validation_in_this_epoch"),
        pytest.param(saved(), {"check_val_every_n_epoch": None}, id="validation_by_steps"),
        pytest.param(saved(), {"val_check_interval": 0.5}, id="several_validations_an_epoch"),
    ],
)
def test_other_checkpoints_are_left_as_they_are(checkpoint, options):
    before = copy.deepcopy(checkpoint)
    validate_first(checkpoint, SimpleNamespace(**{**WHOLE, **options}))
    assert checkpoint == before


class Ends(Callback):
    """Notes after which epochs there was a validation, and which came to their end."""

    def __init__(self):
        self.validated, self.ended = [], []

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.current_epoch)

    def on_train_epoch_end(self, trainer, pl_module):
        self.ended.append(trainer.current_epoch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("step", "epochs"), [(5, [1, 2]), (6, [1, 2]), (7, [2]), (9, [2])])
def test_resumed_run_validates_and_ends_each_epoch_that_had_not_yet_ended(step, epochs, tmp_path):
    steps = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    data = FewDigits(batch_size=7)
    small_trainer(3, steps).fit(small_module(), datamodule=data)
    ends = Ends()
    small_trainer(3, ends).fit(small_module(), datamodule=data, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert (ends.validated, ends.ended) == (epochs, epochs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", ["local://{mine}", "file://{run}/../mine", "{run}/../mine"])
def test_resumed_run_removes_nothing_that_its_checkpoint_names_outside_its_folder(path, tmp_path):
    run, mine = tmp_path / "run", tmp_path / "mine"
    mine.mkdir()

    def callbacks():
        best = ModelCheckpoint(run, "best-{epoch}", monitor="val/loss", mode="max", save_last=True)
        return best, ModelCheckpoint(run, "latest-{epoch}")

    small_trainer(1, *callbacks()).fit(small_module(), datamodule=FewDigits())
    hostile = torch.load(run / "last.ckpt", weights_only=True)
    named = path.format(run=run, mine=mine)
    names = {"best_model_path": named, "last_model_path": named, "kth_best_model_path": named}
    for state in hostile["callbacks"].values():
        if "dirpath" in state:
            state.update(names, best_k_models={named: torch.tensor(-1.0)}, kth_value=torch.tensor(-1.0))
    torch.save(hostile, tmp_path / "hostile.ckpt")
    small_trainer(2, *callbacks()).fit(small_module(), datamodule=FewDigits(), ckpt_path=tmp_path / "hostile.ckpt")
    assert mine.is_dir()
    assert (run / "best-epoch=1.ckpt").is_file()


@pytest.mark.filterwarnings("ignore")
def test_resumed_run_goes_on_with_its_own_best_checkpoints(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def best():
        return ModelCheckpoint("../run", "{epoch}", monitor="val/loss", mode="max", save_top_k=3, save_last=True)

    small_trainer(2, best()).fit(small_module(), datamodule=FewDigits())
    resumed = best()
    small_trainer(3, resumed).fit(small_module(), datamodule=FewDigits(), ckpt_path="../run/last.ckpt")
    assert sorted(path.name for path in map(Path, resumed.best_k_models)) == [f"epoch={i}.ckpt" for i in range(3)]
