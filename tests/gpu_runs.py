"""Runs on a GPU; where ``LIT_FT_GPU`` is cpu, the same on a CPU, so that the tests can be tried without a GPU."""

import contextlib

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from small_runs import FewDigits, small_trainer

SGD = {"class_path": "SGD", "init_args": {"momentum": 0.9}}


def gpu_trainer(device, max_epochs, *callbacks, **options):
    """A small trainer on the device."""
    return small_trainer(max_epochs, *callbacks, **{"accelerator": "gpu" if device == "cuda" else "cpu", **options})


def half_precision(device):
    """Options of a trainer for float16 with a scaler of gradients; on a CPU Lightning would take bfloat16 instead."""
    if device == "cuda":
        return {"precision": "16-mixed"}
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}


class Steps(Callback):
    """Notes the loss of each step, and the images of each batch as the step sees them, where they are."""

    def __init__(self, keeps_batches=False):
        self.keeps_batches = keeps_batches
        self.losses, self.batches = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.keeps_batches:
            self.batches.append(batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach().clone())

    def values(self):
        """The losses as numbers."""
        return [float(loss) for loss in self.losses]


def fit(device, module, *callbacks, data=None, epochs=2, seed=1, ckpt_path=None, **options):
    """A run on the device: its trainer, and the losses of its steps."""
    L.seed_everything(seed, verbose=False)
    trainer = gpu_trainer(device, epochs, *callbacks, steps := Steps(), **{"limit_val_batches": 1, **options})
    trainer.fit(module() if callable(module) and not isinstance(module, torch.nn.Module) else module,
                datamodule=FewDigits() if data is None else data, ckpt_path=ckpt_path)  # fmt: skip
    return trainer, steps


def peak_bytes(device):
    """The most memory that was taken since the last call of `forget_peak`; 0 on a CPU, which does not count it."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def forget_peak(device):
    """Begins anew to measure `peak_bytes`."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def telling_syncs(device):
    """Lets torch warn, within, wherever the CPU waits for the GPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
