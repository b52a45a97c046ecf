"""User errors, and whose fault an exception is; this file stands for the user's own code."""

import errno
import os
import sys
import traceback
from importlib import metadata

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.imports import RequirementCache

from lit_ft.data import DigitsDataModule
from lit_ft.data.tables import tables
from lit_ft.errors import (
    UserError,
    check_torchvision,
    find_full_disk,
    find_user_error,
    find_user_packages,
    is_from_user_code,
    iterate_causes,
    nearest,
    printable,
    refuse_unwritable,
    unknown,
)
from lit_ft.evaluation import prediction_files
from lit_ft.model.module import FineTuneModule


def pretend(monkeypatch, torch, torchvision, requires):
    versions = {"torch": torch, "torchvision": torchvision}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    monkeypatch.setattr(metadata, "requires", lambda _: requires)


def test_nearest_is_ordered_and_limited():
    assert nearest("resnet5", ["vgg16", "resnet152", "resnet50", "resnet101"], most=2) == ["resnet50", "resnet152"]
    assert nearest("zzz", ["vgg16"]) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("stage", "layer5", ["layer4"]), "unknown stage 'layer5'; nearest: layer4 (choose from layer4)"),
        (("stage", "zzz", ["a", "b"], "--key"), "--key: unknown stage 'zzz' (choose from a, b)"),
        (("tag", "zzz", [f"x{i}" for i in range(13)]), "unknown tag 'zzz'"),
        (("tag", "zzz", list("abcdefghijkl")), "unknown tag 'zzz' (choose from a, b, c, d, e, f, g, h, i, j, k, l)"),
        (("tag", "x", []), "unknown tag 'x'"),
    ],
)
def test_unknown_names_what_was_given_and_lists_short_choices(arguments, text):
    assert str(unknown(*arguments)) == text
    assert isinstance(unknown(*arguments), UserError)


def test_torchvision_that_belongs_to_torch_passes():
    check_torchvision()


@pytest.mark.parametrize("pin", ["torch==2.8.0", "torch (==2.8.0)", "torch == 2.8.0 ; python_version > '3'"])
def test_torchvision_for_another_torch_names_both_and_the_pair_to_install(monkeypatch, pin):
    pretend(monkeypatch, "2.9.1+cpu", "0.23.0+cu126", ["numpy", "torchmetrics==1.0", pin])
    with pytest.raises(UserError) as caught:
        check_torchvision()
    assert str(caught.value) == (
        "torch 2.9.1+cpu and torchvision 0.23.0+cu126 do not belong together: torchvision 0.23.0+cu126 is built for "
        "torch 2.8.0; run: pip install --force-reinstall torch==2.8.0 torchvision==0.23.0"
    )


def test_local_part_of_the_version_does_not_matter(monkeypatch):
    pretend(monkeypatch, "2.8.0+cu126", "0.23.0", ["torch==2.8.0"])
    check_torchvision()


