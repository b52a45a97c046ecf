"""Gradient checkpointing: activations of a stage are computed again in the backward pass."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def recomputed(stage: nn.Module, inputs: Tensor) -> Tensor:
    """The output of a stage; only its inputs are kept for the backward pass (`Chen et al. 2016`_).

    Dropout repeats its masks. Whatever the stage keeps in its buffers, such as batch norm's statistics, is written
    once, and is at the second time what it was at the first, which matters to spectral norm.

    Args:
        stage: May write into its buffers, but not into its inputs.
        inputs: The output of the stage before it.

    .. _Chen et al. 2016: https://arxiv.org/abs/1604.06174
    """
    if torch.compiler.is_compiling():  # what is compiled writes into buffers at its end, and so once
        outputs: Tensor = checkpoint(stage, inputs, use_reentrant=False)
        return outputs
    before = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    calls = itertools.count()

    def run(inputs: Tensor) -> Tensor:
        outputs: Tensor
        if next(calls) == 0:
            outputs = stage(inputs)
        else:
            # On copies: a momentum of 0 would not do, as batches would be counted, and 0 times inf is nan.
            copies = {name: buffer.clone() for name, buffer in before.items()}
            outputs = functional_call(stage, copies, (inputs,))
        return outputs

    outputs = checkpoint(run, inputs, use_reentrant=False)
    return outputs
