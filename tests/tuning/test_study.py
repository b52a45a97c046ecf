"""Studies: what they draw, how many trials they begin, and what becomes of trials whose process is gone."""

from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError

from lit_ft.errors import UserError
from lit_ft.tuning import study as module
from lit_ft.tuning.space import TuneConfig, read_space
from lit_ft.tuning.storage import open_storage
from lit_ft.tuning.study import (
    CONTINUES,
    RUN,
    begin_trial,
    build_distributions,
    build_pruner,
    list_counted,
    open_study,
    quiet_optuna,
    release_trial,
    requeue,
)

DIMENSIONS = read_space(
    {"lr": {"log": [1e-5, 1e-2]}, "width": {"int": [1, 9]}, "optimizer": {"choice": ["SGD", "AdamW"]}}
)
SPACE = build_distributions(DIMENSIONS)


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def opened(folder, seed=0, **options):
    return open_study(folder, TuneConfig(**options), DIMENSIONS, "min", seed, max_epochs=9)


def begin(study, folder, limit=99, is_local=True):
    return begin_trial(study, folder, SPACE, limit, is_local)


def draw(study, folder, number):
    """The parameters of so many trials, each of which is told a value that depends on them."""
    drawn = []
    for _ in range(number):
        trial, lock = begin(study, folder)
        drawn.append(trial.params)
        study.tell(trial, abs(trial.params["lr"] - 1e-3) * trial.params["width"])
        release_trial(lock)
    return drawn


def test_space_is_drawn_from_within_its_ends(tmp_path):
    drawn = draw(opened(tmp_path), tmp_path, 12)
    assert all(1e-5 <= one["lr"] <= 1e-2 and 1 <= one["width"] <= 9 for one in drawn)
    assert sum(one["lr"] < 1e-3 for one in drawn) > 4  # two thirds, by the logarithm
    assert {one["optimizer"] for one in drawn} == {"SGD", "AdamW"}
    assert isinstance(drawn[0]["width"], int)


