"""The passes alone, the limit: a batch that is there goes through the network as often as the task cannot do without.

Images that are not augmented go through a frozen network once; others, and a network that trains, see each epoch. The
network is in channels_last and in inference mode where nothing trains, and memory is kept as lit_ft keeps it.
"""

from math import nan
from pathlib import Path

import torch
from job import BATCH_SIZE, LR, SIZE, Clock, Job
from torchvision import models

from lit_ft.memory import keep_freed_memory

job = Job.given()
torch.set_num_threads(1)
keep_freed_memory()
clock = Clock(job)
network = models.get_model(job.model, weights="DEFAULT").to(memory_format=torch.channels_last)
images = torch.rand(BATCH_SIZE, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)


def batches(split: str) -> list[torch.Tensor]:
    """Those of an epoch."""
    count = sum(1 for _ in Path(job.data, split).glob("*/*"))
    return [images[: min(BATCH_SIZE, count - start)] for start in range(0, count, BATCH_SIZE)]


@torch.inference_mode()
def forward(split: str) -> None:
    """A split through the network, of which nothing trains."""
    network.eval()
    for batch in batches(split):
        network(batch)


clock.start()
for epoch in range(job.head_epochs):
    if epoch == 0 or job.augment:
        forward("train")
    if epoch == 0:
        forward("val")
    clock.epoch(nan)
optimizer = torch.optim.AdamW(network.parameters(), LR, fused=True)
for _ in range(job.full_epochs):
    network.train()
    for batch in batches("train"):
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()
    forward("val")
    clock.epoch(nan)
clock.tell("torch", "torchvision")