class Breaks:
    """An import hook that fails as torchvision does where its operators are missing."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise self.error


@pytest.mark.parametrize("requires", [["torch==2.8.0"], None])
def test_torchvision_that_cannot_be_imported_though_versions_match(monkeypatch, requires):
    pretend(monkeypatch, "2.8.0+cpu", "0.23.0", requires)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Breaks(RuntimeError("operator torchvision::nms does not exist"))])
    with pytest.raises(
        UserError, match=r"^torch 2\.8\.0\+cpu .* install --force-reinstall torch==2\.8\.0 torchvision==0\.23\.0$"
    ):
        check_torchvision()


def test_import_that_fails_for_another_reason_is_not_blamed_on_the_pair(monkeypatch):
    pretend(monkeypatch, "2.8.0", "0.23.0", ["torch==2.8.0"])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Breaks(ImportError("No module named 'PIL'"))])
    with pytest.raises(ImportError, match="PIL"):
        check_torchvision()


def test_missing_package_is_named(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(UserError, match=r"^torch is not installed; run: pip install torch torchvision$"):
        check_torchvision()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ant bee", "ant bee"),
        ("caf\u00e9 \u87fb \U0001f41c\u00a0", "caf\u00e9 \u87fb \U0001f41c\u00a0"),
        ("\U0001f469\u200d\U0001f52c", "\U0001f469\u200d\U0001f52c"),  # one sign of two
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("a\r\tb\n", r"a\r\tb\n"),
        ("\u202ecod.exe\u2066\u200f\ufeff\u2028", r"\u202ecod.exe\u2066\u200f\ufeff\u2028"),
        ("\U000e0041", r"\U000e0041"),  # a tag, which shows nothing
        ("\udcff.png", r"\udcff.png"),
    ],
)
def test_printable_spells_out_what_acts_on_a_terminal_or_hides(text, shown):
    assert printable(text) == shown
    shown.encode()  # for a terminal, also what is no text


def test_printable_keeps_our_own_line_breaks_and_no_others():
    assert printable("one\ntwo\r\x1b[1A", lines=True) == "one\ntwo\\r\\x1b[1A"


class InACircle(Callback):
    def on_train_start(self, trainer, pl_module):
        try:
            int("x")
        except ValueError as error:
            raise error from error


class Fails(Callback):
    def on_fit_start(self, trainer, pl_module):
        raise ValueError("of my own")


class FailsBehindAMistake(Callback):
    def on_validation_start(self, trainer, pl_module):
        try:
            FineTuneModule("resnet5")
        except UserError as error:
            raise RuntimeError("of my own") from error


class Refuses(Callback):
    def on_fit_end(self, trainer, pl_module):
        try:
            self.of_its_own()
        except KeyError as error:
            raise UserError("--x: written by my own") from error

    def of_its_own(self):
        raise KeyError("x")


class FailsInLibrary(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        torch.zeros(2).view(3)


class FailingData(DigitsDataModule):
    def __init__(self):
        super().__init__()
        raise ValueError("of my own")


class FailingSetup(DigitsDataModule):
    def setup(self, stage=None):
        raise ValueError("of my own")


class FailingModule(FineTuneModule):
    def configure_optimizers(self):
        raise TypeError("of my own")


class WrongOptions(DigitsDataModule):
    def __init__(self):
        super().__init__(shots=-1)


def raised(error, *causes):
    """The exception as it was caught, from here, with what it came of."""
    try:
        raise error from (raised(*causes) if causes else None)
    except type(error) as caught:
        return caught


def of_a_library(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        # As where only frames behind the call are looked at.
        return error.with_traceback(error.__traceback__.tb_next)


def places(error):
    """The functions of this file that an exception, or one that it came of, went through."""
    frames = [frame for link in iterate_causes(error) for frame in traceback.extract_tb(link.__traceback__)]
    return {frame.name for frame in frames if frame.filename == __file__}


OWN = {
    "on_train_start": ["--trainer.callbacks+", "test_errors.InACircle"],
    "on_fit_start": ["--trainer.callbacks+", "test_errors.Fails"],
    "on_validation_start": ["--trainer.callbacks+", "test_errors.FailsBehindAMistake"],
    "on_train_epoch_start": ["--trainer.callbacks+", "test_errors.FailsInLibrary"],
    "__init__": ["--data", "test_errors.FailingData"],
    "setup": ["--data", "test_errors.FailingSetup"],
    "configure_optimizers": ["--model", "test_errors.FailingModule", "--model.backbone", "mnist_cnn"],
}


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
@pytest.mark.parametrize("place", OWN)
def test_fault_of_own_code_keeps_its_traceback(lit_ft, place, debug):
    with pytest.raises(Exception, match=r"of my own|invalid literal|shape") as caught:
        lit_ft("fit", "--trainer.max_epochs", 1, "--unfreeze.strategy", "full", *OWN[place], *debug)
    assert not isinstance(caught.value, UserError)
    assert place in places(caught.value)


def test_mistake_that_own_code_hands_on_is_told_in_one_line(refused):
    assert "--data.shots: -1 is less than 1" in refused("fit", "--data", "test_errors.WrongOptions")


def test_debug_shows_where_a_mistake_came_from(lit_ft):
    with pytest.raises(UserError, match="shots") as caught:
        lit_ft("fit", "--data", "test_errors.WrongOptions", "--debug")
    assert "__init__" in places(caught.value)
    assert "super().__init__(shots=-1)" in "".join(traceback.format_exception(caught.value))


@pytest.mark.long
def test_debug_shows_where_a_mistake_came_from_that_was_raised_as_it_is(lit_ft):
    with pytest.raises(UserError, match="written by my own") as caught:
        lit_ft("fit", "--trainer.callbacks+", "test_errors.Refuses", "--debug")
    assert {"on_fit_end", "of_its_own"} <= places(caught.value)


def test_module_that_cannot_be_imported_for_its_own_fault_keeps_its_traceback(lit_ft, tmp_path, monkeypatch):
    (tmp_path / "with_a_fault.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Exception, match="no_such_module_anywhere") as caught:
        lit_ft("fit", "--data", "with_a_fault.Data")
    assert 'with_a_fault.py", line 1' in "".join(traceback.format_exception(caught.value))


def test_causes_are_each_given_once_also_in_a_circle():
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__context__ = two, one
    assert list(iterate_causes(one)) == [one, two]
    one.__cause__ = one
    assert list(iterate_causes(one)) == [one]
    assert find_user_error(one) is None
    assert list(iterate_causes(None)) == []


def test_user_error_is_found_behind_what_libraries_made_of_it():
    mistake = UserError("--x: wrong")
    wrapped = ValueError("Problem with given class_path")
    wrapped.__context__ = mistake
    assert find_user_error(wrapped) is mistake
    assert find_user_error(raised(ValueError("mine"), mistake)) is None  # as it was raised in this file


def test_files_of_the_user_are_those_of_no_package():
    assert is_from_user_code(raised(ValueError("mine")))
    assert is_from_user_code(raised(UserError("told"), ValueError("mine")))
    library = of_a_library(torch.nn.Linear(2, 2), torch.zeros(3))
    assert not is_from_user_code(library)
    assert is_from_user_code(library, {"torch"})  # were it the user's own
    assert not is_from_user_code(of_a_library(DigitsDataModule, -1))
    assert not is_from_user_code(ValueError("never raised"))


def test_worker_hands_a_traceback_on_as_text():
    of_worker = 'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  File "{}", line 3, in x\n'
    assert is_from_user_code(ValueError(of_worker.format(__file__)))
    for other in (torch.__file__, "<string>", "yaml/_yaml.pyx"):  # the latter as Cython has it
        assert not is_from_user_code(ValueError(of_worker.format(other)))


def test_packages_of_a_config_are_those_of_its_class_paths():
    config = {
        "model": {"class_path": "mine.models.Net", "init_args": {"head": [{"class_path": "ours.Head"}]}},
        "data": {"class_path": "lit_ft.data.DigitsDataModule"},
        "trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}, {"class_path": "Timer"}]},
    }
    assert find_user_packages(config) == {"mine", "ours"}
    config["data"]["init_args"] = {"dataset": "theirs.data.Set"}
    assert find_user_packages(config) == {"mine", "ours", "theirs"}
    config["data"]["init_args"] = {"dataset": "FashionMNIST"}
    assert find_user_packages(config) == {"mine", "ours"}


def test_logger_that_cannot_be_made_is_told_with_the_reason(refused, monkeypatch):
    missing = RequirementCache("no-such-package>=1.0")
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", missing)
    for command in ("fit", "plan"):
        line = refused(command, "--trainer.logger", "WandbLogger")
        assert "WandbLogger: Requirement 'no-such-package>=1.0' not met" in line


def test_full_disk_is_found_behind_what_came_of_it():
    full = OSError(errno.ENOSPC, "No space left on device")
    assert find_full_disk(raised(RuntimeError("writer"), full)) is full
    assert find_full_disk(OSError(errno.EACCES, "Permission denied")) is None


def test_file_that_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"split\.csv: cannot be written \(No space left on device\)$"),
        refuse_unwritable(tmp_path / "split.csv"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def largest_file():
    """Lets no file grow beyond a size, as on a disk that is full; gives the function that sets it."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoint_for_which_there_is_no_room_is_told_with_those_that_are_whole(refused, largest_file):
    largest_file(5_000_000)  # one of epoch 0 has 2.8 MB, those after it what AdamW keeps of all parameters, too
    folder = "logs/run/version_0/checkpoints"
    assert refused("fit", "--trainer.max_epochs", 3, "--unfreeze.head_fit", "trained") == (
        f"lit-ft: {folder}: last.ckpt cannot be written (File too large); intact: best.ckpt, last.ckpt; make room, "
        f"and resume from {folder}/last.ckpt"
    )
    assert torch.load(f"{folder}/last.ckpt", weights_only=True)["epoch"] == 0


