"""The config that a run saves in its folder, and in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from lit_ft.assets import replace_atomically
from lit_ft.cli.commands import METHOD_OPTIONS
from lit_ft.errors import refuse_unwritable
from lit_ft.runs import Run, find_run
from lit_ft.training.run_options import run_options


class SaveConfig(SaveConfigCallback):
    """Saves a config that any command takes, so without the options of this one command, and the split."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        config = config.clone()
        self._replaces = False
        for key in METHOD_OPTIONS:
            config.pop(key, None)
        super().__init__(parser, config, save_to_log_dir=False, **kwargs)  # else it is validated once more, for long

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves, unless this is the folder of an earlier run, whose config stays until another fit begins there."""
        # Now, as it asks all ranks, and `save_config` is called on the first alone.
        self._run = find_run(trainer) or Run(Path("."))
        is_there = trainer.strategy.broadcast(self._run.config.is_file())
        self._replaces = is_there and not self.already_saved and stage == "fit"
        self.already_saved |= is_there
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves in place of the config of an earlier run in the folder, which the user has chosen for this one, too."""
        if self._replaces and trainer.ckpt_path is None:
            self._replaces = self.already_saved = False
            super().setup(trainer, pl_module, "fit")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the options of the run, for one that resumes it."""
        checkpoint["run_options"] = run_options(self.config.as_dict())

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves the config, as it was parsed, and which image is in which split, where the data module can write it."""
        with refuse_unwritable(self._run.config):
            self._run.folder.mkdir(parents=True, exist_ok=True)
            with replace_atomically(self._run.config) as unfinished:
                content = self.parser.dump(self.config, skip_unset=False, skip_validation=True)
                unfinished.write_text(content, encoding="utf-8")
        write_split = getattr(cast(Any, trainer).datamodule, "write_split", None)
        if stage == "fit" and write_split is not None:
            with refuse_unwritable(self._run.split_table):
                write_split(self._run.split_table)
