"""Tables and the page of a search."""

import csv
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from lit_ft.tuning.report import format_csv, format_shared, format_trials, list_rows, render_trials, sort_by_value
from lit_ft.tuning.space import read_space
from lit_ft.tuning.study import CHOSEN, CONTINUES, EPOCHS, REASON, RUN, build_distributions, quiet_optuna

SPACE = build_distributions(read_space({"lr": {"log": [1e-5, 1e-2]}, "optimizer": {"choice": [None, "SGD"]}}))


@pytest.fixture(scope="module")
def rows():
    """Of a trial that is complete, a better one, one that was pruned, one that failed, and two of one run."""
    with quiet_optuna():
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        for value in (0.5, 0.75):
            trial = study.ask(SPACE)
            trial.set_user_attr(RUN, str(Path.cwd() / f"logs/x_tune/version_{trial.number}"))
            trial.set_user_attr(EPOCHS, 3)
            trial.set_user_attr(CHOSEN, "linear probe")
            study.tell(trial, value)
        pruned, failed, lost = (study.ask(SPACE) for _ in range(3))
        pruned.report(0.9, 1)
        study.tell(pruned, state=TrialState.PRUNED)
        failed.set_user_attr(REASON, "model.lr: the loss is not finite " + 9 * "and so on ")
        study.tell(failed, state=TrialState.FAIL)
        study.enqueue_trial(lost.params, {CONTINUES: lost.number})
        study.tell(lost, state=TrialState.FAIL)
        return list_rows(study.trials)


def test_states_and_notes_say_what_became_of_each_trial(rows):
    states = ["complete", "complete", "pruned", "failed", "interrupted", "waiting"]
    assert [row.state for row in rows] == states
    assert [row.value for row in rows] == [0.5, 0.75, 0.9, None, None, None]
    assert rows[4].note == "goes on as trial 5"
    assert rows[2].note == "the value is that of its last epoch"
    assert [row.chosen for row in rows[:3]] == ["linear probe", "linear probe", ""]
    assert [row.seconds is None for row in rows] == [False, False, False, False, True, True]


def test_trials_are_sorted_by_value_and_what_was_pruned_after_what_is_complete(rows):
    assert [row.number for row in sort_by_value(rows, "max")] == [1, 0, 2, 3, 4, 5]
    assert [row.number for row in sort_by_value(rows, "min")] == [0, 1, 2, 3, 4, 5]


def test_terminal_has_a_line_a_trial_the_best_first(rows):
    lines = format_trials(rows, "val/acc", "max").splitlines()
    assert re.split(" {2,}", lines[0].strip()) == [
        "trial",
        "state",
        "val/acc",
        "lr",
        "optimizer",
        "epochs",
        "time",
        "chosen",
        "run",
    ]
    assert re.match(r" +1  complete +0\.7500 .* 3 +[\d.]+s  linear probe  version_1$", lines[1])
    assert lines[4].endswith("…")
    assert max(map(len, lines)) < 150


def test_table_file_has_all_trials_in_their_order_with_whole_numbers_and_notes(rows):
    found = list(csv.DictReader(StringIO(format_csv(rows, "val/acc"))))
    assert [row["trial"] for row in found] == list("012345")
    assert [float(row["lr"]) for row in found[:5]] == [row.params["lr"] for row in rows[:5]]
    assert {row["optimizer"] for row in found[:5]} == {"null", "SGD"}
    assert (found[0]["val/acc"], found[0]["epochs"], found[0]["run"]) == ("0.5", "3", "logs/x_tune/version_0")
    assert [row["chosen"] for row in found[1:3]] == ["linear probe", ""]
    assert found[3]["note"].endswith("and so on ")
    assert found[3]["val/acc"] == ""


def test_best_value_of_several_trials_is_told_with_what_they_handed_back(rows):
    assert format_shared(rows, rows[1]) is None
    tied = [replace(row, value=0.5) for row in rows[:2]]
    assert format_shared([*tied, rows[2]], tied[0]) == (
        "2 trials share the best value (each handed back: linear probe): the options that were tried made no "
        "difference between them, and trial 0 is just the first"
    )
    others = [tied[0], replace(tied[1], chosen="epoch 3")]
    assert "2 trials share the best value: the options" in (format_shared(others, tied[0]) or "")


def test_page_has_the_values_and_the_best_so_far(rows):
    page = render_trials(rows, "x_tune: 6 trials", "val/acc", "max")
    assert "aria-label='val/acc from 0.5 to 0.9; best so far from 0.5 to 0.75, by trial'" in page
    assert page.count("<tr>") == 7
    assert "<title>x_tune: 6 trials</title>" in page
