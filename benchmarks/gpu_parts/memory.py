"""Memory of each phase on the GPU, and what ``lit-ft plan`` counts for it."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from watch import command_line_trainer

from gpu_parts.inputs import CLASSES, Generated, build
from gpu_parts.measuring import Measuring, free_memory
from gpu_parts.steps import fit, on
from lit_ft import GradualUnfreezing
from lit_ft.training.step_cost import measure_memory
from lit_ft.unfreezing.plan import PhaseConfig


class Memory(Callback):
    """Notes the greatest memory that each epoch takes on the GPU, in GB."""

    def __init__(self) -> None:
        self.peaks: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets what was before."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes it."""
        self.peaks.append(torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else math.nan)


def estimates(network: str, phases: list[list[str]], batch: int, side: int) -> list[float]:
    """What the plan counts for a step of each phase, in GB."""
    model, trained, found = build(network, side, CLASSES), {}, []
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for stages in phases:
        model.set_trainable(stages)
        trained |= {id(one): one for one in model.parameters() if one.requires_grad}
        found.append(measure_memory(model, optimizer, batch, "bf16-mixed", False, list(trained.values())).total / 1e9)
    return found


def memory(measuring: Measuring) -> None:
    """Peak GPU memory of training the head alone, the last stage too, and all; an epoch each, so nothing is cached."""
    sizes = measuring.sizes
    data = Generated(3 * sizes.batch, sizes.side, sizes.side // 8, batch_size=sizes.batch)
    held = data.images.nbytes / 1e9  # which the plan does not count
    for row, network in enumerate(sizes.networks):
        part = measuring.share(1 / (len(sizes.networks) - row))
        model = build(network, sizes.side, CLASSES)
        last = list(model.backbone.stage_modules())[-1]
        phases = {"head": ["head"], f"head, {last}": ["head", last], "all": list(model.stage_modules())}
        unfreezing = GradualUnfreezing("phases", phases=[PhaseConfig(train, 1) for train in phases.values()])
        noting = Memory()
        free_memory()
        with tempfile.TemporaryDirectory() as folder:
            few = {"max_epochs": 3, "limit_val_batches": 0, "unfreezing": unfreezing}
            fit(model, data, command_line_trainer(Path(folder), noting, **few, **on(sizes)))
        title = f"{network}, {sizes.side} px, batches of {sizes.batch}, bf16: peak memory of the phase"
        rows = dict(zip(phases, noting.peaks, strict=True))
        for name, peak in rows.items():
            part.write(f"{title} {name}", f"{peak:.2f} GB")
        if part.left < 10:
            continue
        for (name, peak), counted in zip(
            rows.items(), estimates(network, list(phases.values()), sizes.batch, sizes.side), strict=True
        ):
            share = (counted + held) / peak
            part.write(
                f"{title} {name}", f"{peak:.2f} GB", f"the plan counts {counted + held:.2f} GB, {share:.2f} of it"
            )
