"""Resuming a run: what must be as it was in the run that wrote the checkpoint."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from lit_ft.errors import UserError
from lit_ft.model.checkpoint import hyper_parameters, saved_options
from lit_ft.training.run_options import refuse_other_options, run_options


def refuse_other_run(config: Namespace, command: str, model: Any, data: Any) -> None:
    """Refuses to resume from the checkpoint of another run.

    Args:
        config: The config of the command.
        command: The command.
        model: The module.
        data: The data module.

    Raises:
        UserError: If classes or options differ that must not.
    """
    path = config["ckpt_path"]
    if path is None or path == "hpc":
        return
    hparams = hyper_parameters(path, command, "")
    names = getattr(data, "class_names", None)
    if names is not None and list(names) != (earlier := hparams.get("classes")):
        raise UserError(f"`ckpt_path`: {path} is of a run with the classes {earlier}, not {list(names)}")
    then, now = ({f"model.{key}": value for key, value in options.items()} for options in (hparams, model.hparams))
    refuse_other_options(path, {**saved_options(path), **then}, {**now, **run_options(config.as_dict())})
