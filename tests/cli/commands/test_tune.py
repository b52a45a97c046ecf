"""``lit-ft tune`` as a user runs it, on few digits: its files, its best config, resumes, refusals, cached features."""

import csv
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

import lit_ft as package
from lit_ft.cli import main
from lit_ft.features.source import FeatureSource
from lit_ft.tuning.watch import TrialWatch

CONFIG = {
    "model": {"backbone": "mnist_cnn", "weights": "MNIST", "head": {"dropout": 0.25}},
    "data": {"class_path": "DigitsDataModule", "init_args": {"shots": 2, "batch_size": 10, "augment": "none"}},
    "unfreeze": {"strategy": "linear_probe", "head_fit": "trained"},
    "report": None,
    "seed_everything": 3,  # draws the first of two values, and then the second
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "logger": False},
}
SEARCH = {"trials": 5, "space": {"model.lr": {"choice": [1.0e30, 3.0e-2]}}}  # of two; with the first, the loss diverges
LOG = {"model.lr": {"log": [1.0e-3, 1.0e-1]}}
DIGITS = ("--config", "digits.yaml", "--tune", "search.yaml")
STUDY = Path("logs/digits_tune")
KEPT = ("model.lr", "val/acc", "epochs")


class Killed(BaseException):
    """Ends a process as a kill does: nobody handles it."""


def write(search=SEARCH, **config):
    Path("digits.yaml").write_text(yaml.safe_dump({**CONFIG, **config}))
    Path("search.yaml").write_text(yaml.safe_dump(search))


def read_trials(folder=STUDY):
    return list(csv.DictReader((folder / "trials.csv").open()))


