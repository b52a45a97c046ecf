"""timm, by the calls of its ``train.py`` for model, data, freezing, optimizer and metrics."""

import torch
from job import BACKBONE_LR, BATCH_SIZE, LR, MEAN, RESIZE, SCALE, SIZE, STD, Clock, Job
from timm import utils
from timm.data import create_dataset, create_loader
from timm.models import create_model
from timm.optim import create_optimizer_v2

job = Job.given()
torch.set_num_threads(1)
utils.random_seed(job.seed, 0)
device = torch.device("cpu")
train_set = create_dataset("", root=job.data, split="train", is_training=True, batch_size=BATCH_SIZE)
val_set = create_dataset("", root=job.data, split="val", is_training=False, batch_size=BATCH_SIZE)
common = {
    "input_size": (3, SIZE, SIZE),
    "batch_size": BATCH_SIZE,
    "interpolation": "bilinear",
    "mean": MEAN,
    "std": STD,
    "num_workers": job.workers,
    "persistent_workers": job.workers > 0,
    "device": device,
}
train = create_loader(
    train_set, is_training=True, no_aug=not job.augment, scale=SCALE, hflip=0.5, color_jitter=0.0, **common
)
val = create_loader(val_set, is_training=False, crop_pct=SIZE / RESIZE, **common)
if not job.augment:
    train_set.transform = val_set.transform  # no_aug would cut out another part of each photo
classes = len(train_set.reader.class_to_idx)
# train.py's --pretrained-path; the weights of timm's resnets of this name are torchvision's.
model = create_model(
    f"{job.model}.tv_in1k", pretrained=True, num_classes=classes, pretrained_cfg_overlay={"file": job.weights}
)
body = [name for name, _ in model.named_children() if name != "fc"]
utils.freeze(model, body)
optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=0.01)
loss_fn = torch.nn.CrossEntropyLoss()

clock = Clock(job)
clock.start()
for epoch in range(job.epochs):
    if epoch == job.head_epochs:
        utils.unfreeze(model, body)
        slow = [parameter for name, parameter in model.named_parameters() if not name.startswith("fc.")]
        groups = [{"params": slow, "lr": BACKBONE_LR}, {"params": list(model.fc.parameters())}]
        optimizer = create_optimizer_v2(groups, opt="adamw", lr=LR, weight_decay=0.01)
    model.train()
    losses = utils.AverageMeter()
    for images, targets in train:
        loss = loss_fn(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), images.size(0))
    model.eval()
    top1 = utils.AverageMeter()
    with torch.inference_mode():
        for images, targets in val:
            top1.update(utils.accuracy(model(images), targets)[0].item(), images.size(0))
    clock.epoch(top1.avg / 100)
clock.tell("timm", "torch", "torchvision")
