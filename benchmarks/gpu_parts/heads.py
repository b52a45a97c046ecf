"""The batched solver of linear heads on the GPU, on the CPU, and against scikit-learn on the smallest set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache

import torch
from solver import by_scikit_learn
from torch import Tensor

from gpu_parts.measuring import Measuring, take_turns, wait
from lit_ft.data.folds import make_folds
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import cross_validate
from lit_ft.probes.heads.linear_probe import fit_linear_probe
from lit_ft.probes.heads.solver import Targets

Shape = tuple[int, int, int]
"""Images, features and classes."""

_SCIKIT_SECONDS = 15
"""What scikit-learn may take."""


def clusters(num: int, width: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Features of classes that overlap, with deviations that fall as those of a backbone do."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(num) % num_classes
    deviations = torch.logspace(0, -2, width)
    means = torch.randn(num_classes, width, generator=generator)
    noise = torch.randn(num, width, generator=generator)
    return (3 / math.sqrt(width) * means[classes] * math.sqrt(10) + noise) * deviations, classes


def heads(measuring: Measuring) -> None:
    """Seconds of a cross-validation (20 folds or 5, 9 strengths at most), and of a linear probe as a fit solves it.

    In the end, if there is time, scikit-learn has the smallest set, with the same folds and strengths.
    """
    sizes = measuring.sizes
    for row, shape in enumerate(sizes.heads):
        part = measuring.share(1 / (len(sizes.heads) + 1 - row))
        compare(part.share(0.6), shape, "cross-validation", validate)
        compare(part, shape, "linear probe", probe)
    if measuring.left > _SCIKIT_SECONDS or sizes.device == "cpu":
        features, _, classes, folds = load(sizes.heads[0])
        began = time.perf_counter()
        by_scikit_learn(features, classes, folds)
        seconds = time.perf_counter() - began
        measuring.write(f"cross-validation, {name(sizes.heads[0])}: scikit-learn", f"{seconds:.2f} s, one turn")


def name(shape: Shape) -> str:
    """What a set is called."""
    return f"{shape[0]:,} x {shape[1]:,} features, {shape[2]} classes"


@cache
def load(shape: Shape) -> tuple[Tensor, Targets, Tensor, Tensor]:
    """Features, targets, classes and folds of a set."""
    features, classes = clusters(*shape)
    folds = make_folds(classes, repeats=max(1, min(4, 4000 // len(classes))))
    return features, Targets("softmax", classes, shape[2]), classes, folds


def validate(shape: Shape, place: str) -> Tensor:
    """The mean losses of a cross-validation."""
    features, targets, _, folds = load(shape)
    return cross_validate(Basis(features, torch.device(place)), targets, folds).losses.mean(dim=(0, 1))


def probe(shape: Shape, place: str) -> Tensor:
    """The logits of a linear probe for the first images."""
    features, targets, _, _ = load(shape)
    features = features.to(place)
    return fit_linear_probe(features, targets)(features[:100]).cpu()


def compare(measuring: Measuring, shape: Shape, what: str, solve: Callable[[Shape, str], Tensor]) -> None:
    """Lets the device and the CPU take turns, and writes how far apart their results are."""
    device, found = measuring.sizes.device, dict[str, Tensor]()

    def turn(contestant: str, place: str) -> float:
        began = time.perf_counter()
        found[contestant] = solve(shape, place)
        wait(measuring.sizes)
        return time.perf_counter() - began

    threads = f"on {torch.get_num_threads()} thread(s) of the CPU"
    turns = {"on the device": lambda _: turn("there", device), threads: lambda _: turn("here", "cpu")}
    take_turns(measuring, f"{what}, {name(shape)}", turns, ".2f", "s", "of the time on the device")
    if len(found) < 2:
        return
    apart, largest = (found["there"] - found["here"]).abs(), found["here"][found["here"].isfinite()].abs().max()
    furthest = float(apart[apart.isfinite()].max() / largest)
    measuring.write(f"{what}, {name(shape)}: largest difference", f"{furthest:.1e} of the largest value")
