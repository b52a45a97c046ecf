"""The config and the split saved in the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from lit_ft.errors import refuse_unwritable
from lit_ft.runs import Run, find_run
from lit_ft.training.run_options import run_options


class SaveConfig(SaveConfigCallback):
    """Saves a config that any command takes, so without the options of this one command."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        config = config.clone()
        for key in ("ckpt_path", "weights_only", "verbose", "return_predictions"):
            config.pop(key, None)
        super().__init__(parser, config, **kwargs)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves, unless this is the folder of an earlier run, whose config stays what it was."""
        # Now, as it asks all ranks, and `save_config` is called on the first alone.
        self._run = find_run(trainer) or Run(Path("."))
        self.already_saved |= trainer.strategy.broadcast(self._run.config.is_file())
        super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the options of the run, for one that resumes it."""
        checkpoint["run_options"] = run_options(self.config.as_dict())

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Also saves which image is in which split, where the data module can write it."""
        write_split = getattr(cast(Any, trainer).datamodule, "write_split", None)
        if stage == "fit" and write_split is not None:
            with refuse_unwritable(self._run.split_table):
                write_split(self._run.split_table)
