"""lit_ft, by its command line; what follows the job on this one is handed on."""

import functools
import os
import sys
import tempfile

import lightning as L
import torch
from job import BATCH_SIZE, LR, Clock, Job
from lightning_epochs import Epochs

from lit_ft import GradualUnfreezing
from lit_ft.cli import main

job = Job.given()
torch.set_num_threads(1)
clock = Clock(job)
fit = L.Trainer.fit


@functools.wraps(fit)
def timed(trainer: L.Trainer, *args: object, **kwargs: object) -> None:
    """The same fit, measured."""
    trainer.callbacks.insert(0, Epochs(clock, "val/acc"))
    clock.start()
    fit(trainer, *args, **kwargs)
    for callback in trainer.callbacks:
        if isinstance(callback, GradualUnfreezing) and callback.solved and not job.full_epochs:  # there was no epoch
            clock.epoch(callback.solved.metrics["val/acc"])
    clock.tell("torch", "torchvision", "lightning")


L.Trainer.fit = timed
with tempfile.TemporaryDirectory() as folder:
    os.environ["LIT_FT_CACHE"] = f"{folder}/cache"  # as on its first day: all photos are looked at before training
    options = {
        "seed_everything": job.seed,
        "model.backbone": job.model,
        "model.lr": LR,
        "data": "ImageFolderDataModule",
        "data.root": job.data,
        "data.batch_size": BATCH_SIZE,
        "data.augment": "basic" if job.augment else "none",
        "data.num_workers": job.workers,
        "unfreeze.strategy": "lp_ft" if job.full_epochs else "linear_probe",
        "trainer.max_epochs": job.epochs,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder,
        "name": "run",
    }
    if job.full_epochs:
        options |= {"unfreeze.head_epochs": job.head_epochs, "model.lr_decay": 0.6}
    else:
        options |= {"lr_scheduler": "null"}  # constant, as that of all others
    sys.exit(main(["fit", *(f"--{key}={value}" for key, value in options.items()), *sys.argv[2:]]))
