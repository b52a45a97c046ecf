"""The run that a command goes on with, as a person names it."""

import pytest
from jsonargparse import Namespace

from lit_ft.cli.config.resumed_run import describe_command, find_earlier_run
from lit_ft.errors import UserError
from lit_ft.runs import Run


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """An ordinary run and a cross-validation."""
    monkeypatch.chdir(tmp_path)
    for name, folders in (("plain", ["checkpoints"]), ("folded", ["fold_1", "fold_2"])):
        for folder in folders:
            (tmp_path / "logs" / name / folder).mkdir(parents=True)
        Run(tmp_path / "logs" / name).config.touch()
    return tmp_path / "logs"


def find(logs, resume, has_folds=False, ckpt_path=None):
    return find_earlier_run(Namespace(resume=resume, ckpt_path=ckpt_path), logs, "finetune", has_folds)


def test_run_is_found_by_its_folder(logs):
    assert find(logs, "logs/plain") == Run(logs / "plain")
    assert find(logs, "logs/folded", has_folds=True) == Run(logs / "folded")
    assert find(logs, None) is None
    assert find(logs, "auto") is None  # without a checkpoint
    assert find(logs, "auto", has_folds=True) == Run(logs / "folded")


@pytest.mark.parametrize(
    ("resume", "has_folds", "message"),
    [
        ("nix", False, "nix is no folder; give that of a run, such as logs/NAME/version_0, or auto"),
        ("logs", True, "logs is not the folder of a run; give that of a run, such as logs/NAME/version_0, or auto"),
        ("logs/folded", False, "logs/folded is a cross-validation; give its data.folds, without data.fold, too"),
        ("logs/plain", True, "logs/plain is a run without folds; leave data.folds out, or name another folder"),
    ],
)
def test_folder_that_is_no_such_run_is_refused(logs, resume, has_folds, message):
    with pytest.raises(UserError) as caught:
        find(logs, resume, has_folds)
    assert str(caught.value) == f"resume: {message}"


def test_checkpoint_and_run_are_not_both_given(logs):
    with pytest.raises(UserError, match=r"^resume: finds the checkpoint itself; leave it or ckpt_path out$"):
        find(logs, "auto", ckpt_path="last.ckpt")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("postgresql://me:se/c@r:et@host/studies", "postgresql://me:...@host/studies"),
        (
            "postgresql://host/studies?user=me&password=secret&x=1",
            "'postgresql://host/studies?user=me&password=...&x=1'",
        ),
        ("http://host:80/a", "http://host:80/a"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("lp_ft", "lp_ft"),
    ],
)
def test_command_is_kept_without_passwords(given, kept):
    assert describe_command("tune", ["--a", given]) == f"tune --a {kept}"
