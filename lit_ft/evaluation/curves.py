"""Curves of a run beside its losses and metrics: phases, learning rates, drift of the weights, and speed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import isclose
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from lit_ft.backbones.freezing import Staged
from lit_ft.data.loading.loader import Loader
from lit_ft.evaluation.drift import measure_change, measure_length
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.unfreezing.preconditions import is_replicated
from lit_ft.unfreezing.view import run_plan, run_starts, stage_rates


def phase_curves(trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
    """The number of the phase, as in the table of the plan, and the share of the parameters that train."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    trained = sum(num for num, trains in sizes if trains) / max(1, sum(num for num, _ in sizes))
    return {"phase/number": len(run_starts(trainer, module, trainer.current_epoch)), "phase/trained_share": trained}


def rate_curves(trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
    """The learning rate of each stage, 0 while it is frozen."""
    phase = run_plan(trainer, module).phases[len(run_starts(trainer, module, trainer.current_epoch)) - 1]
    rates = stage_rates(trainer).items()
    return {f"lr/{stage}": rate if stage in phase.trainable else 0.0 for stage, rate in rates}


class Drift:
    """The distance of the weights of each stage from the pretrained ones, by their norm: ``|w - w0| / |w0|``.

    The head is new, and left out. The first weights are kept on the CPU, of the stages that train in any phase.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        plan = run_plan(trainer, module)
        trained = {stage for phase in plan.phases for stage in phase.trainable}
        self._start: dict[str, list[Tensor]] = {}
        self._stages = list(plan.stages[:-1])
        if trainer.is_global_zero and is_replicated(trainer.strategy):
            for stage in self._stages:
                if stage in trained:
                    self._start[stage] = [w.detach().cpu().clone() for w in _weights(module, stage)]
        self.norms = {stage: measure_length(weights) for stage, weights in self._start.items()}
        """Norms of the first weights, by which a resumed run finds that it has the same."""

    def check(self, norms: Mapping[str, float]) -> None:
        """Measures no more if the run that is resumed began with other weights."""
        same = norms.keys() == self.norms.keys() and all(isclose(norms[k], self.norms[k], rel_tol=1e-4) for k in norms)
        if self._start and not same:
            rank_zero_warn("drift is not logged: the run began with other weights than `model.weights` gives now")
            self._start, self._stages = {}, []

    def compute(self, module: L.LightningModule) -> dict[str, float]:
        """The drift of each stage by name; 0 where it never trains."""
        found = {}
        for stage in self._stages:
            norm = self.norms.get(stage, 0.0)
            change = measure_change(zip(self._start[stage], _weights(module, stage), strict=True)) if norm else 0.0
            found[f"drift/{stage}"] = change / (norm or 1.0)
        return found


def _weights(module: Any, stage: str) -> list[nn.Parameter]:
    return [weight for part in cast(Staged, module).stage_modules()[stage] for weight in part.parameters()]


class Speed:
    """Images a second in training, and the share of that time in which it waited for data.

    Validations are left out. Waiting is known of the loaders of lit_ft.
    """

    def __init__(self) -> None:
        self.begin(None)

    def begin(self, loader: Any) -> None:
        """Begins an epoch."""
        self._images = 0
        self._seconds = 0.0
        self._waited_before = loader.seconds_waited if isinstance(loader, Loader) else 0.0
        self.go_on()

    def go_on(self) -> None:
        """Goes on after a validation."""
        self._mark = time.perf_counter()

    def step(self, batch: Any) -> None:
        """Counts a batch."""
        now = time.perf_counter()
        self._seconds, self._mark = self._seconds + now - self._mark, now
        if isinstance(batch, (tuple, list)) and isinstance(batch[-1], torch.Tensor):
            self._images += len(batch[-1])

    def compute(self, trainer: Any) -> dict[str, float]:
        """The values of the epoch by name, of all processes together as far as they are alike."""
        if not self._images or not self._seconds:
            return {}
        found = {"speed/images_per_second": self._images * trainer.world_size / self._seconds}
        loader = trainer.train_dataloader
        if isinstance(loader, Loader):
            share = (loader.seconds_waited - self._waited_before) / self._seconds
            found["speed/share_waiting_for_data"] = min(1.0, share)
        return found
