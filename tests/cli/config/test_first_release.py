"""Configs of the first release, whose options of images had other names."""

import json

import pytest
import yaml
from jsonargparse import get_loader

from lit_ft.cli.config.first_release import MODE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"model": {"input": {"size": 64, "squash": True}}}, {"model": {"input": {"size": 64, "fit": "squash"}}}),
        ({"model": {"init_args": {"input": {"squash": False}}}}, {"model": {"init_args": {"input": {"fit": "crop"}}}}),
        ({"model": {"init_args": {"input": {"squash": None}}}}, {"model": {"init_args": {"input": {}}}}),
        ({"data": {"init_args": {"spec": {"squash": True}}}}, {"data": {"init_args": {"spec": {"fit": "squash"}}}}),
        ({"init_args": {"spec": {"squash": True}}}, {"init_args": {"spec": {"fit": "squash"}}}),
        ({"model": {"head": {"squash": True}}, "data": {"squash": True}}, None),  # of a class of the user's
        ({"model": {"input": None}, "data": None}, None),
        ({"model": "lit_ft.FineTuneModule", "data": [1]}, None),
    ],
)  # fmt: skip
def test_options_have_their_present_names(old, new):
    for text in (yaml.safe_dump(old), json.dumps(old)):
        assert get_loader(MODE)(text) == (old if new is None else new)


@pytest.mark.parametrize("text", ["1e-3", "null", "[1, 2]", "{a: 1e3, b: on}", "a: b", "text", "", "'1'"])
def test_all_else_is_read_as_yaml(text):
    assert get_loader(MODE)(text) == get_loader("yaml")(text)
    assert type(get_loader(MODE)(text)) is type(get_loader("yaml")(text))


def test_old_config_is_taken(run, tmp_path):
    config = {"model": {"backbone": "mnist_cnn", "weights": None, "input": {"size": 20, "squash": True}}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(config))
    given = yaml.safe_load(run("check", "--config", tmp_path / "old.yaml", "--print_config"))["model"]["init_args"]
    assert given["input"]["fit"] == "squash"
    assert "squash" not in given["input"]
