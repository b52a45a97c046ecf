"""Unfreezes a backbone after one epoch on two processes, with Lightning's callback and with lit_ft's, and compares.

Run: python benchmarks/unfreezing.py
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import BackboneFinetuning, Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lit_ft

EPOCHS = 4


class Net(lit_ft.Staged, L.LightningModule):
    """A small network of a backbone with batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 8, 3, stride=2)
        self.backbone = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 4)

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """All that lit_ft asks of a module."""
        return {"backbone": [self.backbone], "head": [self.head]}

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Cross-entropy."""
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over what is trainable at the start, as Lightning's documentation has it for its callback."""
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


class WholeNet(Net):
    """The same with all parameters in the optimizer from the first step, as lit_ft wants it."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over everything."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Watch(Callback):
    """Notes after each epoch whether replicas are equal, and the backbone's weights and statistics."""

    def __init__(self) -> None:
        self.equal: list[bool] = []
        self.weights: list[str] = []
        self.statistics: list[str] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compares."""
        hashes: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            dist.all_gather_object(hashes, digest(pl_module.parameters()))
        self.equal.append(len(set(hashes)) == 1)
        backbone: Any = pl_module.backbone
        self.weights.append(digest(backbone.parameters()))
        self.statistics.append(digest(backbone.buffers()))


def digest(tensors: Any) -> str:
    """A hash of all bits."""
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def fit(kind: str, epochs: int, devices: int, folder: Path, ckpt_path: str | None = None) -> tuple[Watch, Net]:
    """Trains with one of the callbacks."""
    L.seed_everything(1)
    theirs = kind == "BackboneFinetuning"
    unfreezing: Callback = BackboneFinetuning(1, train_bn=False) if theirs else lit_ft.GradualUnfreezing("lp_ft")
    module, watch = (Net() if theirs else WholeNet()), Watch()
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(64, 3, 8, 8, generator=generator), torch.arange(64) % 4)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    every = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    strategy = "ddp" if devices > 1 else "auto"
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_epochs=epochs,
        callbacks=[unfreezing, watch, every],
        **quiet,
    )
    trainer.fit(module, DataLoader(data, batch_size=8), ckpt_path=ckpt_path)
    return watch, module


def replicas(rank: int, kind: str, port: int, folder: Path) -> None:
    """One of two processes."""
    os.environ.update(
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    )
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "unfreezing", "GROUP_RANK": "0"}
    )
    quiet()
    watch, _ = fit(kind, EPOCHS, 2, folder / "ddp")
    if rank == 0:
        torch.save(watch.equal, folder / "equal.pt")


def quiet() -> None:
    """Leaves just what is printed here."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)


def main() -> None:
    """Prints what differs."""
    quiet()
    for port, kind in enumerate(("BackboneFinetuning", "GradualUnfreezing"), start=29510):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.multiprocessing.spawn(replicas, (kind, port, folder), nprocs=2)
            equal = torch.load(folder / "equal.pt")
            L.seed_everything(1)
            start = Net()
            whole, module = fit(kind, EPOCHS, 1, folder / "whole")
            resumed_from = str(folder / "whole" / f"epoch={EPOCHS - 2}.ckpt")
            try:
                _, resumed = fit(kind, EPOCHS, 1, folder / "resumed", resumed_from)
                same = digest(module.parameters()) == digest(resumed.parameters())
                moved = any(p.requires_grad for p in resumed.backbone.parameters())
                told = (
                    f"{'the same weights' if same else 'other weights'}, backbone {'trains' if moved else 'is frozen'}"
                )
            except (RuntimeError, ValueError, KeyError) as error:
                told = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            print(f"{kind}")
            print(f"  replicas equal after epochs 1 to {EPOCHS}:  {', '.join('yes' if one else 'NO' for one in equal)}")
            print(f"  frozen weights unchanged:       {digest(start.backbone.parameters()) == whole.weights[0]}")
            print(f"  frozen statistics unchanged:    {digest(start.backbone.buffers()) == whole.statistics[0]}")
            print(f"  resumed before the last epoch:  {told}")


if __name__ == "__main__":
    main()
