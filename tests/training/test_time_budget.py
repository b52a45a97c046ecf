"""What the time of a fine-tuning goes to."""

import json
from types import SimpleNamespace

import pytest
import torch

from lit_ft.runs import Run
from lit_ft.training import time_budget
from lit_ft.training.selected import report_refitted, report_selected
from lit_ft.training.time_budget import TimeBudget


@pytest.mark.parametrize("is_tested_first", [True, False])
def test_refit_has_its_own_time_before_a_test_and_after_it(tmp_path, monkeypatch, is_tested_first):
    clock = [0.0]
    monkeypatch.setattr(time_budget.time, "perf_counter", lambda: clock[0])
    budget = TimeBudget()
    trainer = SimpleNamespace(
        log_dir=str(tmp_path), fast_dev_run=False, is_global_zero=True, world_size=1, callbacks=[budget],
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    budget.setup(trainer, None, "fit")
    clock[0] += 3
    budget.on_fit_end(trainer, None)
    clock[0] += 5
    report_selected(trainer, None, 0.5)
    assert json.loads(Run(tmp_path).metrics.read_text())["run"]["seconds"] == {"start": 3, "choice": 5}
    steps = [(2, lambda: budget.on_test_end(trainer, None)), (10, lambda: report_refitted(trainer))]
    for seconds, end in steps if is_tested_first else steps[::-1]:
        budget.setup(trainer, None, "test")
        clock[0] += seconds
        end()
    found = json.loads(Run(tmp_path).metrics.read_text())["run"]["seconds"]
    assert found == {"start": 3, "choice": 5, "test": 2, "refit": 10}
    assert list(found)[2:] == (["test", "refit"] if is_tested_first else ["refit", "test"])


def test_test_without_a_fit_has_no_time(tmp_path):
    TimeBudget().on_test_end(SimpleNamespace(log_dir=str(tmp_path)), None)
    assert not Run(tmp_path).metrics.exists()
