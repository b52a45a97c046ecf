"""fastai's `vision_learner` and `fine_tune` as its documentation has them: an epoch of the head, and four of all."""

import json
import sys
from pathlib import Path

import torch
from fastai.vision.all import ImageDataLoaders, Resize, accuracy, aug_transforms, set_seed, vision_learner
from torchvision import models

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
set_seed(given["seed"])
data = ImageDataLoaders.from_folder(
    given["data"], train="train", valid="val", bs=min(32, len(list(Path(given["data"], "train").rglob("*.*"))) // 2),
    num_workers=0, device=torch.device("cpu"), item_tfms=Resize(256), batch_tfms=aug_transforms(size=224),
)  # fmt: skip
learner = vision_learner(data, models.squeezenet1_1, metrics=accuracy)
learner.fine_tune(4)
loss, share = learner.validate()
print("\n" + json.dumps({"accuracy": float(share), "loss": float(loss)}))
