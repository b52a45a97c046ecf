"""finetuning-scheduler, with an explicit schedule, as its documentation has it."""

import tempfile

import lightning as L
import torch
from finetuning_scheduler import FinetuningScheduler
from job import BACKBONE_LR, Clock, Job
from lightning_epochs import Epochs
from lightning_module import Transfer
from torchvision_parts import loaders

job = Job.given()
torch.set_num_threads(1)
L.seed_everything(job.seed)
train, val = loaders(job)
model = Transfer(job.model, len(train.dataset.classes))
schedule = {0: {"params": [r"head\..*"], "max_transition_epoch": job.head_epochs}}
if job.full_epochs:
    schedule[1] = {"params": [r"backbone\..*"], "max_transition_epoch": job.epochs, "lr": BACKBONE_LR}
clock = Clock(job)
with tempfile.TemporaryDirectory() as folder:
    unfreezing = FinetuningScheduler(ft_schedule=schedule, epoch_transitions_only=True)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=job.epochs,
        callbacks=[unfreezing, Epochs(clock, "val_acc")],
        default_root_dir=folder,
    )
    clock.start()
    trainer.fit(model, train, val)
    clock.tell("finetuning-scheduler", "lightning", "torch", "torchvision")
