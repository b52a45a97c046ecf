"""A loop by hand, with nothing that it could do without, over torchvision's pipeline: every image every epoch."""

import torch
from job import BACKBONE_LR, LR, Clock, Job
from torch.nn.functional import cross_entropy
from torchvision_parts import accuracy, backbone_and_features, loaders

job = Job.given()
torch.set_num_threads(1)
torch.manual_seed(job.seed)
train, val = loaders(job)
backbone, num_features = backbone_and_features(job.model)
head = torch.nn.Linear(num_features, len(train.dataset.classes))
network = torch.nn.Sequential(backbone, head).to(memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(head.parameters(), lr=LR)

clock = Clock(job)
clock.start()
for epoch in range(job.epochs):
    if epoch == job.head_epochs:
        optimizer.add_param_group({"params": backbone.parameters(), "lr": BACKBONE_LR})
    unfrozen = epoch >= job.head_epochs
    network.train()
    backbone.train(unfrozen)
    for images, targets in train:
        with torch.set_grad_enabled(unfrozen):
            features = backbone(images.contiguous(memory_format=torch.channels_last))
        loss = cross_entropy(head(features), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    clock.epoch(accuracy(network, val))
clock.tell("torch", "torchvision")
