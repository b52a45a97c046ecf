"""Outputs of the chosen model for the validation images, and the tables of them that a fine-tuning writes."""

import csv
import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import FewDigits, small_module

from lit_ft.evaluation.results import ResultWriter
from lit_ft.runs import Run
from lit_ft.training.evaluated import EvaluationOutputs, quiet_validation
from lit_ft.training.history import HistoryWriter
from lit_ft.training.time_budget import TimeBudget
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing


def finetune(folder, strategy, head_fit, refit=False, **options):
    L.seed_everything(1)
    checkpoint = ModelCheckpoint(folder / "checkpoints", "best", "val/acc", mode="max", enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[GradualUnfreezing(strategy, head_fit=head_fit), checkpoint, HistoryWriter(), ResultWriter(),
                   TimeBudget()], **options,
    )  # fmt: skip
    trainer.run = Run(folder)
    trainer.finetune(small_module(lr=0.001, lr_scheduler=None), FewDigits(shots=8, batch_size=16), refit=refit)
    return trainer, json.loads(trainer.run.metrics.read_text())


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
@pytest.mark.parametrize(
    ("strategy", "head_fit", "refit"),
    [("lp_ft", "solved", True), ("linear_probe", "solved", False), ("lp_ft", "trained", False)],
)
def test_tables_of_the_validation_are_of_the_model_that_was_chosen(tmp_path, strategy, head_fit, refit):
    trainer, written = finetune(tmp_path / "run", strategy, head_fit, refit)
    run = trainer.run
    rows, val = rows_of(run.result_table("predictions", "val")), written["val"]
    assert len(rows) == 37
    right = [row["class"] == row["predicted"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(val["val/acc"])
    assert sum(float(row["loss"]) for row in rows) / len(rows) == pytest.approx(val["val/loss"], rel=1e-4)
    low, high = val["intervals"]["val/acc"]
    assert low <= val["val/acc"] <= high
    assert len(rows_of(run.result_table("per_class", "val"))) == 10
    assert sum(int(row[row["class"]]) for row in rows_of(run.result_table("confusion", "val"))) == sum(right)
    assert (written["selection"]["split"], written["selection"]["monitor"]) == ("val", "val/acc")
    assert val.get("is_before_refit", False) == refit
    assert val["checkpoint"] == (None if refit else "checkpoints/best.ckpt")
    facts = written["run"]
    trained = {"data", "training", "validation"} if strategy == "lp_ft" else set()
    assert facts["seconds"].keys() == {"start", "choice", "test"} | trained | ({"refit"} if refit else set())
    assert all(value >= 0 for value in facts["seconds"].values())
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    if not refit:  # else there is no checkpoint of it
        (again,) = trainer.validate(small_module(), FewDigits(batch_size=16), run.checkpoint("best"), verbose=False)
        assert abs(math.log(written["calibration"]["temperature"])) > 0.005
        assert again["val/loss"] == pytest.approx(val["val/loss"], rel=1e-4)


def test_callbacks_are_quiet_in_a_validation_that_is_no_part_of_a_run():
    taken, other = EvaluationOutputs(), EvaluationOutputs()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[other]
    )
    with quiet_validation(trainer, taken):
        trainer.validate(small_module(), FewDigits(batch_size=10), verbose=False)
    assert [len(logits) for logits, _ in taken.outputs] == [10, 10, 10, 7]
    assert other.outputs == []
    assert other in trainer.callbacks
