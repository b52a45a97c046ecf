"""Arguments as they are typed, without any parser."""

from pathlib import Path

import numpy as np
import pytest

from lit_ft.cli.config.arguments import put_word_first, settle_arguments, split_arguments
from lit_ft.errors import UserError
from lit_ft.recipes import find_recipe

RECIPE = str(find_recipe("image_folder"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with photos, in which a command is typed."""
    for name in ("My Photos/ant", "My Photos/bee", "P/train", "P/val"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "own.yaml").write_text("model: {lr: 0.1}\n")
    (tmp_path / "labels.csv").touch()
    monkeypatch.chdir(tmp_path)


def test_finetune_of_nothing_trains_on_no_digits_but_asks_for_photos():
    with pytest.raises(
        UserError, match=r"^which photos\? Type lit-ft finetune PHOTOS, or to try it without any, lit-ft "
    ):
        settle_arguments("finetune", [])
    assert settle_arguments("plan", []) == []


@pytest.mark.parametrize(
    ("args", "settled"),
    [
        (["--epochs", "5"], ["--trainer.max_epochs", "5"]),
        (["--epochs=5", "--seed=-1"], ["--trainer.max_epochs=5", "--seed_everything=-1"]),
        (["--batch_size", "8", "--image_size", "64"], ["--data.batch_size", "8", "--model.input.size", "64"]),
        (["--data.batch_size", "8", "--name", "epochs"], ["--data.batch_size", "8", "--name", "epochs"]),
        (["--model.lr", "1", "--config", "a.yaml", "-cb.yaml"], ["--config", "a.yaml", "-cb.yaml", "--model.lr", "1"]),
        (["--optimizer.lr=1", "--optimizer", "SGD", "-c", "a"], ["-c", "a", "--optimizer", "SGD", "--optimizer.lr=1"]),
        (["--lr_scheduler.x", "1", "--lr_scheduler", "null"], ["--lr_scheduler.x", "1", "--lr_scheduler", "null"]),
        (["--print_config", "--model.lr", "-1"], ["--print_config", "--model.lr", "-1"]),
    ],
)
def test_options_have_long_names_and_stand_after_configs_and_classes(args, settled):
    assert settle_arguments("fit", args) == settled


@pytest.mark.parametrize("command", ["finetune", "fit", "plan", "check", "probe", "convert"])
def test_folder_of_photos_is_taken_with_the_recipe_for_photos(command):
    assert settle_arguments(command, ["P", "--epochs", "5"]) == [
        "--config", RECIPE, "--data.root", "P", "--trainer.max_epochs", "5"
    ]  # fmt: skip
    assert settle_arguments(command, ["--seed", "1", "My Photos"])[2:] == [
        "--data.root", "My Photos", "--seed_everything", "1"
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["set.npz", "arrays"])
def test_arrays_are_taken_with_the_recipe_for_photos_and_their_data_module(tmp_path, place):
    np.savez("set.npz", x=np.zeros(3))
    Path("arrays").mkdir()
    np.save("arrays/x_train.npy", np.zeros(3))
    of_arrays = ["--data", "ImageArrayDataModule"]
    assert settle_arguments("finetune", [place, "--epochs", "5"]) == [
        "--config", RECIPE, *of_arrays, "--data.augment", "basic", "--data.root", place, "--trainer.max_epochs", "5"
    ]  # fmt: skip
    assert settle_arguments("fit", [place, "--config", "own.yaml"]) == [
        "--config", "own.yaml", *of_arrays, "--data.root", place
    ]  # fmt: skip
    (tmp_path / "arrays/ant").mkdir()
    assert settle_arguments("fit", ["arrays"]) == ["--config", RECIPE, "--data.root", "arrays"]


def test_folder_of_photos_is_that_of_a_config_which_may_name_no_data():
    assert settle_arguments("fit", ["P", "--config", "quickstart"]) == ["--config", "quickstart", "--data.root", "P"]
    assert settle_arguments("fit", ["P", "--config", "own.yaml"]) == [
        "--config", "own.yaml", "--data", "ImageFolderDataModule", "--data.root", "P"
    ]  # fmt: skip


def test_folder_below_the_shared_one_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_FT_DATA", str(tmp_path / "P"))
    assert "train" in settle_arguments("fit", ["train", "--epochs", "1"])


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["My", "Photos"], "My Photos: quote a path that has spaces: lit-ft fit 'My Photos'"),
        (["Your", "Photos"], "Your: follows no option; quote a path that has spaces, as 'Your Photos'"),
        (
            ["--data.root", "My", "Photos"],
            "Photos: follows no option; quote a path that has spaces: --data.root 'My Ph",
        ),
        (["--data.predict", "My", "Photos"], "Photos: follows no option; quote a path that has spaces: --data.predict"),
        (["P/train", "P/val"], "P/train and 1 more: one folder is taken; give P"),
        (["P", "P"], "P: is given 2 times; give it once"),
        (["P", "own.yaml"], "P and 1 more: one folder is taken; give the folder that has them in it"),
        (["P", "vgg16"], "vgg16: without the name of an option; give --model.backbone vgg16"),
        (["P", "--seed", "1", "Q"], "P, Q: one folder is taken; leave the others out, or name their options"),
        (["P", "--data.root", "P"], "P: --data.root names the photos already; leave one of them out"),
        (["own.yaml"], "own.yaml: without the name of an option; give --config own.yaml"),
        (["quickstart"], "quickstart: without the name of an option; give --config quickstart"),
        (
            ["a.ckpt"],
            "a.ckpt: without the name of an option; give --ckpt_path a.ckpt to resume, or --model.weights a.ckpt",
        ),
        (["a.py"], "a.py: a Python script; run it with python"),
        (["plan"], "plan: a second command; one is run at a time, as lit-ft plan"),
        (["5"], "5: follows no option; each value needs one, as in --epochs 3"),
        (
            ["--model.head.hidden", "64", "32"],
            "32: follows no option; a list is one argument, as --model.head.hidden [64,3",
        ),
        (["P", "epochs=5"], "epochs: an option begins with two dashes; give --epochs 5"),
        (["--data.cache", "None"], "--data.cache: None is of Python; give null"),
    ],
)
def test_word_that_is_no_folder_of_photos_is_told(args, line):
    with pytest.raises(UserError) as refused:
        settle_arguments("fit", args)
    text = refused.value.args[0].replace("`--", "").replace("`", "")
    assert text.startswith(line.replace("--", "")) or text.replace("--", "").startswith(line.replace("--", ""))


def test_evaluation_has_its_checkpoint_first_and_takes_no_folder():
    assert put_word_first(settle_arguments("test", ["--seed", "1", "RUN", "--config", "a"])) == [
        "RUN", "--config", "a", "--seed_everything", "1"
    ]  # fmt: skip
    assert settle_arguments("validate", ["P"]) == ["P"]


def test_value_is_that_of_its_option_alone():
    given = split_arguments(["--help", "P", "--a=b", "c", "--d", "--e", "-.5"])
    assert [(one.name, one.value) for one in given] == [
        ("--help", None), ("", "P"), ("--a", "b"), ("", "c"), ("--d", None), ("--e", "-.5")
    ]  # fmt: skip


def test_run_that_is_resumed_gives_its_config_unless_there_is_another(tmp_path):
    config = tmp_path / "run" / "config.yaml"
    resume = ["--resume", str(tmp_path / "run")]
    assert settle_arguments("fit", resume) == resume
    config.parent.mkdir()
    config.write_text("{}")
    assert settle_arguments("fit", resume) == ["--config", str(config), *resume]
    assert settle_arguments("fit", ["--config", "a.yaml", *resume]) == ["--config", "a.yaml", *resume]
    assert settle_arguments("fit", ["--resume", "auto"]) == ["--resume", "auto"]
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    settled = settle_arguments("finetune", [str(tmp_path / "photos"), *resume])
    assert settled[:2] == ["--config", str(config)]
    assert settled[settled.index("--data.root") + 1] == str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("args", "typed"),
    [
        (["--checkpoint", "RUN", "--photos", "P"], "RUN P"),
        (["--ckpt_path=RUN", "--data", "My Photos"], "RUN 'My Photos'"),
        (["--model", "RUN", "P"], "RUN P"),
        (["--ckpt_path", "RUN"], "RUN PHOTOS"),
        (["--ckpt_path", "RUN", "--data.predict", "P"], "RUN P"),
        (["--weights", "RUN/checkpoints/best.ckpt", "--source", "P"], "RUN/checkpoints/best.ckpt P"),
    ],
)
def test_run_and_photos_that_options_name_are_answered_with_the_command(args, typed):
    Path("RUN/checkpoints").mkdir(parents=True)
    Path("RUN/checkpoints/best.ckpt").touch()
    with pytest.raises(UserError, match=f"run and photos are no options here; type lit-ft predict {typed}$"):
        settle_arguments("predict", args)
    assert settle_arguments("predict", ["--config", "own.yaml", "--ckpt_path", "RUN"])[-1] == "RUN"
    assert settle_arguments("validate", ["--ckpt_path", "RUN"])[-1] == "RUN"
    by_config = ["--ckpt_path", "RUN/checkpoints/best.ckpt", "--data.predict", "P"]
    assert settle_arguments("predict", by_config) == by_config
