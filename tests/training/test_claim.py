"""Each run has a folder of its own, also where several begin at once, whatever the logger."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import runs_at_once
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from lit_ft.errors import UserError
from lit_ft.runs import Run
from lit_ft.training import claim as claims
from lit_ft.training.claim import FOLDER_VARIABLE, begin_run, claim

FIT = ("fit", "--trainer.max_epochs", 1, "--unfreeze", "null", "--model.weights", "null", "--report", "null")
FIT += ("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1)


def logger(kind, **options):
    return {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": options}


@pytest.fixture(autouse=True)
def _no_folder_of_another(monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.delenv(FOLDER_VARIABLE)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("at_once")
    runs_at_once.launch(folder)
    return folder


@pytest.mark.parametrize("kind", runs_at_once.KINDS)
def test_runs_that_begin_at_once_have_their_own_folders(at_once, kind):
    found = sorted((at_once / kind).iterdir())
    assert [folder.name for folder in found] == ["version_0", "version_1"]
    seeds = set()
    for folder in found:
        seed = yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"]
        seeds.add(seed)
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        for path in (folder / "checkpoints").iterdir():
            assert torch.load(path, weights_only=True)["run_seed"] == seed
        told = (at_once / f"{seed}.log").read_text()
        assert f"Best model   {kind}/{folder.name}/checkpoints/best.ckpt" in told
    assert {runs_at_once.RUNS[seed] for seed in seeds} == {kind}
    assert len(seeds) == 2


def test_fold_has_its_folder_within_that_of_all_for_each_logger(tmp_path):
    def loggers():
        board = logger("TensorBoardLogger", save_dir=str(tmp_path / "logs"), name="mine", version=None)
        table = logger("CSVLogger", save_dir=str(tmp_path / "csv"), name="lightning_logs", version=None)
        return [board, table, logger("WandbLogger", name=None, project=None)]

    whole = begin_run(tmp_path / "logs/mine", loggers(), None)
    assert whole.folder == tmp_path / "logs/mine/version_0"
    fold = replace(whole.fold(2), claimed=(whole.fold(2).folder,))
    fold.folder.mkdir()
    own = {"version": "version_0/fold_2"}
    for checkpoint in (None, str(fold.last)):
        if checkpoint:
            fold.checkpoints.mkdir()
            fold.last.touch()
            fold.config.touch()
        given = loggers()
        assert begin_run(tmp_path / "logs/mine", given, checkpoint, fold) == fold
        board, table, service = (one["init_args"] for one in given)
        assert board == {"save_dir": str(tmp_path / "logs"), "name": "mine", **own}
        assert table == {"save_dir": str(tmp_path / "csv"), "name": "mine", **own}
        assert service == {"project": "mine", "name": "version_0/fold_2"}


def test_fold_that_is_refused_leaves_no_folder(tmp_path):
    whole = begin_run(tmp_path / "mine", [], None)
    fold = replace(whole.fold(1), claimed=(whole.fold(1).folder,))
    fold.folder.mkdir()
    run = begin_run(tmp_path / "mine", [], None, fold)
    run.config.touch()
    whole.config.touch()
    whole.release()
    assert run.config.is_file()  # of which that of all takes nothing
    run.release()
    assert not fold.folder.exists()
    whole.release()
    assert not (tmp_path / "mine").exists()


def test_number_is_taken_by_making_the_folder(tmp_path, monkeypatch):
    (tmp_path / "a" / "version_3").mkdir(parents=True)
    (tmp_path / "b" / "version_5").mkdir(parents=True)
    (tmp_path / "a" / "version_x").mkdir()
    assert claim([tmp_path / "a"]) == (tmp_path / "a" / "version_4",)
    assert [folder.name for folder in claim([tmp_path / "a", tmp_path / "b"])] == ["version_6"] * 2
    monkeypatch.setattr(claims, "_last_number", lambda place: -1)  # as one sees it that looked before the others
    (tmp_path / "c" / "version_1").mkdir(parents=True)
    assert [folder.name for folder in claim([tmp_path / "b", tmp_path / "c"])] == ["version_0"] * 2
    assert [folder.name for folder in claim([tmp_path / "b", tmp_path / "c"])] == ["version_2"] * 2
    assert not (tmp_path / "b" / "version_1").exists()  # what was made beside the one that was taken


def test_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(UserError, match=r"^trainer.default_root_dir: cannot make a folder .*\(Not a directory\);"):
        claim([tmp_path / "logs" / "run"])


def test_loggers_are_directed_to_the_folder_that_was_claimed(tmp_path):
    loggers = [
        logger("CSVLogger", save_dir=str(tmp_path / "csv"), name="mine", version=None),
        logger("TensorBoardLogger", save_dir=str(tmp_path / "board"), name=None, version=None),
        logger("MLFlowLogger", save_dir="./mlruns"),
    ]
    (tmp_path / "board" / "version_1").mkdir(parents=True)
    run = begin_run(tmp_path / "logs" / "run", loggers, None)
    assert run.folder == tmp_path / "csv" / "mine" / "version_2"
    assert run.claimed == (run.folder, tmp_path / "board" / "version_2")
    assert [one["init_args"] for one in loggers] == [
        {"save_dir": str(tmp_path / "csv"), "name": "mine", "version": "version_2"},
        {"save_dir": str(tmp_path), "name": "board", "version": "version_2"},
        {"save_dir": "./mlruns"},
    ]
    assert begin_run(tmp_path / "logs" / "run", [], None).folder == tmp_path / "logs" / "run" / "version_0"
    assert begin_run(tmp_path / "logs" / "run", loggers[2:], None).folder == tmp_path / "logs" / "run" / "version_1"


def test_runs_have_the_name_of_their_folder_in_every_logger_unless_the_user_names_them(tmp_path, monkeypatch):
    def loggers(**mlflow):
        return [
            logger("CSVLogger", save_dir=str(tmp_path / "csv"), name="lightning_logs", version=None),
            logger("WandbLogger", name=None, project=None, version=None),
            logger("MLFlowLogger", **{"experiment_name": "lightning_logs", "run_name": None, **mlflow}),
        ]

    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    given = loggers(run_name="mine")
    assert begin_run(tmp_path / "logs" / "flowers", given, None).folder == tmp_path / "csv" / "flowers" / "version_0"
    wandb, mlflow = (dict(one["init_args"].items()) for one in given[1:])
    assert wandb == {"name": "version_0", "project": "flowers", "version": None}
    assert mlflow == {"experiment_name": "flowers", "run_name": "mine"}
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    given = loggers()[1:]
    assert begin_run(tmp_path / "logs" / "flowers", given, None).folder == tmp_path / "logs" / "flowers" / "version_0"
    assert given[0]["init_args"]["project"] is None
    assert dict(given[1]["init_args"].items()) == {"experiment_name": "flowers", "run_name": "version_0"}


@pytest.mark.parametrize(("version", "name"), [("mine", "mine"), (7, "version_7")])
def test_folder_that_the_user_has_chosen_is_kept(tmp_path, version, name):
    given = logger("CSVLogger", save_dir=str(tmp_path), name="x", version=version)
    for _ in range(2):
        run = begin_run(tmp_path, [given], None)
        assert (run.folder, run.claimed) == (tmp_path / "x" / name, ())


@pytest.mark.parametrize("variables", [{"rank": 1}, {"NODE_RANK": "1"}, {"GROUP_RANK": "2"}])
def test_other_processes_take_the_folder_that_the_first_has_claimed(tmp_path, monkeypatch, variables):
    given = logger("CSVLogger", save_dir=str(tmp_path), name="x", version=None)
    first = begin_run(tmp_path, [given], None)
    assert os.environ[FOLDER_VARIABLE] == str(first.folder)
    monkeypatch.setattr(rank_zero_only, "rank", variables.get("rank", 0))
    for name in variables.keys() - {"rank"}:
        monkeypatch.setenv(name, variables[name])
    given["init_args"]["version"] = None
    other = begin_run(tmp_path, [given], None)
    assert (other.folder, other.claimed) == (first.folder, ())
    monkeypatch.delenv(FOLDER_VARIABLE)  # with a launcher of others, that knows of no folder
    given["init_args"]["version"] = None
    unknown = begin_run(tmp_path, [given], None)
    assert (unknown, given["init_args"]["version"]) == (None, None)
    assert [folder.name for folder in (tmp_path / "x").iterdir()] == ["version_0"]


@pytest.mark.long
@pytest.mark.parametrize("kind", runs_at_once.KINDS)
def test_what_comes_of_a_checkpoint_goes_to_its_run(run, kind):
    args = (*FIT, *runs_at_once.KINDS[kind])
    run(*args)
    last = Path(kind) / "version_0" / "checkpoints" / "last.ckpt"
    config = (last.parent.parent / "config.yaml").read_text()
    more = ("--trainer.max_epochs", 2, "--ckpt_path", last)
    run(*args, *more)
    assert torch.load(last, weights_only=True)["epoch"] == 1
    if "csv" in kind:  # which Lightning would have removed
        assert "epoch" in (last.parent.parent / "metrics-1.csv").read_text()
    data = ("--data", "DigitsDataModule")
    few = ("--trainer.limit_predict_batches", 1, "--trainer.limit_test_batches", 1)
    printed = run("predict", *runs_at_once.KINDS[kind], *data, *few, "--ckpt_path", last)
    assert f"Predictions: {last.parent.parent.resolve()}/predictions.csv" in printed
    run("test", *data, *few[2:], "--ckpt_path", last)
    assert [folder.name for folder in Path(kind).iterdir()] == ["version_0"]
    assert (last.parent.parent / "config.yaml").read_text() == config
    run("fit", "--config", last.parent.parent / "config.yaml")  # with the options that were asked for, a new run
    assert sorted(folder.name for folder in Path(kind).iterdir()) == ["version_0", "version_1"]


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        ("csv/run", ("--unfreeze.strategy", "gradual")),  # noticed in the set-up of the fit
        ("logs/none", ("--unfreeze.strategy", "gradual")),
        ("logs/run", ("--trainer.devices", 0)),  # and when the trainer is made
    ],
)
def test_run_that_is_refused_leaves_no_folder(refused, run, kind, mistake):
    fit = (*FIT[:1], *FIT[5:], *runs_at_once.KINDS[kind], "--trainer.max_epochs")
    refused(*fit, 2, *mistake)
    assert not list(Path(kind).glob("*"))
    run(*fit, 1, "--unfreeze", "null")
    refused(*fit, 2, "--ckpt_path", f"{kind}/version_0/checkpoints/last.ckpt", *mistake)
    assert (Path(kind) / "version_0" / "config.yaml").is_file()


def test_run_of_two_batches_claims_no_folder(run):
    run(*FIT, "--trainer.fast_dev_run", "true")
    assert not Path("logs").exists()


@pytest.mark.slow
def test_processes_that_lightning_starts_share_the_folder_of_the_first(tmp_path):
    options = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for name in ("a", "b"):
        command = [sys.executable, "-m", "lit_ft", *map(str, FIT), *options, "--name", name]
        command += ["--trainer.logger", "false"] if name == "b" else []
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert [folder.name for folder in (tmp_path / "logs" / name).iterdir()] == ["version_0"]
        assert (tmp_path / "logs" / name / "version_0" / "checkpoints" / "best.ckpt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]


def test_run_whose_folder_cannot_be_written_is_refused_if_a_logger_writes_there(tmp_path, monkeypatch):
    earlier = Run(tmp_path / "logs" / "version_0")
    earlier.checkpoints.mkdir(parents=True)
    earlier.config.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != earlier.folder)
    with pytest.raises(UserError, match=r"version_0: cannot be written; give write permission"):
        begin_run(tmp_path, [logger("TensorBoardLogger", save_dir=str(tmp_path))], str(earlier.last))
    assert begin_run(tmp_path, [], str(earlier.last)) == earlier
