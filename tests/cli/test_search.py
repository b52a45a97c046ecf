"""Searches as configs have them: what a trial is made of, and what a study must have in common."""

import copy
from pathlib import Path

import pytest

from lit_ft.cli.search import Search, refuse_options, refuse_other_study
from lit_ft.errors import UserError
from lit_ft.tuning.space import TuneConfig, read_space

BASE = {
    "seed_everything": 0,
    "name": "mine",
    "refit": True,
    "checkpoint": {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/acc"}},
    "feature_cache": {"class_path": "lit_ft.FeatureCache", "init_args": {"views": 2, "folder": None}},
    "optimizer": {"class_path": "AdamW", "init_args": {"weight_decay": 0.1}},
    "model": {"class_path": "lit_ft.FineTuneModule", "init_args": {"lr": 0.1, "head": {"dropout": 0.0}}},
    "data": {"class_path": "lit_ft.ImageFolderDataModule", "init_args": {"root": "a", "batch_size": 8}},
    "trainer": {
        "devices": "auto",
        "num_nodes": 1,
        "max_epochs": 5,
        "fast_dev_run": False,
        "accelerator": "auto",
        "logger": None,
    },
}
SPACE = {"model.lr": {"log": [1e-4, 1e-1]}}


def changed(name, value):
    base = copy.deepcopy(BASE)
    *sections, last = name.split("/")
    place = base
    for section in sections:
        place = place[section]
    place[last] = value
    return base


def search(base=BASE, space=SPACE, images="a"):
    return Search(TuneConfig(space=space), read_space(space), base, Path("logs/mine_tune"), "val/acc", "max", images)


def test_trial_is_a_run_on_one_device_in_the_folder_of_the_study():
    config = search().trial_config
    assert (config["name"], config["refit"], config["trainer"]["devices"]) == ("mine_tune", False, 1)
    assert {key for key, value in config.items() if value != BASE[key]} == {"name", "refit", "trainer"}
    assert BASE["trainer"]["devices"] == "auto"
    assert search(changed("trainer/devices", [1])).trial_config["trainer"]["devices"] == [1]


def test_trials_are_no_more_than_there_are_combinations_unless_their_seeds_differ():
    space = {"model.lr": {"choice": [0.1, 0.01, 0.001]}, "data.batch_size": {"int": [8, 9]}}
    assert search(space=space).num_trials == 6
    assert search().num_trials == 20
    assert search(space=space | SPACE).num_trials == 20
    assert search(space={"data.batch_size": {"int": [1, 64]}}).num_trials == 20
    assert search(changed("seed_everything", True), space).num_trials == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data/init_args/root", "b"),
        ("trainer/accelerator", "cpu"),
        ("name", "other"),
        ("refit", False),
        ("feature_cache/init_args/folder", "kept"),
    ],
)
def test_study_goes_on_with_what_has_no_say_in_its_values(name, value):
    refuse_other_study(search(changed(name, value)), search().settings)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("data/init_args/batch_size", 9, "data.batch_size 8, but this command has 9"),
        ("model/init_args/head", {"dropout": 0.5}, "model.head.dropout 0.0, but this command has 0.5"),
        ("trainer/max_epochs", 6, "trainer.max_epochs 5, but this command has 6"),
        ("feature_cache/init_args/views", 4, "feature_cache.views 2, but this command has 4"),
        ("optimizer/class_path", "SGD", 'optimizer "AdamW", but this command has "SGD"'),
    ],
)
def test_study_of_other_options_is_refused(name, value, line):
    with pytest.raises(UserError) as refused:
        refuse_other_study(search(changed(name, value)), search().settings)
    assert str(refused.value) == f"logs/mine_tune: this study has {line}; give the same, or another name"


def test_study_of_another_space_is_refused():
    other = search(space={"model.lr": {"log": [1e-5, 1e-1]}})
    with pytest.raises(UserError, match=r"this study has tune\.space \{.*0\.0001.*\}, but this command has \{.*1e-05"):
        refuse_other_study(other, search().settings)


def test_study_of_other_images_is_refused():
    saved = search().settings
    with pytest.raises(UserError) as refused:
        refuse_other_study(search(images="b"), saved)
    line = "logs/mine_tune: this study has trials of other images; give the same, or another name"
    assert str(refused.value) == line
    saved.pop("images")  # as in a study of the first release
    refuse_other_study(search(images="b"), saved)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("checkpoint", None, "checkpoint: null leaves no metric to compare trials by; leave it out"),
        ("data/init_args/folds", 5, "data.folds: a trial has one validation split; leave it out, or give data.fold 1"),
        ("trainer/fast_dev_run", True, "trainer.fast_dev_run: a trial needs the folder of a run; leave it out"),
        ("trainer/devices", 2, "trainer.devices: 2, but each trial has one device; give 1, and start the command once"),
        ("trainer/devices", "0,1", "trainer.devices: 0,1, but each trial has one device"),
        ("trainer/devices", -1, "trainer.devices: -1, but each trial has one device"),
        (
            "trainer/logger",
            [{"class_path": "CSVLogger", "init_args": {"version": None}}, {"init_args": {"version": 0}}],
            "trainer.logger: with the version 0 each trial would replace the run of the one before; leave it out",
        ),
        ("trainer/num_nodes", 2, "trainer.num_nodes: 2, but each trial has one device"),
        ("trainer/max_epochs", 2, "tune.least_epochs: 3 are more than trainer.max_epochs 2"),
    ],
)
def test_options_that_no_trial_can_have_are_refused(name, value, line):
    with pytest.raises(UserError) as refused:
        refuse_options(changed(name, value), TuneConfig(least_epochs=3))
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize("devices", ["auto", 1, "1", [1], "1,"])
def test_one_device_may_be_a_certain_one(devices):
    refuse_options(changed("trainer/devices", devices), TuneConfig())
