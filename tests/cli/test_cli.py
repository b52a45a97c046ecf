"""The entry called from Python: twice in one process, which stays as it was."""

import gc
import io
import logging
import os
import re
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import _common

from lit_ft.cli import main
from lit_ft.training.signals import Interrupted

FIT = ("fit", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--unfreeze=null", "--model.weights=null")


def process():
    """What a command could change of the process."""
    return {
        "argv": list(sys.argv),
        "path": list(sys.path),
        "variables": dict(os.environ),
        "filters": list(warnings.filters),
        "format": warnings.formatwarning,
        "show": warnings.showwarning,
        "levels": {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")},
        "parser": dict(_common.parsing_settings),
        "streams": [(stream, stream.errors) for stream in (sys.stdout, sys.stderr)],
        "folder": os.getcwd(),
    }


@pytest.mark.long
@pytest.mark.usefixtures("lit_ft")
@pytest.mark.filterwarnings("ignore")
def test_two_calls_give_the_same_and_leave_the_process_as_it_was(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script.py", "of", "another"])
    before = process()
    assert main(FIT) == 0
    assert process() == before
    assert main(FIT) == 0
    assert process() == before
    first, second = (torch.load(f"logs/run/version_{i}/checkpoints/last.ckpt", weights_only=True) for i in (0, 1))
    assert all(torch.equal(first["state_dict"][name], tensor) for name, tensor in second["state_dict"].items())


@pytest.mark.usefixtures("lit_ft")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--offline", "models", "mnist_cnn"], 0),
        (["fit", "--model.lr", "-1", "--offline"], 2),
        (["fot"], 2),
        (["--help"], 0),
        (["models", "--help"], 0),
        (["fit", "--print_config"], 0),
    ],
)
def test_process_is_as_it_was_also_after_an_error(monkeypatch, args, code):
    monkeypatch.delenv("LIT_FT_OFFLINE")
    before = process()
    assert main(args) == code
    assert process() == before


def test_exit_of_own_code_stays_one(monkeypatch):
    monkeypatch.setattr("lit_ft.cli._run", lambda _: sys.exit(3))
    with pytest.raises(SystemExit, match="3"):
        main(["fit"])


def test_streams_are_restored(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", stream)
    assert main(["--help"]) == 0
    assert stream.errors == "strict"


def test_arguments_of_the_process_are_taken_where_none_are_given(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lit-ft", "fot"])
    assert main() == 2
    assert "unknown command 'fot'; nearest: fit" in capsys.readouterr().err


def test_folder_of_photos_is_planned_by_the_recipe_for_photos(run, photo_root):
    printed = run("plan", photo_root, "--epochs", 2, "--model.backbone", "mnist_cnn", "--batch_size", 4)
    assert "ImageFolderDataModule: 3 classes (ant, bee, cat)" in printed
    assert re.search(r"0 +solved +head .*\n +1 +0-1 +dense, head ", printed)  # the strategy deepest, in two epochs


def test_config_that_is_printed_has_the_long_names_alone(run):
    short = ("--epochs", 3, "--batch_size=8", "--image_size", 32, "--seed", 4)
    config = yaml.safe_load(run("fit", *short, "--data", "DigitsDataModule", "--print_config"))
    assert (config["trainer"]["max_epochs"], config["seed_everything"]) == (3, 4)
    assert config["data"]["init_args"]["batch_size"] == 8
    assert config["model"]["init_args"]["input"]["size"] == 32
    assert not {"epochs", "batch_size", "image_size", "seed"} & config.keys()


def test_short_name_in_a_config_is_answered_with_the_long_one(refused, tmp_path):
    config = tmp_path / "a.yaml"
    for text, place in (("epochs: 5", "max_epochs below trainer"), ("seed: 5", "seed_everything")):
        config.write_text(text)
        line = refused("plan", "--config", config)
        assert line.endswith(f"is a short name for the command line; in a config it is {place}")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("nowhere", "--data.root: nowhere does not exist; give another path"),
        (
            "labels.csv",
            "--data.root: labels.csv is a file, not a folder; for a table of images: --data ImageTableDataModule",
        ),
        (
            "bare",
            "--data.root: bare has no class folders, it is empty; put the images of each class into a folder of its",
        ),
    ],
)
def test_folder_that_cannot_be_trained_on_is_told_in_one_line(refused, given, line):
    Path("bare").mkdir()
    Path("labels.csv").touch()
    assert refused("finetune", given, "--epochs", 1).startswith(f"lit-ft: {line}")
    assert not Path("logs").exists()


def test_option_before_the_command_is_refused(capsys):
    assert main(["--config", "x.yaml", "fit"]) == 2
    assert capsys.readouterr().err == "lit-ft: --config: the command comes first; type lit-ft fit --config x.yaml\n"


def test_report_writes_a_page_into_each_folder_of_a_run(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("model: {backbone: mnist_cnn}\n")
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert all("mnist_cnn" in (tmp_path / name / "report.html").read_text() for name in ("one", "two"))
    assert capsys.readouterr().out.count("Written: ") == 2
    (tmp_path / "two/report.html").write_text("<img src='data:image/jpeg;base64,AA=='>")  # of photos that are gone
    assert main(["report", str(tmp_path / "two")]) == 2
    assert "has 1 photos, of which this page would have 0" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "two"), "--overwrite"]) == 0
    assert "mnist_cnn" in (tmp_path / "two/report.html").read_text()
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("is not the folder of a run, as it has no config.yaml\n")
    assert main(["report"]) == 2
    assert capsys.readouterr().err == "lit-ft: the following arguments are required: RUN (see lit-ft report --help)\n"


@pytest.mark.usefixtures("lit_ft")
@pytest.mark.parametrize(
    "args", [["fit", "--model.lr", "-1"], ["fit", "--data", "ImageFolderDataModule", "--data.root", "x"]]
)
def test_other_process_waits_for_the_first_to_refuse_the_same(monkeypatch, capsys, args):
    waited = []
    monkeypatch.setattr(
        "lit_ft.training.launch.time.sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err))
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main([*args, "--trainer.accelerator=cpu", "--trainer.logger=false"]) == 2
    assert waited == [(10.0, "")]
    assert capsys.readouterr().err.startswith("lit-ft: --")


def test_other_process_that_is_ended_before_it_runs_prints_nothing(monkeypatch, capsys):
    def end(_):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("lit_ft.cli._run", end)
    assert main(["fit"]) == 143
    assert capsys.readouterr().err == "lit-ft: interrupted by SIGTERM\n"
    monkeypatch.setenv("RANK", "1")
    assert main(["fit"]) == 143
    assert capsys.readouterr().err == ""


def test_libraries_are_loaded_without_looks_for_garbage(run, monkeypatch):
    looks = []
    monkeypatch.setattr("lit_ft.cli.check_torchvision", lambda: looks.append(gc.isenabled()))
    assert gc.isenabled()
    run("models", "--help")
    assert looks == [False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    "args",
    [
        ["tune", "photos", "--storage", "{}"],
        ["tune", "photos", "{}"],
        ["tune", "photos", "--tune.pruner", "{}"],
    ],
)
def test_password_of_a_url_is_in_no_error(args, refused):
    line = refused(*(arg.format("postgresql://me:secret99@host/studies") for arg in args))
    assert "secret99" not in line
    assert "me:...@host/studies" in line
