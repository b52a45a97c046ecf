"""fastai: `vision_learner`, frozen and fitted, or fine-tuned by `fine_tune`.

Its head has two layers, and takes the mean and the maximum of each map. The frozen body's batch norm trains.
"""

import torch
from fastai.vision.all import (
    Callback,
    CropPad,
    FlipItem,
    ImageDataLoaders,
    RandomResizedCrop,
    Resize,
    accuracy,
    set_seed,
    vision_learner,
)
from job import BATCH_SIZE, LR, RESIZE, SCALE, SIZE, Clock, Job
from torchvision import models

job = Job.given()
torch.set_num_threads(1)
set_seed(job.seed)
clock = Clock(job)


class Epochs(Callback):
    """Tells the clock of each epoch."""

    order = 60  # after the recorder

    def after_epoch(self) -> None:
        """Validation is over."""
        clock.epoch(float(self.learn.recorder.values[-1][-1]))


class Centre(Resize):
    """Cuts the centre out of training photos, too, where fastai would cut at a random place."""

    def before_call(self, b: object, split_idx: int) -> None:
        """As for validation."""
        super().before_call(b, 1)


random = [RandomResizedCrop(SIZE, min_scale=SCALE[0]), FlipItem()]
data = ImageDataLoaders.from_folder(
    job.data,
    train="train",
    valid="val",
    bs=BATCH_SIZE,
    num_workers=job.workers,
    device=torch.device("cpu"),
    item_tfms=random if job.augment else [Centre(RESIZE), CropPad(SIZE)],
)
learner = vision_learner(data, getattr(models, job.model), metrics=accuracy, cbs=Epochs())
clock.start()
if job.full_epochs:
    learner.fine_tune(job.full_epochs, base_lr=LR, freeze_epochs=job.head_epochs)
else:
    learner.fit(job.head_epochs, LR)
clock.tell("fastai", "torch", "torchvision")
