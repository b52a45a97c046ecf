"""State of a fit beside weights and loops: its seed, its images, and the position of its schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lit_ft.data.fingerprint import Fingerprint, difference
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import UserError
from lit_ft.model.checkpoint.content import all_hyperparameters
from lit_ft.optim.run_length import RunLength


@dataclass
class FitState:
    """The state that a checkpoint adds, so that a resumed fit ends as an uninterrupted one.

    Args:
        seed: The seed of the run, from which that of each step follows.
        measured: The validation metrics, as the checkpoint was written, that its schedule waits for.
        resumed: The schedule in the checkpoint from which the fit resumes.
    """

    seed: int | None = None
    measured: dict[str, float] = field(default_factory=dict)
    resumed: Mapping[str, Any] | None = None
    _images: Fingerprint | None = None

    def begin(self, trainer: Any) -> None:
        """Takes the seed from torch; a resume then replaces it by that of its checkpoint."""
        self.seed = trainer.strategy.broadcast(torch.initial_seed())
        self._images = None  # of an earlier fit

    def seed_step(self, module: Any, batch_idx: int) -> None:
        """Makes the random numbers of a step a function of its position, so that a resumed run draws the same."""
        position = [self.seed, module.current_epoch, batch_idx, module.global_rank]
        seed = int(np.random.SeedSequence(position).generate_state(1)[0])
        # Without a GPU torch.manual_seed would note at each step, with a stack trace, how to seed one that may come.
        (torch.default_generator if module.device.type == "cpu" else torch).manual_seed(seed)

    def save(self, checkpoint: dict[str, Any], trainer: Any) -> None:
        """Adds the state to a checkpoint."""
        monitors = {config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau}
        metrics = trainer.callback_metrics
        checkpoint["run_seed"] = self.seed
        checkpoint["images"] = self._fingerprint(trainer)
        checkpoint["epoch_steps"] = RunLength.of(trainer).epoch_steps
        checkpoint["measured"] = {str(key): float(metrics[key]) for key in monitors if key in metrics}

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Restores seed and metrics from a checkpoint."""
        self.seed = checkpoint.get("run_seed")
        self.measured = {str(key): float(value) for key, value in checkpoint.get("measured", {}).items()}

    def resume(self, checkpoint: Mapping[str, Any], trainer: Any, class_names: Sequence[str]) -> None:
        """Resumes a fit on the data of the checkpoint's run.

        Raises:
            UserError: If the classes or the images are others.
        """
        self._refuse_other_data(checkpoint, trainer, list(class_names))
        self.resumed = {key: checkpoint[key] for key in ("epoch_steps", "lr_schedulers") if key in checkpoint}

    def _fingerprint(self, trainer: Any) -> Fingerprint | None:
        """The fingerprint of the fit's images, if the data module has one; computed once."""
        data = getattr(trainer, "datamodule", None)
        if self._images is None and isinstance(data, ImageDataModule):
            self._images = data.fingerprint()
        return self._images

    def _refuse_other_data(self, checkpoint: Mapping[str, Any], trainer: Any, names: list[str]) -> None:
        saved, found = all_hyperparameters(checkpoint).get("classes"), None
        if saved not in (None, names):
            found = f"with the classes {saved}, not {names}"
        # Earlier versions saved no fingerprint.
        elif checkpoint.get("images") and (images := self._fingerprint(trainer)):
            found = difference(checkpoint["images"], images, names)
        if found is not None:
            raise UserError(
                f"`ckpt_path`: {trainer.ckpt_path} is of a run {found}; give the same data, or start from its weights "
                f"with `model.weights` {trainer.ckpt_path}"
            )
