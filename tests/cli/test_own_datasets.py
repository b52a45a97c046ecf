"""Data sets of the user's own that fail, by the command line."""

import importlib
import re
import sys
from pathlib import Path

import pytest

OWN = '''
import os
import sys
from pathlib import Path

import numpy as np

from lit_ft.errors import UserError


class Set:
    """Without a fault: 24 images to train on, and 8 to test."""

    def __init__(self, train=True):
        self.train, self.number = train, 24 if train else 8

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if index == 3 and self.train:
            self.fail()
        return np.full((28, 28, 3), 100 * (index % 2) + index, np.uint8), index % 2

    def fail(self):
        pass


class Item(Set):
    def fail(self):
        raise ValueError("no such label")


class Silent(Set):
    def fail(self):
        assert self.train is None


class Acting(Set):
    def fail(self):
        raise ValueError("one\\ntwo \\x1b[2J\\u202e")


class Exits(Set):
    def fail(self):
        sys.exit(0)


class Mutual(Set):
    def fail(self):
        self.again()

    def again(self):
        self.fail()


class Tells(Set):
    def fail(self):
        raise UserError("`data.root`: told by my own")


class Interrupts(Set):
    def fail(self):
        raise KeyboardInterrupt


class Made(Set):
    def __init__(self, train=True):
        super().__init__(train)
        if not train:
            {}["table"]


class Length(Set):
    def __len__(self):
        raise OSError("no such table")


class Worded(Set):
    def __len__(self):
        return "24"


class Labels(Set):
    @property
    def targets(self):
        return [1 / 0]


class Target:
    def __array__(self, *args, **options):
        raise ValueError("no number")


class Odd(Set):
    def __getitem__(self, index):
        return super().__getitem__(index)[0], Target()


class ByName(Set):
    def __init__(self, split):
        assert split in ("learn", "check")


class Late(Set):
    """Item 5 is first read in training, and can be read as often as the file says."""

    def __init__(self, train=True):
        super().__init__(train)
        self.targets = [index % 2 for index in range(self.number)]

    def __getitem__(self, index):
        left = Path("left.txt")
        if index == 5 and self.train:
            left.write_text(left.read_text()[1:])
            if not left.read_text():
                raise ValueError("too often")
        return super().__getitem__(index)
'''

DATA = ("--data", "ImageDatasetDataModule", "--data.num_workers", 0, "--data.dataset")
QUICK = (
    "--model.backbone",
    "mnist_cnn",
    "--model.weights",
    "null",
    "--unfreeze",
    "null",
    "--trainer.accelerator",
    "cpu",
)


@pytest.fixture
def own(monkeypatch, tmp_path):
    """Writes the module of the user's own."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_sets", raising=False)

    def write(text=OWN):
        (tmp_path / "my_sets.py").write_text(text)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("my_sets", None)


@pytest.fixture
def fail(lit_ft, own):
    """Runs a command on a class, which must end in one line: the traceback above it, and the line."""
    own()

    def command(name, cls, *options):
        code, _, err = lit_ft(name, *DATA, f"my_sets.{cls}", *QUICK, *options)
        assert code == 2
        assert [line for line in err if line.startswith("lit-ft:")] == err[-1:]
        return err[:-1], err[-1].removeprefix("lit-ft: --data.dataset: ")

    return command


FAULTS = {
    "Item": ("my_sets.Item raised ValueError at item 3 of train: no such label", ["__getitem__", "fail"]),
    "Silent": ("my_sets.Silent raised AssertionError at item 3 of train", ["__getitem__", "fail"]),
    "Acting": (r"my_sets.Acting raised ValueError at item 3 of train: one two \x1b[2J\u202e", ["__getitem__", "fail"]),
    "Exits": ("my_sets.Exits raised SystemExit at item 3 of train: 0", ["__getitem__", "fail"]),
    "Made": ("my_sets.Made raised KeyError at __init__ of test: 'table'", ["__init__"]),
    "Length": ("my_sets.Length raised OSError at __len__ of train: no such table", ["__len__"]),
    "Labels": ("my_sets.Labels raised ZeroDivisionError at targets of train: division by zero", ["targets"]),
    "ByName": (
        "ByName has no split called train (AssertionError); give the arguments of each: --data.split_args '{train: "
        "{split: NAME}}'",
        ["__init__"],
    ),
}


def frames(trace):
    """The functions of a traceback, all of which must be of the user's file."""
    found = [re.match(r'  File "(.+)", line \d+, in (\w+)', line) for line in trace]
    assert {Path(match[1]).name for match in found if match} == {"my_sets.py"}
    return [match[2] for match in found if match]


