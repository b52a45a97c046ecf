"""The run that a fit goes on with: which it is, and whether its options and images are the same."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_ft.console import format_path
from lit_ft.data.fingerprint import difference
from lit_ft.errors import UserError, hide_passwords
from lit_ft.model.checkpoint import hyper_parameters, read_checkpoint, saved_options
from lit_ft.model.input_bands import leave_out_bands
from lit_ft.model.photo_fit import settle_fit
from lit_ft.runs import Run
from lit_ft.training.handed_back import is_handed_back
from lit_ft.training.launch import is_restarted
from lit_ft.training.resume import find_run_of_job, find_run_to_resume
from lit_ft.training.run_options import MAY_DIFFER, RUN_ENDS, list_differences, refuse_other_options, run_options


def describe_command(command: str, args: Sequence[str]) -> str:
    """A command with its options, by which a run is found again; that of resuming is none of them.

    It is kept in the folder of the run, so without the passwords in its URLs.

    >>> describe_command("fit", ["--resume", "auto", "--name", "my run"])
    "fit --name 'my run'"
    >>> describe_command("tune", ["--tune.storage=postgresql://me:secret@host/studies"])
    'tune --tune.storage=postgresql://me:...@host/studies'
    """
    given = [hide_passwords(arg) for arg in args]
    while "--resume" in given:
        place = given.index("--resume")
        del given[place : place + 2]
    return shlex.join([command, *(one for one in given if not one.startswith("--resume="))])


def find_earlier_run(config: Namespace, folder: Path, command: str, has_folds: bool) -> Run | None:
    """The run to go on with, where the job was restarted or the user asks for it.

    Args:
        config: The config of the command.
        folder: The folder of the runs of its name.
        command: The command with its options, as of `describe_command`.
        has_folds: Whether it is a cross-validation.

    Raises:
        UserError: If the user names what is no such run.
    """
    asked = config["resume"]
    if asked and config["ckpt_path"] is not None:
        raise UserError("`resume`: finds the checkpoint itself; leave it or `ckpt_path` out")
    if asked not in (None, "auto"):
        return _read_named(Path(asked), has_folds)
    found = find_run_of_job(folder, command) if is_restarted() else None
    if found is None and asked:
        found = find_run_to_resume(folder, command, has_folds)
    return found


def _read_named(folder: Path, has_folds: bool) -> Run:
    run = Run(folder.expanduser().resolve())
    if not run.config.is_file():
        what = "not the folder of a run" if folder.is_dir() else "no folder"
        raise UserError(f"`resume`: {folder} is {what}; give that of a run, such as logs/NAME/version_0, or auto")
    if run.has_folds() and not has_folds:
        raise UserError(f"`resume`: {folder} is a cross-validation; give its `data.folds`, without `data.fold`, too")
    if has_folds and not run.has_folds():
        raise UserError(f"`resume`: {folder} is a run without folds; leave `data.folds` out, or name another folder")
    return run


def refuse_other_run(config: Namespace, command: str, model: Any, data: Any) -> None:
    """Refuses to resume from the checkpoint of another run, whose classes or options differ that must not."""
    path = config["ckpt_path"]
    if path is None or path == "hpc":
        return
    hparams = hyper_parameters(path, command, "")
    if is_handed_back(read_checkpoint(path)):
        last = Run(Path(path).parent.parent).last
        raise UserError(f"`ckpt_path`: {path} is what was handed back, not an epoch to go on from; give {last}")
    names = getattr(data, "class_names", None)
    if names is not None and list(names) != (earlier := hparams.get("classes")):
        raise UserError(f"`ckpt_path`: {path} is of a run with the classes {earlier}, not {list(names)}")
    refuse_other_options(path, *_list_options(path, config, model, data))


def _list_options(path: str, config: Namespace, model: Any, data: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the run that wrote a checkpoint, and those of a config, by their names."""
    settle_fit(model, data, is_fitted_on=True)  # as it was when the checkpoint was written
    hparams = hyper_parameters(path, "finetune", "")
    images = hparams.get("input") or {}
    if getattr(data, "sees_whole_images", False) and images.get("fit") == "crop":
        del images["fit"]  # by an earlier release, which did not record that such images are seen as a whole
    compared = leave_out_bands(hparams, model.hparams)
    then, now = ({f"model.{key}": value for key, value in options.items()} for options in compared)
    return {**saved_options(path), **then}, {**now, **run_options(config.as_dict())}


def refuse_other_folds(done: Run, config: Namespace, model: Any, data: Any) -> None:
    """Refuses to go on with a cross-validation of other options or images, by a fold that was trained before.

    All of its folds have the same number of epochs, too.

    Args:
        done: The run of that fold.
        config: The config of the fold that is to be trained.
        model: Its model.
        data: The data of the fold that was trained, as it is now.

    Raises:
        UserError: If they differ.
    """
    path = next((str(one) for one in (done.last, done.checkpoint("best")) if one.is_file()), None)
    if path is None:
        return
    then, now = _list_options(path, config, model, data)
    if others := list_differences(then, now, MAY_DIFFER - RUN_ENDS | {"data.fold"}):
        raise UserError(
            f"`resume`: {format_path(done.folder)} was trained with {'; '.join(others)}; give the same, or start "
            "afresh without `resume`"
        )
    data.setup()
    images = read_checkpoint(path).get("images")
    if images and (other := difference(images, data.fingerprint(), data.class_names)):
        raise UserError(
            f"`resume`: {format_path(done.folder)} was trained {other}; give the same data, or start afresh without "
            "`resume`"
        )