def test_disk_that_is_full_when_tensorboard_writes_is_told_in_one_line(refused, largest_file):
    largest_file(8192)
    given = ("--trainer.max_epochs", 9, "--unfreeze.head_fit", "trained", "--report.num_images", 0)
    given += ("--trainer.log_every_n_steps", 1, "--checkpoint", "null")  # else the pictures or a checkpoint are first
    assert refused("fit", *given) == (
        "lit-ft: logs/run/version_0: cannot be written to (File too large); no checkpoint was written before; make "
        "room, and start again"
    )


@pytest.mark.long
def test_probe_alone_is_nothing_to_resume_from(refused, largest_file):
    largest_file(3_500_000)  # that of the probe has 2.8 MB
    line = refused("fit", "--trainer.max_epochs", 2)
    assert line.endswith("(File too large); intact: probe.ckpt; make room, and start again")


@pytest.mark.parametrize("file", ["split.csv", "out.csv"])
def test_table_for_which_there_is_no_room_is_named(run, refused, photo_root, monkeypatch, file):
    options = ["--model.backbone", "squeezenet1_1", "--model.weights", "null", "--model.input.size", 64]
    options += ["--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.num_workers", 0]
    options += ["--trainer.max_epochs", 1, "--unfreeze", "null"]
    writer = {"split.csv": tables, "out.csv": prediction_files}[file]
    command = ["fit", *options]
    if file == "out.csv":
        run("fit", *options)
        command = ["predict", *options[6:10], "--ckpt_path", "logs/run/version_0/checkpoints/best.ckpt"]
        command += ["--predictions.file", "out.csv"]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(writer.csv, "writer", full)
        assert refused(*command).endswith(f"{file}: cannot be written (No space left on device)")


def test_notebook_shows_the_line_of_a_user_error_alone(capsys):
    """As IPython does, which prints what this method returns in the place of a traceback."""
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shell.run_cell("from lit_ft.errors import UserError\nraise UserError('`data.root`: no/such:\\n not there')")
    assert capsys.readouterr().out.strip() == "UserError: data.root: no/such: not there"
