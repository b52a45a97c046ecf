"""Optimizers of two groups, and the learning rates that a scheduler gives them."""

import torch
from torch import nn
from torch.optim import SGD, lr_scheduler


def two_groups(lrs=(1.0, 0.1)):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return SGD(groups, lr=9.0, momentum=0.9)


def rates(optimizer, scheduler, steps):
    """The learning rates of all groups at each of the steps."""
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    return seen