def kept(*trials):
    return [[row[key] for key in KEPT] for row in trials]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a search, what it printed, and how often features were computed."""
    home, filled, fill = tmp_path_factory.mktemp("finished"), [], FeatureSource.fill
    with pytest.MonkeyPatch.context() as patch, (home / "printed.txt").open("w") as file:
        patch.setattr(FeatureSource, "fill", lambda self, *given: filled.append(1) or fill(self, *given))
        patch.setenv("LIT_FT_CACHE", str(home / "cache"))
        patch.chdir(home)
        patch.setattr(sys, "stdout", file)
        write()
        assert main(["tune", *DIGITS]) == 0
    return home, (home / "printed.txt").read_text(), len(filled)


def test_trials_are_runs_in_the_folder_of_the_study_with_one_table(finished):
    home, printed, _ = finished
    trials = read_trials(home / STUDY)
    assert [row["state"] for row in trials] == ["failed", "complete"]
    run, value = home / trials[1]["run"], float(trials[1]["val/acc"])
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == float(trials[1]["model.lr"]) == 0.03
    assert config["model"]["init_args"]["head"]["dropout"] == 0.25
    assert config["feature_cache"]["init_args"]["folder"] is None
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val"]["val/acc"] == pytest.approx(value)
    assert "test" not in metrics
    assert trials[1]["chosen"] == metrics["selection"]["chosen"] != ""
    assert len((run / "history.csv").read_text().splitlines()) == 3
    assert "Features  " in (run / "output.txt").read_text()
    assert f"Best        logs/digits_tune/best.yaml  (trial 1, val/acc {value:.4f})" in printed
    assert printed.startswith(
        "Study  2 trials, one of each combination, and not 5, for the greatest val/acc by model.lr\n"
    )
    assert "\nTrial 1  2 of 2: model.lr 0.03\n" in printed
    assert re.search(rf"^Trial 1  complete after 2 epochs, .*; best so far {value:.4f}, trial 1$", printed, re.M)
    assert "Features" not in printed
    assert "[I 20" not in printed  # as Optuna logs
    assert "best so far" in (home / STUDY / "trials.html").read_text()


def test_trial_that_fails_is_told_with_its_reason_and_the_search_goes_on(finished):
    home, printed, _ = finished
    failed = read_trials(home / STUDY)[0]
    assert (failed["model.lr"], failed["val/acc"]) == ("1e+30", "")
    assert re.match(r"\w+/loss is not finite in step \d+ \(.*\): lower model\.lr", failed["note"])
    assert re.search(r"^Trial 0  failed.*: \w+/loss is not finite", printed, re.M)


def test_features_are_computed_once_for_all_trials_and_removed_at_the_end(finished):
    home, _, filled = finished
    assert filled == 2  # train and val
    assert not (home / STUDY / "features").exists()


def test_best_config_runs_by_itself_and_gives_the_value_of_its_trial(finished, run, monkeypatch):
    home, _, _ = finished
    monkeypatch.chdir(home)
    text, value = (STUDY / "best.yaml").read_text(), float(read_trials()[1]["val/acc"])
    assert text.startswith(f"# Trial 1 of digits_tune: val/acc {value:.4f}\n")
    config = yaml.safe_load(text)
    assert config["name"] == "digits"
    assert config["feature_cache"]["init_args"]["folder"] is None
    assert "tune" not in config
    run("fit", "--config", STUDY / "best.yaml")
    metrics = json.loads(Path("logs/digits/version_0/metrics.json").read_text())
    assert metrics["val"]["val/acc"] == value


@pytest.mark.long
def test_trial_that_was_killed_goes_on_in_its_run_from_its_last_epoch(finished, monkeypatch, lit_ft):
    home, _, _ = finished
    search, report = {"trials": 1, "space": {"model.lr": {"choice": [3.0e-2, 0.5]}}}, TrialWatch.on_train_epoch_end
    write(search)

    def kill(self, trainer, module):
        if trainer.current_epoch == 1:
            raise Killed
        report(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(TrialWatch, "on_train_epoch_end", kill)
        with pytest.raises(Killed):
            lit_ft("tune", *DIGITS)
    assert not (STUDY / "trials.csv").exists()
    found = package.tune("digits.yaml", tune=search)
    assert [(row.state, row.note) for row in found.trials] == [("interrupted", "goes on as trial 1"), ("complete", "")]
    assert found.trials[0].run == found.trials[1].run
    assert (found.folder, found.config, found.best.number) == (STUDY, STUDY / "best.yaml", 1)
    assert not list(STUDY.glob(".trial*"))
    assert kept(read_trials()[1]) == kept(read_trials(home / STUDY)[1])
    assert (found.best.run / "output.txt").read_text().count("epoch 0/1 ") == 1


@pytest.mark.long
def test_trial_goes_on_after_its_database_was_lost(run, refused, monkeypatch):
    write({"trials": 1, "space": LOG, "storage": "sqlite:///study.db"})
    report = TrialWatch.on_train_epoch_end

    def lose(self, trainer, module):
        if trainer.current_epoch == 1:
            raise StorageInternalError from OperationalError("INSERT", None, sqlite3.OperationalError("it is gone"))
        report(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(TrialWatch, "on_train_epoch_end", lose)
        assert refused("tune", *DIGITS) == (
            "lit-ft: --tune.storage: the database of sqlite cannot be used (it is gone); to go on: the same command, "
            "once it can be"
        )
    run("tune", *DIGITS)
    trials = read_trials()
    assert [(row["state"], row["note"]) for row in trials] == [("interrupted", "goes on as trial 1"), ("complete", "")]
    assert trials[0]["run"] == trials[1]["run"]


@pytest.mark.slow
def test_files_of_a_machine_have_the_trials_of_another_one_that_shares_its_database(run, monkeypatch, tmp_path):
    lines = []
    for machine, trials in (("a", 1), ("b", 2), ("a", 2)):  # the second trial is the better one
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / machine)
        search = {"trials": trials, "space": {"model.lr": {"choice": [1.0e-9, 3.0e-2]}}}
        write({**search, "storage": f"sqlite:///{tmp_path}/study.db"})
        run("tune", *DIGITS)
        lines.append((STUDY / "best.yaml").read_text().splitlines()[0])
    assert [line.partition(":")[0] for line in lines] == [
        "# Trial 0 of digits_tune", "# Trial 1 of digits_tune", "# Trial 1 of digits_tune",
    ]  # fmt: skip
    assert [row["state"] for row in read_trials()] == ["complete"] * 2


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"space": {"model.lrr": {"log": [1e-3, 1]}}}, "space: --model.lrr: there is no such option; nearest: --model"),
        ({"space": {"model.head.dropout": {"float": [0, 1.5]}}}, "space: --model.head.dropout: must be at least 0 and"),
        (LOG, "model.lr.log: what is tried stands below space: put model.lr there, as in space: {model.lr: ...}"),
        ({**SEARCH, "pruner": "halving"}, "pruner: unknown value 'halving'; choose from median, hyperband, null"),
    ],
    ids=["unknown", "refused", "beside", "pruner"],
)  # fmt: skip
def test_mistake_is_refused_before_the_first_trial(refused, search, line):
    write(search)
    assert refused("tune", *DIGITS).startswith(f"lit-ft: --tune.{line}")
    assert not Path("logs").exists()


def test_missing_optuna_is_told_with_how_to_install_it(refused, monkeypatch):
    write()
    monkeypatch.setattr("lit_ft.cli.run.find_spec", lambda name: None)
    assert refused("tune", *DIGITS) == "lit-ft: lit-ft tune needs optuna; pip install 'lit_ft[tune]'"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search", "line"),
    [
        (
            {"space": {"unfreeze.strategy": {"choice": ["full", "ful"]}}},
            "space: --unfreeze.strategy: unknown value",
        ),
        (
            {"space": {"unfreeze.strategy": {"choice": ["full", "gradual"]}}},
            "space: --trainer.max_epochs: strategy 'gradual' needs at least 3 epochs",
        ),
        ({"space": {"data.num_workers": {"int": [0, 2]}}}, "space: --data.num_workers: "),
        ({"space": {"model.lr": {"log": [0, 1]}}}, "space: model.lr log takes numbers above 0"),
        ({}, "space: is empty; give what is tried"),
        ({**SEARCH, "trails": 3}, "trails: there is no such option; nearest: --tune.trials"),
        ({**SEARCH, "least_epochs": 3}, "least_epochs: 3 are more than --trainer.max_epochs 2"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_other_mistakes_are_refused_before_the_first_trial(refused, search, line):
    test_mistake_is_refused_before_the_first_trial(refused, search, line)


@pytest.mark.parametrize("given", [("--tune.trials", 3), ("--config", "both.yaml")], ids=["option", "config"])
def test_other_commands_leave_the_section_to_this_one(refused, given):
    Path("both.yaml").write_text(yaml.safe_dump({**CONFIG, "tune": SEARCH}))
    line = "lit-ft: --tune: is a section for lit-ft tune alone; leave it out here"
    assert refused("finetune", "--config", "quickstart", *given) == line


@pytest.mark.slow
def test_study_of_other_options_is_refused(lit_ft, run, refused):
    write({"trials": 1, "space": LOG})
    run("tune", *DIGITS)
    write({"trials": 2, "space": LOG})
    run("tune", *DIGITS, "--trainer.log_every_n_steps", 5)
    assert len(read_trials()) == 2
    line = refused("tune", *DIGITS, "--data.batch_size", 5)
    assert line == (
        "lit-ft: logs/digits_tune: this study has --data.batch_size 10, but this command has 5; give the same, or "
        "another --name"
    )


@pytest.mark.slow
def test_interrupt_ends_in_one_line_and_queues_the_trial(lit_ft, run, monkeypatch):
    write({"trials": 1, "space": LOG})

    def interrupt(self, trainer, module):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrialWatch, "on_train_start", interrupt)
        code, _, err = lit_ft("tune", *DIGITS)
    assert (code, err) == (130, ["lit-ft: interrupted after 0 of 1 trials; to go on: the same command"])
    printed = run("tune", *DIGITS)
    assert "Trial 1  1 of 1: model.lr" in printed
    assert [row["state"] for row in read_trials()] == ["interrupted", "complete"]


@pytest.mark.slow
def test_search_without_a_complete_trial_is_an_error(refused):
    write({"trials": 1, "space": {"model.lr": {"choice": [1.0e30, 1.0e31]}}})
    line = refused("tune", *DIGITS)
    assert re.match(r"lit-ft: no trial was completed, the last one as \w+/loss is not finite", line)
    assert line.endswith("; logs/digits_tune/trials.csv has all")


@pytest.mark.slow
def test_fault_of_a_program_ends_the_search_with_its_traceback_and_is_a_failed_trial(lit_ft, run, monkeypatch):
    write({"trials": 3, "space": LOG})

    def fail(self, trainer, module):
        raise ZeroDivisionError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(TrialWatch, "on_train_epoch_end", fail)
        with pytest.raises(ZeroDivisionError, match="a fault"):
            lit_ft("tune", *DIGITS)
    run("tune", *DIGITS)
    assert (read_trials()[0]["state"], read_trials()[0]["note"]) == ("failed", "ZeroDivisionError: a fault")


@pytest.mark.slow
def test_bad_trial_is_pruned_and_told_so(run):
    space = {"model.lr": {"choice": [1.0e-2, 1.0e-3, 2.0e-2, 3.0e-3, 5.0e-3, 1.0e-9]}}
    write({"trials": 14, "space": space}, trainer={**CONFIG["trainer"], "max_epochs": 8})
    printed = run("tune", *DIGITS)
    pruned = [row for row in read_trials() if row["state"] == "pruned"]
    assert pruned
    assert all(int(row["epochs"]) < 8 for row in pruned)
    assert re.search(r"^Trial \d+  pruned after \d epochs?,", printed, re.M)
    for row in pruned:  # a whole run of so many epochs
        assert (Path(row["run"]) / "checkpoints/best.ckpt").is_file()


def start(*options):
    return subprocess.Popen(
        [sys.executable, "-m", "lit_ft", "tune", *DIGITS, *map(str, options)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_same_command_goes_on_after_a_signal(lit_ft, number):
    write({"trials": 3, "space": LOG}, trainer={**CONFIG["trainer"], "max_epochs": 40})
    whole = start("--name", "whole")
    assert whole.wait(240) == 0
    process = start()
    history = STUDY / "version_1" / "history.csv"
    wait_for(lambda: history.is_file() and len(history.read_text().splitlines()) > 3, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert (process.returncode, err.splitlines()[-1]) == (
            143, "lit-ft: interrupted by SIGTERM after 1 of 3 trials; to go on: the same command",
        )  # fmt: skip
    again = start()
    assert again.wait(240) == 0, again.communicate()
    found, expected = read_trials(), read_trials(Path("logs/whole_tune"))
    assert [row["state"] for row in found] == ["complete", "interrupted", "complete", "complete"]
    assert found[2]["run"] == found[1]["run"]
    assert kept(found[0], found[2]) == kept(*expected[:2])


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["null", "sqlite:///study.db"], ids=["journal", "sqlite"])
def test_processes_share_the_trials_of_a_study(lit_ft, storage):
    write({"trials": 7, "space": LOG, "pruner": None}, trainer={**CONFIG["trainer"], "max_epochs": 10})
    processes = [start("--tune.storage", storage) for _ in range(2)]
    printed = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    trials = read_trials()
    assert [row["state"] for row in trials] == ["complete"] * 7
    assert len({row["model.lr"] for row in trials}) == 7
    assert len({row["run"] for row in trials}) == 7
    shares = [len(re.findall(r"^Trial \d+  complete", out, re.M)) for out, _ in printed]
    assert sum(shares) == 7
    assert min(shares) > 0
    assert yaml.safe_load((STUDY / "best.yaml").read_text())["name"] == "digits"
