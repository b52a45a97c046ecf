"""Storages of studies: what is told of one that cannot be used, without its password."""

import sqlite3
import sys
from contextlib import closing

import pytest
from optuna.trial import TrialState

from lit_ft.errors import UserError
from lit_ft.tuning import study as study_module
from lit_ft.tuning.space import TuneConfig, read_space
from lit_ft.tuning.storage import open_storage, refuse_lost_storage
from lit_ft.tuning.study import open_study, quiet_optuna

SPACE = read_space({"lr": {"log": [1e-5, 1e-2]}})


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def opened(folder, storage=None):
    return open_study(folder, TuneConfig(storage=storage), SPACE, "min", 0, max_epochs=9)


@pytest.mark.parametrize(
    ("storage", "line"),
    [
        ("nothing://x", "tune.storage: the database of nothing cannot be used ("),
        (
            "sqlite:////no/such/folder/study.db",
            "tune.storage: the database of sqlite cannot be used (unable to open database file)",
        ),
        (
            "postgresql+psycopg2://me:secret@localhost/x",
            "tune.storage: the database of postgresql+psycopg2 needs psycopg2; run: pip install psycopg2-binary",
        ),
        (
            "mysql+pymysql://me:secret@localhost/x",
            "tune.storage: the database of mysql+pymysql needs pymysql; run: pip install pymysql",
        ),
    ],
)
def test_storage_that_cannot_be_opened_is_refused_without_its_password(tmp_path, monkeypatch, storage, line):
    monkeypatch.setattr(study_module, "_MAKE_SECONDS", 0.0)
    for driver in ("psycopg2", "pymysql"):
        monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    with pytest.raises(UserError) as refused:
        opened(tmp_path, storage)
    assert str(refused.value).startswith(line)
    assert "secret" not in str(refused.value)


def test_file_that_is_no_study_is_refused(tmp_path):
    (tmp_path / "journal.log").write_text("no study\nat all\n")
    with pytest.raises(UserError, match=r"tune\.storage: the file of the study cannot be used \("):
        opened(tmp_path)


def test_database_that_is_lost_later_is_told_in_the_words_of_its_driver_with_what_to_do(tmp_path):
    config = TuneConfig(storage=f"sqlite:///{tmp_path}/study.db")
    study = opened(tmp_path / "x", config.storage)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute("drop table trials")
    with pytest.raises(UserError) as refused, refuse_lost_storage(config, advice="; call them"):
        study.get_trials()
    assert str(refused.value) == (
        "tune.storage: the database of sqlite cannot be used (no such table: trials); call them"
    )


def test_trial_that_another_process_took_up_is_told_with_why(tmp_path):
    study = opened(tmp_path / "x")
    trial = study.ask()
    study.tell(trial.number, state=TrialState.FAIL)  # by another process, which found its lock free
    with pytest.raises(UserError) as refused, refuse_lost_storage(TuneConfig()):
        trial.report(0.5, 1)
    assert str(refused.value) == (
        "tune.storage: another process took up the trial of this one, as the file system of their folder shares no "
        "locks; give each machine a folder of its own, and all of them a database"
    )


def test_connection_that_a_server_has_closed_is_made_anew(tmp_path):
    storage = open_storage(TuneConfig(storage=f"sqlite:///{tmp_path}/study.db"), tmp_path)
    assert storage.engine_kwargs == {"pool_pre_ping": True}


def test_fault_of_the_program_is_none_of_the_storage():
    with pytest.raises(ZeroDivisionError), refuse_lost_storage(TuneConfig(), OSError):
        1 / 0  # noqa: B018
