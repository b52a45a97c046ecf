"""The passes alone, the limit: a batch that is there goes through the network as often as the task cannot do without.

Images that are not augmented go through a frozen network once; others, and a network that trains, see each epoch. The
network is in channels_last and in inference mode where nothing trains, and memory is kept as lit_ft keeps it.
"""

import ctypes
from math import ceil, nan
from pathlib import Path

import torch
from job import BATCH_SIZE, LR, SIZE, Clock, Job
from torchvision import models

job = Job.given()
torch.set_num_threads(1)
keep = getattr(ctypes.CDLL(None), "mallopt", None)
if keep is not None:
    keep(-4, 0)
    keep(-1, -1)
clock = Clock(job)
network = models.get_model(job.model, weights="DEFAULT").to(memory_format=torch.channels_last)
batch = torch.rand(BATCH_SIZE, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
sizes = {split: sum(1 for _ in Path(job.data, split).glob("*/*")) for split in ("train", "val")}
steps = {split: ceil(size / BATCH_SIZE) for split, size in sizes.items()}


@torch.inference_mode()
def forward(number: int) -> None:
    """So many batches through the frozen network."""
    network.eval()
    for _ in range(number):
        network(batch)


clock.start()
for epoch in range(job.head_epochs):
    forward(steps["train"] * (epoch == 0 or job.augment) + steps["val"] * (epoch == 0))
    clock.epoch(nan)
optimizer = torch.optim.AdamW(network.parameters(), LR, fused=True)
for _ in range(job.full_epochs):
    network.train()
    for _ in range(steps["train"]):
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()
    forward(steps["val"])
    clock.epoch(nan)
clock.tell("torch", "torchvision")
