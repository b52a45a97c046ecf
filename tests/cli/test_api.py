"""Runs from Python, on small data: results, errors, and that the process stays as it was."""

import json
import os
import signal
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

import lit_ft as package
from lit_ft.cli.api import nest
from lit_ft.errors import UserError
from lit_ft.training.selection import Selected

pytestmark = [pytest.mark.usefixtures("lit_ft"), pytest.mark.filterwarnings("ignore")]

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TWO_EPOCHS = {"trainer": {"max_epochs": 2, "accelerator": "cpu"}, "unfreeze": None}


def weights(result):
    return result.model.state_dict()


@pytest.mark.long
def test_run_of_a_recipe_gives_metrics_history_paths_and_the_best_model():
    result = package.run("quickstart", **TWO_EPOCHS)
    assert result.folder == Path("logs/quickstart/version_0").absolute()
    assert result.config == result.folder / "config.yaml"
    assert (result.best, result.last) == tuple(result.folder / f"checkpoints/{name}.ckpt" for name in ("best", "last"))
    assert [row["epoch"] for row in result.history] == [0, 1]
    calibrated = json.loads((result.folder / "metrics.json").read_text())["calibration"]
    assert calibrated["loss_before"] == pytest.approx(min(row["val/loss"] for row in result.history))
    assert result.metrics["val/loss"] == pytest.approx(calibrated["loss_after"])
    assert 0.5 < result.metrics["test/acc"] < 1
    assert not result.model.training
    assert len(repr(result)) < 1000  # neither the network nor a row an epoch
    saved = torch.load(result.best, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights(result).items())


@pytest.mark.long
def test_two_runs_in_one_process_are_the_same_run():
    torch.manual_seed(5)
    config = yaml.safe_load(QUICKSTART.read_text())
    first, second = (package.run(config, **TWO_EPOCHS) for _ in range(2))
    assert (first.folder.name, second.folder.name) == ("version_0", "version_1")
    assert first.metrics == second.metrics
    assert first.history == second.history
    assert all(torch.equal(weights(first)[name], tensor) for name, tensor in weights(second).items())
    other = package.run(config, **TWO_EPOCHS, seed_everything=3)
    assert other.metrics != first.metrics


