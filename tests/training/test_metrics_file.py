import json
import math
import threading
from pathlib import Path

import pytest

from lit_ft.runs import Run
from lit_ft.training.metrics_file import change_entries, write_metrics

FIT = ("fit", "--unfreeze.strategy", "full")
RUN = Run(Path("logs/run/version_0"))


def test_metrics_of_other_splits_stay(tmp_path):
    run = Run(tmp_path)
    write_metrics(run, "val", {"val/acc": 0.5}, None)
    write_metrics(run, "test", {"test/r2": math.nan}, run.checkpoint("best"))
    write_metrics(run, "val", {"val/acc": 0.75}, run.last)
    assert json.loads(run.metrics.read_text()) == {
        "val": {"checkpoint": "checkpoints/last.ckpt", "val/acc": 0.75},
        "test": {"checkpoint": "checkpoints/best.ckpt", "test/r2": None},
    }


@pytest.mark.parametrize("text", ['{"val": ', "[1]", ""])
def test_damaged_metrics_are_replaced_with_a_warning(tmp_path, text):
    run = Run(tmp_path)
    run.metrics.write_text(text)
    with pytest.warns(UserWarning, match=r"metrics\.json: damaged; replaced"):
        write_metrics(run, "test", {"test/acc": 0.5}, None)
    assert json.loads(run.metrics.read_text()) == {"test": {"checkpoint": None, "test/acc": 0.5}}


def test_new_entry_of_a_split_has_no_tables_of_the_one_before(tmp_path):
    run = Run(tmp_path)
    for name in ("test", "test_new"):
        run.result_table("per_class", name).touch()
    write_metrics(run, "test", {}, None)
    assert [file.name for file in sorted(tmp_path.glob("[!.]*"))] == ["metrics.json", "per_class_test_new.csv"]


def test_two_evaluations_at_once_lose_no_entry_of_the_other(tmp_path):
    run = Run(tmp_path)
    other = threading.Thread(target=write_metrics, args=(run, "test_b", {"test/acc": 0.5}, None))
    with change_entries(run) as entries:
        other.start()
        other.join(0.2)  # in which it would have written, if it did not wait
        entries["test_a"] = {"test/acc": 0.25}
    other.join()
    assert set(json.loads(run.metrics.read_text())) == {"test_a", "test_b"}
