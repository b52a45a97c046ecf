"""Lightning's `BackboneFinetuning`, as its docstring and Lightning's page on transfer learning have it."""

import tempfile

import lightning as L
import torch
from job import Clock, Job
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning_epochs import Epochs
from lightning_module import Transfer
from torchvision_parts import loaders

job = Job.given()
torch.set_num_threads(1)
L.seed_everything(job.seed)
train, val = loaders(job)
model = Transfer(job.model, len(train.dataset.classes))
clock = Clock(job)
with tempfile.TemporaryDirectory() as folder:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=job.epochs,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=job.head_epochs), Epochs(clock, "val_acc")],
        default_root_dir=folder,
    )
    clock.start()
    trainer.fit(model, train, val)
    clock.tell("lightning", "torch", "torchvision")
