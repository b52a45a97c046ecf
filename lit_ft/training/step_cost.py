"""Cost of a training step on one device: its memory, counted on a few images, and its time, measured in real steps."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lit_ft.console import log_progress
from lit_ft.unfreezing.view import reduced_bytes

_FEW = 2, 4
"""Images with which activations are counted; batch norm cannot be trained on one."""

STEPS = 3
"""Steps that are timed, after one that is not."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device in a step of data-parallel training, without the workspace of single operations.

    Args:
        parameters: Parameters and buffers.
        gradients: Gradients of what trains, and as many again where they are reduced: DDP copies them into buckets.
        optimizer: States of the optimizer, of what has trained so far.
        activations: What the forward pass keeps for the backward pass, and the images.
        transient: The largest inputs and outputs of a layer, which are there while it computes, also if it is frozen.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    transient: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.transient


def measure_memory(
    module: Any, optimizer: torch.optim.Optimizer, batch_size: int, precision: str, reduces: bool, trained: list[Tensor]
) -> StepMemory:
    """The memory of a step with the stages that train now.

    Activations are linear in the number of images, and counted with two small numbers of them.

    Args:
        module: A `FineTuneModule`.
        optimizer: Its optimizer, whose states are counted on a small parameter.
        batch_size: Images on a device.
        precision: As Lightning has it; 16-bit types count as bfloat16.
        reduces: Whether gradients are reduced over processes.
        trained: What has trained so far.
    """
    width = 2 if precision.endswith("-true") and "16" in precision else 4
    tensors = [*module.parameters(), *module.buffers()]
    held = sum(tensor.numel() * min(width, tensor.element_size()) for tensor in tensors)
    moving = reduced_bytes(p for p in module.parameters() if p.requires_grad) * width // 4
    few = [_count_activations(module, num, precision) for num in _FEW]
    kept, passing = (_extrapolate(counts, batch_size) * width / 4 for counts in zip(*few, strict=True))
    states = round(reduced_bytes(trained) / 4 * width / 4 * _bytes_of_state(optimizer))
    return StepMemory(held, moving * (2 if reduces else 1), states, round(kept), round(passing))


def _extrapolate(counts: Sequence[int], batch_size: int) -> float:
    per_image = (counts[1] - counts[0]) / (_FEW[1] - _FEW[0])
    return counts[0] + per_image * (batch_size - _FEW[0])


def measure_seconds(module: Any, batch_size: int, precision: str) -> float:
    """Seconds of a forward and a backward pass of a batch on this machine, with the stages that train now.

    The least of some, as other programs only make a step slower. It is of the first GPU, where torch finds one.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = next(module.parameters()).device
    times: list[float] = []

    def steps() -> Iterator[int]:
        images = _images(module, batch_size).to(device)
        for _ in range(STEPS + 1):
            began = time.perf_counter()
            torch.autograd.backward(_forward(module, images, precision))
            module.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
            yield batch_size

    with _as_it_was(module):
        module.to(device)
        log_progress("Step", steps(), (STEPS + 1) * batch_size)
        module.to(before)
    return min(times[1:])


def _count_activations(module: Any, num: int, precision: str) -> tuple[int, int]:
    """Bytes of a pass of ``num`` images: what is kept for the backward pass, and the most of a layer while it computes.

    Each storage that is kept counts once, and weights and buffers do not.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    passing = [0]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # so that it lives, and no other has its place

    def see(_: nn.Module, inputs: Any, output: Any) -> None:
        passing.append(sum(one.nbytes for one in (*inputs, output) if isinstance(one, Tensor)))

    images = _images(module, num).to(next(module.parameters()).device)
    layers = [part for part in module.modules() if not any(True for _ in part.children())]
    hooks = [layer.register_forward_hook(see) for layer in layers]
    try:
        with _as_it_was(module), saved_tensors_hooks(note, lambda tensor: tensor):
            _forward(module, images, precision)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(kept.values()) + images.nbytes, max(passing)


def _forward(module: Any, images: Tensor, precision: str) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled="16" in precision and "mixed" in precision):
        logits: Tensor = module(images)
    return logits.float().square().sum()


def _images(module: Any, num: int) -> Tensor:
    spec = module.input_spec
    shape = num, spec.channels, spec.size, spec.size
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Leaves the statistics of batch norm, gradients and random numbers as they were."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    training, state = module.training, torch.get_rng_state()
    module.train()
    try:
        yield
    finally:
        module.zero_grad()
        module.train(training)
        torch.set_rng_state(state)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])


def _bytes_of_state(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state of an optimizer for each float32 parameter, by a step with a small matrix."""
    small = nn.Parameter(torch.ones(8, 8))
    small.grad = torch.ones_like(small)
    taken = inspect.signature(type(optimizer)).parameters  # some keep more among their defaults
    twin: Any = type(optimizer)([small], **{key: value for key, value in optimizer.defaults.items() if key in taken})
    twin.step(lambda: small.sum())
    tensors = [value for value in twin.state[small].values() if isinstance(value, Tensor) and value.ndim]
    return sum(tensor.nbytes for tensor in tensors) / small.numel()
