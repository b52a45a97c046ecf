"""The entry, in terminals and folders of other encodings."""

import json
import os
import subprocess
import sys

import pytest
from image_files import save_photo

ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # names of files count as ASCII, too
]


CHECK = ("check", "--data", "ImageFolderDataModule", "--data.root")


def check(root, *options, **variables):
    """In an interpreter of its own, as it takes the encodings from its environment when it starts."""
    command = [sys.executable, "-m", "lit_ft", *CHECK, root, *options]
    environment = {**os.environ, **variables}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(("猫", "müll")):
        for i in range(6):
            save_photo(tmp_path / "photos" / name / f"{i}.png", (200 * number, 30 * i, 0))
    return tmp_path / "photos"


@pytest.mark.long
@pytest.mark.parametrize("variables", [pytest.param(ASCII[0], marks=pytest.mark.slow), ASCII[1]])
def test_names_are_shown_in_a_terminal_that_has_no_such_characters(root, lit_ft, tmp_path, variables):
    lit_ft(*CHECK, root)  # the list of files is kept; names in it must not be those of another encoding
    (root / "猫" / "0.png").write_text("no image")
    done = check(root, "--folder", tmp_path / "found", **variables)
    assert (done.returncode, done.stderr) == (1, "")
    assert r"\u732b: 5 image(s)" in done.stdout
    told = json.loads((tmp_path / "found" / "check.json").read_text("utf-8", "surrogateescape"))
    assert told["counts"]["train"] == {"müll": 5, "猫": 5}


def test_argument_that_is_no_text_is_told(refused):
    line = "lit-ft: the argument b'x\\xff' is not in UTF-8; rename what it names"
    assert refused(*CHECK, os.fsdecode(b"x\xff")) == line
    done = check("猫", **ASCII[1])
    line = "lit-ft: the argument b'\\xe7\\x8c\\xab' is not in ASCII; set PYTHONUTF8=1\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.parametrize("command", [["finetune"], ["probe"], ["test"], ["fit", "--config"]])
def test_word_that_is_too_long_for_a_path_is_told_in_one_line(refused, command):
    assert "x" * 30 in refused(*command, "x" * 300)


def test_config_that_is_typed_and_too_long_for_a_path_is_read(refused):
    line = refused("fit", "--config", f"{{model: {{lrr: [{'0.001, ' * 50}]}}}}")
    assert line.startswith("lit-ft: --model.lrr: there is no such option; nearest: --model.lr")


@pytest.mark.long
def test_warnings_of_lightning_are_formatted_as_those_of_the_command_line(tmp_path):
    few = {"max_epochs": "1", "limit_train_batches": "1", "limit_val_batches": "0", "accelerator": "cpu"}
    options = [f"--trainer.{key}={value}" for key, value in {**few, "default_root_dir": str(tmp_path)}.items()]
    # In an interpreter of its own, as Lightning sets its format when it is loaded.
    command = [sys.executable, "-m", "lit_ft", "fit", "--unfreeze.strategy", "full", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "lit-ft: warning: `ModelCheckpoint(monitor='val/acc')` could not find" in done.stderr
    assert "model_checkpoint.py" not in done.stderr


@pytest.mark.long
def test_reader_that_wants_no_more_is_no_error():
    started = subprocess.Popen(
        [sys.executable, "-m", "lit_ft", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    started.stdout.close()  # before it prints, as `head` does after some lines
    _, err = started.communicate()
    assert (started.returncode, err) == (141, b"")
