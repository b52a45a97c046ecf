"""Spaces of a search: what they are read as, and the line for each mistake."""

import pytest

from lit_ft.errors import UserError
from lit_ft.tuning.space import Dimension, TuneConfig, read_space


def test_space_is_read_as_dimensions_by_the_names_of_options():
    given = {
        "model.lr": {"log": [1e-5, 1e-2]},
        "model.head.dropout": {"float": [0, 0.5]},
        "data.batch_size": {"int": [8, 64]},
        "optimizer": {"choice": ["SGD", {"class_path": "AdamW", "init_args": {"weight_decay": 0.1}}]},
    }
    assert read_space(given) == {
        "model.lr": Dimension("log", (1e-5, 1e-2)),
        "model.head.dropout": Dimension("float", (0, 0.5)),
        "data.batch_size": Dimension("int", (8, 64)),
        "optimizer": Dimension("choice", tuple(given["optimizer"]["choice"])),
    }


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ({}, "is empty; give what is tried of each option, such as {model.lr: {log: [1.0e-5, 1.0e-2]}}"),
        ({"model.lr": 0.1}, "takes one of float, log, int, choice, as {model.lr: {log: [1.0e-5, 1.0e-2]}}; got 0.1"),
        ({"model.lr": {"uniform": [0, 1]}}, 'got {"uniform": [0, 1]}'),
        ({"model.lr": {"log": [1e-5, 1e-2], "float": [0, 1]}}, "takes one of float, log, int, choice"),
        ({"model.lr": {"log": 0.1}}, "model.lr log takes a list, got 0.1"),
        ({"model.lr": {"log": [0, 1]}}, "model.lr log takes numbers above 0, got [0, 1]; give float for those"),
        ({"model.lr": {"log": [1e-2, 1e-5]}}, "log takes a smaller number before a greater one, got [0.01, 1e-05]"),
        ({"model.lr": {"float": [0.5, 0.5]}}, "float takes a smaller number before a greater one, got [0.5, 0.5]"),
        ({"model.lr": {"float": [0, 0.5, 1]}}, "takes the least and the greatest of two numbers, got [0, 0.5, 1]"),
        ({"model.lr": {"float": ["1e-5", 1]}}, 'two numbers, got ["1e-5", 1]'),
        ({"model.lr": {"float": [float("nan"), 1]}}, "a smaller number before a greater one, got [NaN, 1]"),
        ({"data.batch_size": {"int": [8.5, 64]}}, "the greatest of two whole numbers, got [8.5, 64]"),
        ({"data.batch_size": {"int": [True, 64]}}, "two whole numbers, got [true, 64]"),
        ({"optimizer": {"choice": ["SGD"]}}, 'optimizer choice takes at least two values, got ["SGD"]'),
        ({"optimizer": {"choice": ["SGD", "AdamW", "SGD"]}}, 'optimizer choice has "SGD" twice; leave one out'),
        ({"seed": {"int": [0, 9]}}, "seed cannot be tried, as trials with the best seed"),
        ({"folds": {"int": [2, 9]}}, "folds cannot be tried, as trials are compared on the same"),
        ({"seed_everything": {"int": [0, 9]}}, "seed_everything cannot be tried, as trials with the best seed"),
        ({"checkpoint.monitor": {"choice": ["val/acc", "val/f1"]}}, "as trials are compared by what it monitors"),
        ({"data.val_fraction": {"float": [0.1, 0.3]}}, "as trials are compared on the same validation images"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)  # fmt: skip
def test_space_that_cannot_be_tried_is_refused(space, line):
    with pytest.raises(UserError) as refused:
        read_space(space)
    assert str(refused.value).startswith("tune.space: ")
    assert line in str(refused.value)


def test_choice_gives_the_values_of_its_config_whatever_a_study_can_keep():
    values = (None, True, "1", 0.5, [0.9, 0.99], {"class_path": "SGD"})
    choice = Dimension("choice", values)
    assert choice.keys == (None, True, "1", 0.5, "[0.9, 0.99]", '{"class_path": "SGD"}')
    found = [choice.value_of(key) for key in choice.keys]
    assert [(type(one), one) for one in found] == [(type(one), one) for one in values]
    assert Dimension("log", (1e-5, 1e-2)).value_of(0.003) == 0.003


def test_choices_that_python_takes_for_the_same_are_kept_apart():
    values = (1, 1.0, True, "true")
    choice = Dimension("choice", values)
    assert choice.keys == ("1", "1.0", "true", '"true"')
    assert [(type(one), one) for one in map(choice.value_of, choice.keys)] == [(type(one), one) for one in values]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"trials": 0}, "tune.trials: must be at least 1, got 0"),
        ({"least_epochs": 0}, "tune.least_epochs: must be at least 1, got 0"),
        ({"storage": "study.db"}, "tune.storage: study.db is no URL; give one such as sqlite:///study.db, or null"),
        ({"storage": "me:secret@h/x"}, "tune.storage: this is no URL; give one such as sqlite:///study.db, or null"),
        (
            {"storage": "mysql://me:se@cret@h/x?a=@"},
            "tune.storage: the URL of mysql has more than one @; write %40 for those of a password",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, line):
    with pytest.raises(UserError) as refused:
        TuneConfig(**options)
    assert str(refused.value) == line


@pytest.mark.parametrize("storage", ["sqlite:////home/a@b/c@d.db", "postgresql://me:se%40cret@h/x?options=a@b"])
def test_address_with_an_at_sign_that_is_none_of_its_password_is_a_storage(storage):
    assert TuneConfig(storage=storage).storage == storage