@pytest.mark.parametrize("cls", FAULTS)
def test_own_class_that_raises_ends_in_its_traceback_and_one_line(fail, cls):
    trace, line = fail("plan", cls)
    assert (line, frames(trace)) == FAULTS[cls]
    assert trace[0] == "Traceback (most recent call last):"
    assert "\x1b" not in "".join(trace)


def test_own_class_that_recurses_without_end_has_a_traceback_that_can_be_read(fail):
    trace, line = fail("plan", "Mutual")
    assert len(trace) == 61
    assert line.startswith("my_sets.Mutual raised RecursionError at item 3 of train: maximum recursion depth exceeded")


def test_targets_of_own_types_that_fail_are_told_by_their_item(fail):
    trace, line = fail("plan", "Odd")
    assert "in __array__" in "".join(trace)
    assert line == "my_sets.Odd raised ValueError at item 0 of train: no number"


def test_own_class_with_a_length_that_is_none_is_told(fail):
    line = "__len__ of Worded (train) cannot be read ('str' object cannot be interpreted as an integer)"
    assert fail("plan", "Worded") == ([], line)


def test_user_error_and_interrupt_of_an_own_class_stay_as_they_are(refused, lit_ft, own):
    own()
    assert refused("plan", *DATA, "my_sets.Tells", *QUICK) == "lit-ft: --data.root: told by my own"
    assert lit_ft("plan", *DATA, "my_sets.Interrupts", *QUICK)[0] == 130


@pytest.mark.parametrize(
    ("text", "line", "shown"),
    [
        ("1 / 0", "raised ZeroDivisionError at the import of my_sets: division by zero", "1 / 0"),
        (
            "import nowhere_at_all",
            "raised ModuleNotFoundError at the import of my_sets: No module named 'no",
            "import",
        ),
        ("def f(:", "raised SyntaxError at the import of my_sets: invalid syntax (my_sets.py, line 1)", "def f(:"),
        ("raise SystemExit", "raised SystemExit at the import of my_sets", "raise SystemExit"),
    ],
)
def test_module_that_cannot_be_imported_ends_in_its_traceback_and_one_line(lit_ft, own, text, line, shown):
    own(text)
    code, _, err = lit_ft("plan", *DATA, "my_sets.Set", *QUICK)
    assert code == 2
    assert err[-1].startswith(f"lit-ft: --data.dataset: my_sets.Set {line}")
    assert any(shown in one for one in err[:-1])
    assert 'my_sets.py", line 1' in next(one for one in err if "File" in one)  # and nothing above it


@pytest.mark.parametrize("workers", [0, 1])
def test_item_that_raises_in_an_epoch_is_told_with_how_to_resume(fail, workers):
    options = ("--trainer.max_epochs", 4, "--data.num_workers", workers, "--data.batch_size", 8)
    Path("left.txt").write_text("...")
    trace, line = fail("fit", "Late", *options)
    last = "logs/run/version_0/checkpoints/last.ckpt"
    assert line == (
        "my_sets.Late raised ValueError at item 5 of train: too often; to resume: the same command with --ckpt_path "
        f"{last}"
    )
    assert frames(trace) == ["__getitem__"]
    assert Path(last).is_file()


def test_check_and_probe_end_in_the_traceback_and_one_line(fail):
    assert frames(fail("check", "Item")[0]) == ["__getitem__", "fail"]
    for left in (".", ".."):  # as images are read, and as the features of a backbone are
        Path("left.txt").write_text(left)
        trace, line = fail("probe", "Late", "--folder", "null")
        assert (frames(trace), line) == (
            ["__getitem__"],
            "my_sets.Late raised ValueError at item 5 of train: too often",
        )


@pytest.mark.slow
def test_search_ends_with_an_own_class_that_raises(fail):
    Path("space.yaml").write_text("space: {model.lr: {float: [0.001, 0.01]}}")
    Path("left.txt").write_text("....")  # to the second epoch of the second trial
    options = ("--trainer.max_epochs", 2, "--tune", "space.yaml", "--tune.trials", 3, "--data.batch_size", 8)
    assert fail("tune", "Late", *options)[1] == "my_sets.Late raised ValueError at item 5 of train: too often"