def test_what_is_drawn_depends_on_the_seed_and_the_trials_before_and_not_on_the_process(tmp_path):
    whole = draw(opened(tmp_path / "whole"), tmp_path / "whole", 14)  # past those that are drawn at random
    assert len({one["lr"] for one in whole}) == 14
    parts = [opened(tmp_path / "parts"), opened(tmp_path / "parts")]
    resumed = [one for i in range(7) for one in draw(parts[i % 2], tmp_path / "parts", 2)]
    assert resumed == whole
    assert draw(opened(tmp_path / "other", seed=1), tmp_path / "other", 1) != whole[:1]
    free = [draw(opened(tmp_path / str(i), seed=None), tmp_path / str(i), 1) for i in range(2)]
    assert free[0] != free[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_no_combination_of_a_space_with_an_end_is_drawn_twice(tmp_path, seed):
    dimensions = read_space({"width": {"int": [1, 4]}, "kind": {"choice": [1, True, None, [2]]}})
    space, drawn = build_distributions(dimensions), []
    for number in range(18):  # past those that are drawn at random
        study = open_study(tmp_path, TuneConfig(), dimensions, "min", seed, 9)
        trial, lock = begin_trial(study, tmp_path, space, 18, True)
        drawn.append(repr(trial.params))
        if number == 3:  # an interrupted one is no other
            requeue(study, trial)
        else:
            study.tell(trial, trial.params["width"])
        release_trial(lock)
    assert drawn[4] == drawn[3]
    assert len(set(drawn[:17])) == 16  # all
    free = open_study(tmp_path / "free", TuneConfig(), dimensions, "min", None, 9)
    repeated = [repr(free.ask(dict(space)).params) for _ in range(17)]
    assert len(set(repeated)) < 17


def test_trials_that_run_at_once_are_different_and_no_more_than_the_limit(tmp_path):
    studies = [opened(tmp_path) for _ in range(4)]

    def work(study):
        begun = []
        while (found := begin(study, tmp_path, limit=6)) is not None:
            begun.append(found)
        return begun

    with ThreadPoolExecutor(4) as pool:
        begun = [one for part in pool.map(work, studies) for one in part]
    assert len(begun) == 6
    assert len({trial.params["lr"] for trial, _ in begun}) == 6
    assert [one.state for one in studies[0].trials] == [TrialState.RUNNING] * 6
    assert begin(opened(tmp_path), tmp_path, limit=6) is None  # and takes none up, as each has its lock


def test_trial_whose_process_is_gone_is_taken_up_once_and_counts_once(tmp_path):
    study = opened(tmp_path)
    trial, lock = begin(study, tmp_path)
    trial.set_user_attr(RUN, "logs/x_tune/version_0")
    held = ThreadPoolExecutor(1).submit(begin, opened(tmp_path), tmp_path).result()
    lock.release()  # as the system does where a process is killed; the file stays
    second = opened(tmp_path)
    taken, _ = begin(second, tmp_path, limit=2)
    assert (taken.params, taken.user_attrs) == (trial.params, {CONTINUES: 0, RUN: "logs/x_tune/version_0"})
    states = [one.state for one in second.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]
    assert [one.number for one in list_counted(second.trials)] == [held[0].number, taken.number]
    assert begin(second, tmp_path, limit=2) is None
    assert not (tmp_path / ".trial_0.lock").exists()


def test_trial_that_was_killed_while_it_was_drawn_is_taken_up(tmp_path):
    study = opened(tmp_path)
    study.ask()  # nothing drawn, and no lock
    taken, _ = begin(opened(tmp_path), tmp_path, limit=1)
    assert taken.user_attrs[CONTINUES] == 0
    assert set(taken.params) == set(SPACE)


def test_trial_of_a_database_is_left_to_machines_with_another_folder(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = opened(tmp_path / "here" / "x", storage=url)
    trial, lock = begin(study, tmp_path / "here" / "x", is_local=False)
    lock.release()
    away = opened(tmp_path / "there" / "x", storage=url)
    other, _ = begin(away, tmp_path / "there" / "x", is_local=False)
    assert CONTINUES not in other.user_attrs
    assert trial.params["lr"] != other.params["lr"]
    taken, _ = begin(opened(tmp_path / "here" / "x", storage=url), tmp_path / "here" / "x", is_local=False)
    assert (taken.user_attrs[CONTINUES], taken.params) == (0, trial.params)


def test_trial_whose_end_a_database_was_not_told_is_taken_up_by_its_own_machine(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = opened(tmp_path / "here", storage=url)
    trial, lock = begin(study, tmp_path / "here", is_local=False)
    release_trial(lock, is_told=False)
    taken, _ = begin(opened(tmp_path / "here", storage=url), tmp_path / "here", limit=1, is_local=False)
    assert (taken.user_attrs[CONTINUES], taken.params) == (0, trial.params)


def test_tables_that_another_machine_makes_at_the_same_time_are_used(tmp_path, monkeypatch):
    calls = []

    def meet(config, folder):
        calls.append(folder)
        if len(calls) == 1:
            raise IntegrityError("CREATE TABLE", None, Exception("there is one"))
        return open_storage(config, folder)

    monkeypatch.setattr(module, "_MAKE_SECONDS", 0.0)
    monkeypatch.setattr(module, "open_storage", meet)
    assert opened(tmp_path / "x", storage=f"sqlite:///{tmp_path}/study.db").trials == []
    assert calls == [tmp_path / "x"] * 2


def test_interrupted_trial_is_queued_once(tmp_path):
    study = opened(tmp_path)
    trial, lock = begin(study, tmp_path)
    study.enqueue_trial(trial.params, {CONTINUES: trial.number})  # by a process that was killed before it told so
    requeue(study, trial)
    release_trial(lock)
    assert [one.state for one in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert list_counted(study.trials) == []


def test_pruners_are_those_of_optuna_with_the_least_epochs():
    study = optuna.create_study(pruner=build_pruner(TuneConfig(least_epochs=3), 9))
    for value in (0.1, 0.1, 0.1, 0.1, 0.1):
        trial = study.ask()
        for epoch in (1, 2, 3):
            trial.report(value, epoch)
        study.tell(trial, value)
    bad, ended = study.ask(), []
    for epoch in (1, 2, 3):
        bad.report(0.9, epoch)
        ended.append(bad.should_prune())
    assert ended == [False, False, True]
    assert isinstance(build_pruner(TuneConfig(pruner=None), 9), optuna.pruners.NopPruner)
    assert isinstance(build_pruner(TuneConfig(pruner="hyperband"), 9), optuna.pruners.HyperbandPruner)
    with pytest.raises(UserError, match=r"tune\.pruner: hyperband needs the number of epochs"):
        build_pruner(TuneConfig(pruner="hyperband"), -1)