OWN = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, 2)
"""


@pytest.mark.long
def test_run_of_a_network_of_the_users_own_gives_its_model(tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = {"class_path": "own_network.Net", "stages": {"conv": "conv"}, "classifier": "fc"}
    model = {"backbone": backbone, "weights": None, "input": {"size": 28}}
    result = package.run({"model": model}, **TWO_EPOCHS, **{"trainer.limit_train_batches": 2})
    assert result.best.is_file()
    assert weights(result)["head.0.weight"].shape == (10, 4)


@pytest.mark.long
def test_finetune_on_a_folder_with_and_without_a_recipe(photo_root):
    small = {"model.backbone": "mnist_cnn", "model.weights": None, "data": {"num_workers": 0}}
    results = [
        package.finetune(photo_root, recipe, **TWO_EPOCHS, **small)
        for recipe in (None, QUICKSTART.with_name("image_folder_gradual.yaml"))
    ]
    assert [result.folder.parent.name for result in results] == ["image_folder", "image_folder_gradual"]
    for result in results:
        assert result.model.class_names == ["ant", "bee", "cat"]
        config = yaml.safe_load(result.config.read_text())
        assert config["data"]["class_path"] == "lit_ft.ImageFolderDataModule"
        assert config["data"]["init_args"]["root"] == str(photo_root)
    assert config["model"]["init_args"]["label_smoothing"] == 0.1


@pytest.mark.long
def test_metrics_are_none_of_images_that_a_refit_was_trained_on(photo_root, monkeypatch):
    # A blend, of which the refit validates both ends, with the images that it was trained on.
    monkeypatch.setattr("lit_ft.training.trainer.select_best", lambda *_: Selected(0.5, 2))
    small = {"model.backbone": "mnist_cnn", "model.weights": None, "data": {"num_workers": 0}}
    result = package.finetune(photo_root, trainer={"max_epochs": 2, "accelerator": "cpu"}, **small)
    written = json.loads((result.folder / "metrics.json").read_text())
    assert written["refit"]["share"] == 0.5
    assert written["test"]["is_before_refit"]
    expected = {name: value for name, value in written["test"].items() if name.startswith("test/")}
    assert expected.keys() > {"test/loss", "test/acc", "test/f1"}
    assert result.metrics == pytest.approx({**expected, "val/loss": written["val"]["val/loss"]}, abs=1e-6)


def test_traceback_of_a_wrong_option_is_without_those_of_the_parser():
    with pytest.raises(UserError) as caught:
        package.run(QUICKSTART, model="squeezenet1_1")
    text = "".join(traceback.format_exception(caught.value))
    assert text.count("Traceback") == 1
    assert text.endswith("UserError: model: squeezenet1_1 does not fit; give model.backbone squeezenet1_1\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"backbon": "x"}}, "model.backbon: there is no such option; nearest: model.backbone"),
        ({"model.lr": -1}, "model.lr: must be above 0, got -1.0"),
        ({"data": "ImageFolderDataModule", "data.root": "nix"}, "data.root: nix does not exist"),
        ({"data": "ImageFolderDataModule", "data.root": "my --photos"}, "data.root: my --photos does not exist"),
        ({"checkpoint": {"monitor": "val/acd"}}, "checkpoint.monitor: unknown metric 'val/acd'; nearest: val/acc"),
        ({"ckpt_path": "nix.ckpt"}, "ckpt_path: no such file: nix.ckpt"),
        ({"ckpt_path": "run"}, "ckpt_path: run is a folder; give run/checkpoints/last.ckpt to resume, or run/checkpo"),
        ({"modle.lr": 1}, "modle.lr: there is no such option; nearest: model.lr"),
        ({"optimizer": "SGD", "optimizer.momentum": -1}, "optimizer: SGD: Invalid momentum value: -1.0"),
        ({"trainer": {"max_epoch": 3}}, "trainer.max_epoch: there is no such option; give trainer.max_epochs"),
        ({"seed_everything": -1}, "seed_everything: must be between 0 and 2**32 - 1, got -1"),
        ({"trainer": [1]}, "trainer: [1] does not fit; give its options, as trainer.max_epochs 3"),
    ],
)
def test_user_error_names_the_option_as_a_config_does(options, message):
    Path("run/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        package.run(QUICKSTART if "data" not in options else {}, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("config", "options", "given"),
    [
        ({"trainer": [1]}, {"trainer.max_epochs": 1}, "a value in a config"),
        ({"trainer": 3}, {"trainer": {"max_epochs": 1}}, "a value in a config"),
        ({}, {"trainer": [1], "trainer.max_epochs": 3}, "[1]"),
    ],
)
def test_value_for_the_trainer_is_refused_also_where_options_follow(config, options, given):
    with pytest.raises(UserError) as caught:
        package.run(config, **options)
    assert str(caught.value) == f"trainer: {given} does not fit; give its options, as trainer.max_epochs 3"


def test_folder_without_photos_is_a_user_error():
    with pytest.raises(UserError, match=r"^data.root: nowhere does not exist"):
        package.finetune("nowhere", model={"backbone": "mnist_cnn"})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"model.lr": 1}, {"model": {"lr": 1}}),
        ({"model": {"lr": 1}, "model.lr": 2}, {"model": {"lr": 2}}),
        ({"model.lr": 1, "model": {"pool": "x"}}, {"model": {"lr": 1, "pool": "x"}}),
        ({"unfreeze": None}, {"unfreeze": None}),
        ({"data": "X", "data.root": "y"}, {"data": {"class_path": "X", "init_args": {"root": "y"}}}),
        ({"model.head.hidden": [8]}, {"model": {"head": {"hidden": [8]}}}),
    ],
)
def test_options_by_full_name_become_sections(options, expected):
    assert nest(options) == expected


@pytest.mark.parametrize("name", ["--trainer.max_epochs", 1])
def test_name_that_is_no_option_from_python_is_refused(name):
    with pytest.raises(UserError) as caught:
        package.run({name: 2})
    assert str(caught.value) == f"{name}: from Python, an option is text without dashes, such as trainer.max_epochs"


class Signalled(Callback):
    """Sends this process a signal in the third batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_signal_ends_a_run_with_a_checkpoint_of_that_batch_and_leaves_the_handlers():
    before = signal.getsignal(signal.SIGTERM)
    callbacks = {"trainer": {**TWO_EPOCHS["trainer"], "callbacks": [{"class_path": "test_api.Signalled"}]}}
    with pytest.raises(KeyboardInterrupt) as ended:
        package.run(QUICKSTART, **{**TWO_EPOCHS, **callbacks})
    last = Path("logs/quickstart/version_0/checkpoints/last.ckpt")
    assert ended.value.message == f"interrupted by SIGTERM; to resume: the same command with --ckpt_path {last}"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert signal.getsignal(signal.SIGTERM) is before
