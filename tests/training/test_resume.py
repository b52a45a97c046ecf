from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_runs import FewDigits, small_module, small_trainer


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
