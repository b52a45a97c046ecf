"""``lit-ft test FILE``: an exported file, measured on labelled images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_ft.cli.config.checkpoint import add_tested_data
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.cli.failures import quiet_command, raise_user_errors
from lit_ft.data.modules.arrays import ArrayDataModule
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.errors import UserError, find_user_packages, printable, refuse_unwritable
from lit_ft.export.evaluation import evaluate_file, name_file_results
from lit_ft.export.predictor import ExportedModel
from lit_ft.runs import Run
from lit_ft.tasks.classes import settle_classes

_FOLDER = "The folder that the results go to; null makes one here, of the names of the file and of the images."
_OVERWRITE = "Replace results that are there."
_OWN: dict[str, dict[str, Any]] = {
    "folder": {"type": str | None, "default": None, "help": _FOLDER},
    "overwrite": {"action": "store_true", "help": _OVERWRITE},
}


class FileTestCLI(ConfigCLI):
    """The options of a test of an exported file: those of its data, and where results go.

    Args:
        task: The task of the file, which is that of its data, unless it has its own.
        args: The options.
    """

    def __init__(self, task: str, args: Sequence[str]) -> None:
        self._task = task
        super().__init__("test", args, _OWN)

    def before_instantiate_classes(self) -> None:
        """Settles the task of the data; there is neither a model nor a trainer."""
        options = self.config["data"].get("init_args") or {}
        if "task" in options and options["task"] is None:
            options["task"] = self._task


def test_file(args: Sequence[str]) -> int:
    """Tests an exported file, which is the first of the arguments."""
    file, options = Path(args[0]).expanduser(), args[1:]
    _refuse_options(options)
    model = ExportedModel(file)
    with quiet_command():
        cli = FileTestCLI(model.task.name, add_tested_data(options, model.task.name, model.class_names))
        with raise_user_errors(find_user_packages(cli.config.as_dict())):
            data = _make_data(cli, model)
            results = Run(_choose_folder(cli.config["folder"], file, data))
            _refuse_target(results, name_file_results(data), cli.config["overwrite"])
            with refuse_unwritable(results.folder):
                evaluate_file(model, file, data, results)
    print(f"Results        {printable(os.path.join(results.folder, ''))}")
    return 0


def _refuse_options(options: Sequence[str]) -> None:
    """Raises `UserError` for an option that is for a checkpoint, as of its model or of a trainer."""
    for option in options:
        name = option.partition("=")[0]
        is_own = name.startswith(("--data", "-c")) or name.removeprefix("--") in ("config", "help", "-h", *_OWN)
        if name.startswith("-") and not is_own:
            raise UserError(f"{name}: is for a checkpoint, not an exported file; leave it out")


def _make_data(cli: ConfigCLI, model: ExportedModel) -> Any:
    data = cli.make_data()
    if not isinstance(data, PhotoDataModule | ArrayDataModule):
        raise UserError(f"`data`: {type(data).__name__} has neither files nor arrays; give ImageFolderDataModule")
    settle_classes(data, model.task.name, model.class_names)
    if model.reader is not None:
        if not isinstance(data, PhotoDataModule):
            raise UserError(f"`data`: the file takes raw values of bands, and {type(data).__name__} gives photos")
        data.bands = model.reader.bands
    data.setup("test")
    return data


def _choose_folder(given: str | None, file: Path, data: Any) -> Path:
    """The folder that is given, or one that is named by the file and the images."""
    return Path(given).expanduser() if given else Path(f"{file.name.replace('.', '_')}_{name_file_results(data)}")


def _refuse_target(run: Run, name: str, overwrite: bool) -> None:
    """Raises `UserError` for a folder that cannot be written, or has results that must not be replaced."""
    folder = run.folder.absolute()
    place = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"`folder`: nothing can be written in {place}; name another")
    if not overwrite and (run.metrics.exists() or run.result_table("predictions", name).exists()):
        raise UserError(f"`folder`: {run.folder} has results; name another folder, or to replace them: `--overwrite`")
