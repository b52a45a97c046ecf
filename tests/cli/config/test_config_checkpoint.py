"""Evaluations with the data of their checkpoint, and options of the model that contradict it."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch
from small_runs import small_module, small_trainer

from lit_ft.cli.config.checkpoint import add_saved_data, read_saved_data
from lit_ft.data import DigitsDataModule, ImageFolderDataModule
from lit_ft.errors import UserError

SAVED = {
    "run_options": {"data": "lit_ft.DigitsDataModule", "data.shots": 10},
    "datamodule_hyper_parameters": {"shots": 5, "download": True, "chunk_cache": "/"},
}
FOUND = {"class_path": "lit_ft.data.DigitsDataModule", "init_args": {"shots": 5}}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(SAVED, FOUND, id="hyperparameters"),
        pytest.param(
            {"run_options": {"data": "lit_ft.data.digits.DigitsDataModule", "data.shots": 5}}, FOUND, id="before_0.2"
        ),
        pytest.param(
            {"DigitsDataModule": {}, "datamodule_hyper_parameters": {"shots": 5}}, FOUND, id="without_command_line"
        ),
        pytest.param({**SAVED, "run_options": {"data": "mine.DigitsDataModule"}}, None, id="class_of_the_user"),
        pytest.param({**SAVED, "run_options": {"data": "lit_ft.data.modules.base.os"}}, None, id="no_data_module"),
        pytest.param({"state_dict": {}}, None, id="nothing"),
        pytest.param([1], None, id="no_checkpoint"),
    ],
)
def test_saved_data_is_of_lit_ft_alone_and_has_no_effects(checkpoint, content, found):
    assert read_saved_data(checkpoint(content)) == found


def test_file_that_cannot_be_read_has_no_data(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"no checkpoint")
    assert read_saved_data(str(tmp_path / "x.ckpt")) is None
    assert read_saved_data(str(tmp_path / "none.ckpt")) is None


@pytest.mark.parametrize(
    ("given", "adds"),
    [
        (["test", "--ckpt_path", "CKPT"], True),
        (["validate", "--ckpt_path=CKPT", "--data.batch_size", "7"], True),
        (["test", "--ckpt_path", "CKPT", "--config", "recipe.yaml"], True),
        (["test", "--ckpt_path", "CKPT", "--config", "data.yaml"], False),
        (["test", "--ckpt_path", "CKPT", "--config", "missing.yaml"], False),
        (["test", "--ckpt_path", "CKPT", "--data", "DigitsDataModule"], False),
        (["test", "--ckpt_path", "CKPT", "--data=DigitsDataModule"], False),
        (["test", "--ckpt_path", "CKPT", "--data.class_path", "DigitsDataModule"], False),
        (["test", "--ckpt_path", "CKPT", "--config=data.yaml", "--config", "recipe.yaml"], False),
        (["test", "--ckpt_path", "CKPT", "-c", "data.yaml"], False),
        (["test", "--ckpt_path", "CKPT", "-cdata.yaml"], False),
        (["test", "--ckpt_path", "CKPT", "-c=data.yaml"], False),
        (["test", "--ckpt_path", "CKPT", "-crecipe.yaml", "-c", "recipe.yaml"], True),
        (["test", "--ckpt_path", "none.ckpt", "--ckpt_path=CKPT"], True),
        (["test", "--config", "checkpoint.yaml"], True),
        (["test", "-ccheckpoint.yaml"], True),
        (["predict", "--ckpt_path", "CKPT"], False),
        (["predict", "--ckpt_path", "CKPT", "--data.predict", "photos"], True),
        (["fit", "--ckpt_path", "CKPT"], False),
        (["test"], False),
    ],
)
def test_saved_data_is_added_where_no_other_is_given(checkpoint, tmp_path, monkeypatch, given, adds):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("model: {backbone: mnist_cnn}\n")
    Path("data.yaml").write_text("data: DigitsDataModule\n")
    path = checkpoint(SAVED)
    Path("checkpoint.yaml").write_text(f"ckpt_path: {path}\n")
    args = [arg.replace("CKPT", path) for arg in given]
    command, *options = args
    assert add_saved_data(command, options) == (["--data", json.dumps(FOUND), *options] if adds else options)


def test_checkpoint_may_come_first_and_other_photos_are_all_tested(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"root": str(tmp_path / "photos"), "batch_size": 8}
    content = {
        "hyper_parameters": {"classes": ["ant", "bee"]},
        "run_options": {"data": "lit_ft.data.ImageFolderDataModule"},
        "datamodule_hyper_parameters": options,
    }
    path = checkpoint(content)
    for name in ("photos", "new"):
        Path(name).mkdir()
    kept = {"class_path": "lit_ft.data.ImageFolderDataModule", "init_args": options}
    others = {**kept, "init_args": {**options, "tested_classes": ["ant", "bee"]}}
    for command, root, found in (("test", "photos", kept), ("test", "new", others), ("validate", "new", kept)):
        wanted = ["--data", json.dumps(found), "--ckpt_path", path, "--data.root", root]
        assert add_saved_data(command, [path, "--data.root", root]) == wanted
    Path("run/checkpoints").mkdir(parents=True)
    torch.save({**content, "datamodule_hyper_parameters": {"root": "../gone"}}, "run/checkpoints/best.ckpt")
    with pytest.raises(UserError, match=r"data.root: \.\./gone does not exist; it is the path that the run saved"):
        add_saved_data("test", ["run"])
    assert add_saved_data("test", ["run", "--data.root", "new"])[-1] == "new"
    Path(path).rename("run/checkpoints/best.ckpt")
    assert add_saved_data("test", ["run"])[2:] == ["--ckpt_path", "run/checkpoints/best.ckpt"]


@pytest.mark.parametrize(
    ("folder", "args"),
    [
        ("logs/run", []),
        ("logs/mine", ["--name", "mine"]),
        ("logs/mine", ["--name=other", "--name=mine"]),
        ("elsewhere/run", ["--trainer.default_root_dir", "elsewhere"]),
        ("logs/recipe", ["--config", "recipe.yaml"]),
        ("elsewhere/mine", ["--config", "named.yaml"]),
        ("logs/recipe", ["-crecipe.yaml"]),
        ("elsewhere/mine", ["-c", "named.yaml"]),
        ("elsewhere/other", ["--config", "named.yaml", "--name", "other"]),
        ("elsewhere/mine", ["--name", "other", "--config", "named.yaml"]),
        ("elsewhere/recipe", ["--config", "named.yaml", "--config", "recipe.yaml", "--name", "null"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("name", ["best", "last"])
def test_saved_data_is_of_the_checkpoint_that_a_name_stands_for(tmp_path, monkeypatch, name, folder, args):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("model: {backbone: mnist_cnn}\n")
    Path("named.yaml").write_text("name: mine\ntrainer: {default_root_dir: elsewhere}\n")
    args = ["--ckpt_path", name, *args]
    for shots, place in enumerate([*sorted({"logs/run", "logs/other", "elsewhere/run"} - {folder}), folder]):
        path = Path(place, "version_0", "checkpoints", f"{name}.ckpt")
        path.parent.mkdir(parents=True)
        torch.save({"DigitsDataModule": {}, "datamodule_hyper_parameters": {"shots": shots}}, path)
        os.utime(path, (shots, shots))
    _, added, *rest = add_saved_data("test", args)
    assert (json.loads(added)["init_args"], rest) == ({"shots": shots}, args)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_photos_are_predicted_by_a_checkpoint_of_arrays_with_the_class_that_the_message_names(run, refused, photo_root):
    run("fit", "--trainer.max_epochs", 1, "--unfreeze", "null", "--model.weights", "null")
    photos = ("--data.predict", photo_root / "ant", "--predictions.overwrite", "true")
    for args in (("--name", "run"), ("--config", "logs/run/version_0/config.yaml")):
        assert refused("predict", "--ckpt_path", "best", *args, *photos) == (
            "lit-ft: --data.predict: DigitsDataModule takes no images to predict; name --data ImageFolderDataModule "
            "before it"
        )
        run("predict", "--ckpt_path", "best", *args, "--data", "ImageFolderDataModule", *photos)
        assert len(Path("logs/run/version_0/predictions.csv").read_text().splitlines()) == 1 + 10


def test_photos_are_seen_as_the_arrays_were_by_both_ways_to_predict(run, photo_root):
    run("fit", "--trainer.max_epochs", 1, "--unfreeze", "null", "--model.weights", "null", "--model.input.resize", 40)
    photos = photo_root / "ant"
    run("predict", "--ckpt_path", "best", "--name", "run", "--data", "ImageFolderDataModule", "--data.predict", photos)
    run("predict", "logs/run/version_0", photos, "--out", "direct.csv")
    texts = [Path(file).read_text() for file in ("logs/run/version_0/predictions.csv", "direct.csv")]
    config, direct = ([float(row["probability"]) for row in csv.DictReader(text.splitlines())] for text in texts)
    assert len(direct) == 10
    assert config == pytest.approx(direct, rel=1e-5)


@pytest.mark.long
def test_checkpoint_is_evaluated_on_its_own_data_and_options_override(run):
    fit = ("--data", "DigitsDataModule", "--data.split_seed", 3, "--data.shots", 5, "--unfreeze", "null")
    score = r"test/acc +│? *([0-9.]+)"
    trained = re.search(score, run("finetune", *fit, "--trainer.max_epochs", 1))[1]
    best = ("--ckpt_path", "logs/run/version_0/checkpoints/best.ckpt")
    assert re.search(score, run("test", *best))[1] == trained
    assert re.search(score, run("test", *best, "--data.batch_size", 7))[1] == trained
    assert re.search(score, run("test", *best, "--data.split_seed", 4))[1] != trained
    assert "val/acc" in run("validate", *best)
    assert re.search(score, run("test", "--ckpt_path", "best", "--name", "run"))[1] == trained


def test_photos_are_predicted_by_their_checkpoint_alone(run, photo_root):
    small = ["--model.backbone", "squeezenet1_1", "--model.weights", "null", "--model.input.size", 64]
    data = ["--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.num_workers", 0]
    run("fit", *small, *data, "--trainer.max_epochs", 1, "--unfreeze", "null")
    folder = next(path for path in Path(photo_root).rglob("*") if path.is_dir() and any(path.glob("*.*")))
    run("predict", "--ckpt_path", "logs/run/version_0/checkpoints/best.ckpt", "--data.predict", folder)
    rows = Path("logs/run/version_0/predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + len([path for path in folder.rglob("*") if path.is_file()])


@pytest.mark.filterwarnings("ignore")
def test_hyperparameters_of_data_are_plain_and_give_the_same_data(tmp_path, photo_root):
    data = ImageFolderDataModule(Path(photo_root), val_fraction=0.25, groups=None)
    assert data.hparams == {
        **data.hparams,
        "root": str(photo_root),
        "augment": "basic",
        "val_fraction": 0.25,
        "split_seed": 0,
        "spec": None,
    }
    trainer = small_trainer(1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(small_module(), datamodule=DigitsDataModule(shots=3, spec=small_module().input_spec))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = DigitsDataModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert (again.shots, again.spec) == (3, small_module().input_spec)


def test_argument_of_a_subclass_that_is_not_plain_is_left_out():
    class Own(DigitsDataModule):
        def __init__(self, transform, size=3, **common):
            super().__init__(**common)

    assert Own(torch.nn.Identity(), shots=2).hparams == {**DigitsDataModule(shots=2).hparams, "size": 3}


def test_missing_checkpoint_is_named_before_options_of_its_data(tmp_path):
    args = ["--ckpt_path", str(tmp_path / "none.ckpt"), "--data.predict", str(tmp_path)]
    with pytest.raises(UserError, match=r"ckpt_path: no such file: .*none\.ckpt"):
        add_saved_data("predict", args)
    with pytest.raises(UserError, match=r"ckpt_path: there is no logs/run/\*/checkpoints/last\.ckpt"):
        add_saved_data("predict", ["--ckpt_path", "last", *args[2:]])


@pytest.mark.long
def test_option_of_the_model_that_the_checkpoint_overrides_is_refused_if_it_differs(run, refused):
    hidden = ("--model.head.hidden", "[8]")
    run("fit", "--trainer.max_epochs", 1, "--unfreeze", "null", "--model.lr", 0.002, *hidden)
    folder = "logs/run/version_0"
    own = ("--config", f"{folder}/config.yaml", "--ckpt_path", f"{folder}/checkpoints/best.ckpt")
    for option, told in {
        ("--model.backbone", "resnet18"): "--model.backbone: resnet18, but the checkpoint is of a run with mnist_cnn",
        ("--model.backbone=resnet18",): "--model.backbone: resnet18, but the checkpoint is of a run with mnist_cnn",
        ("--model.weights", "mine.pth"): "--model.weights: mine.pth, but the checkpoint is of a run with DEFAULT",
        ("--model.input.size", 32): "--model.input.size: 32, but the checkpoint is of a run with 28",
        ("--model.head.hidden", "[9]"): "--model.head.hidden: [9], but the checkpoint is of a run with [8]",
        ("--model.lr", 0.001): "--model.lr: 0.001, but the checkpoint is of a run with 0.002",
        ("--optimizer", "SGD"): "--optimizer: {'class_path': 'torch.optim.SGD', ",
    }.items():
        assert told in refused("test", *own, *option)
    run("test", *own, "--model.lr", 0.002, *hidden, "--model.weights", "DEFAULT", "--model.input.size", 28)
    # A recipe may have been trained otherwise, but is of the same model or not.
    Path("recipe.yaml").write_text("data: DigitsDataModule\nmodel: {backbone: mnist_cnn, lr: 0.1, head: {hidden: [8]}}")
    run("test", "--config", "recipe.yaml", *own[2:])
    Path("recipe.yaml").write_text("data: DigitsDataModule\nmodel: {backbone: mnist_cnn, head: {hidden: [9]}}")
    assert "--model.head.hidden: [9], but" in refused("test", "--config", "recipe.yaml", *own[2:])


@pytest.mark.long
def test_photos_are_seen_as_in_the_fit(run, refused, photo_root):
    model = ("--model.backbone", "mnist_cnn", "--model.weights", "null", "--unfreeze", "null", "--epochs", 1)
    printed = run("fit", photo_root, *model, "--data.num_workers", 0, "--data.fit", "pad", "--name", "run")
    folder = "logs/run/version_0"
    hparams = torch.load(f"{folder}/checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]
    assert (hparams["input"]["fit"], hparams["input"]["resize"]) == ("pad", 28)
    assert refused("test", folder, "--data.fit", "crop") == (
        "lit-ft: --data.fit: crop, but the model was fitted with pad; leave it out"
    )
    last = ("--config", f"{folder}/config.yaml", "--ckpt_path", f"{folder}/checkpoints/last.ckpt", "--epochs", 2)
    line = refused("fit", *last, "--data.fit", "crop")
    assert "--data.fit pad, but this one has crop" in line
    assert "--model.input.fit pad, but this one has crop" in line
    assert "mean" not in line  # of which all is the same
    shown = run("validate", folder, "--data.fit", "pad")
    assert re.search(r"\n  val/loss +(\S+)\n", shown)[1] == re.search(r"\(val/loss (\S+)\)", printed)[1]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_folder_that_is_fitted_anew_has_the_config_of_the_new_fit(run, refused):
    logger = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs", "--trainer.logger.name", "run")
    fit = ("fit", "--unfreeze", "null", *logger, "--trainer.logger.version", 0, "--trainer.limit_train_batches", 1)
    run(*fit, "--trainer.max_epochs", 1, "--model.lr", 0.25)
    config = Path("logs/run/version_0/config.yaml")
    before = config.read_text()
    refused(*fit, "--model.lr", 0.5, "--data", "DigitsDataModule", "--data.shots", 100000)  # as the data is read
    assert config.read_text() == before
    run(*fit, "--trainer.max_epochs", 1, "--model.lr", 0.125)
    assert config.read_text() == before.replace("lr: 0.25", "lr: 0.125")
    run(*fit, "--trainer.max_epochs", 2, "--model.lr", 0.125, "--ckpt_path", "logs/run/version_0/checkpoints/last.ckpt")
    assert config.read_text() == before.replace("lr: 0.25", "lr: 0.125")
