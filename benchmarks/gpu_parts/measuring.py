"""What a part of the GPU benchmark measures with: sizes, turns in the time that it has, and the rows that it writes."""

from __future__ import annotations

import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peers.table import spread

Turn = Callable[[Path], float]
"""What a turn of a contestant measures, which may write into the folder."""


@dataclass(frozen=True)
class Sizes:
    """How much is done in a turn.

    Args:
        device: ``cuda`` or ``cpu``.
        side: Height and width of the photos, in pixels.
        batch: Photos in a batch.
        steps: Steps of a turn that count.
        skip: Steps before those.
        cifar_images: Images of the set of small ones.
        cifar_batch: Images in a batch of the CIFAR-10 recipe.
        cifar_steps: Its steps of a turn.
        networks: Those that take photos; the first one also takes those of CIFAR-10.
        photos: JPEG files that differ.
        decoded: Photos that are decoded in a turn.
        heads: Images, features and classes of each set that heads are solved on, the smallest first.
    """

    device: str = "cuda"
    side: int = 224
    batch: int = 256
    steps: int = 20
    skip: int = 5
    cifar_images: int = 45_000
    cifar_batch: int = 128
    cifar_steps: int = 300
    networks: tuple[str, ...] = ("resnet50", "vit_b_16")
    photos: int = 1024
    decoded: int = 8192
    heads: tuple[tuple[int, int, int], ...] = ((500, 512, 5), (5_000, 768, 10), (10_000, 2_048, 100))


TINY = Sizes(
    "cpu", side=32, batch=4, steps=2, skip=1, cifar_images=80, cifar_batch=8, cifar_steps=4,
    networks=("resnet18", "squeezenet1_1"), photos=16, decoded=32, heads=((60, 8, 3),),
)  # fmt: skip


@dataclass(frozen=True)
class Measuring:
    """The time of a part, and the file for its rows.

    Args:
        sizes: How much is done in a turn.
        rounds: Turns of each contestant that count, at most.
        until: When it must be over, by `time.time`.
        file: Where rows go, a line of JSON each; of two with the same name the later one counts.
    """

    sizes: Sizes
    rounds: int
    until: float
    file: Path

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.time()

    def share(self, part: float) -> Measuring:
        """The same, with a share of the time that is left."""
        return replace(self, until=time.time() + part * self.left)

    def write(self, what: str, result: str, relative: str = "") -> None:
        """Adds a row, or replaces the one of this name."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "result": result, "relative": relative}) + "\n")


def take_turns(
    measuring: Measuring,
    title: str,
    turns: dict[str, Turn],
    form: str = ",.0f",
    unit: str = "images/s",
    of: str = "of the first",
) -> dict[str, list[float]]:
    """Lets contestants take turns while there is time, and writes a row for each after each round.

    The first round warms up. Where there is no time for another, it counts, and the row says so.

    Args:
        measuring: The time, the number of rounds, and the file.
        title: What all do.
        turns: The contestants; ratios are to the first one, in the same round.
        form: How a value is written.
        unit: What it is.
        of: What the ratio is.
    """
    turns, found = dict(turns), list[dict[str, float]]()
    last: dict[str, float] = {}  # seconds of each, of which the first turn may take some to prepare
    for _ in range(measuring.rounds + 1):
        if found and measuring.left < 1.1 * sum(last.values()):
            break
        taken: dict[str, float] = {}
        for name in list(turns):
            if found and measuring.left < last[name]:
                break
            began, value = time.time(), _take_turn(measuring, f"{title}: {name}", turns[name])
            if value is None:
                del turns[name]
                continue
            taken[name], last[name] = value, time.time() - began
            if not found:  # a turn may be all that there is time for
                _write(measuring, title, [taken], form, unit, of)
        if taken.keys() == turns.keys():
            found.append(taken)
        _write(measuring, title, found[1:] or found, form, unit, of)
    counted = found[1:] or found
    return {name: [one[name] for one in counted if name in one] for name in turns}


def _take_turn(measuring: Measuring, name: str, turn: Turn) -> float | None:
    """What a turn measures; None, and a row with the reason, where it fails, as for want of memory or a library."""
    free_memory()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return turn(Path(folder))
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        measuring.write(name, f"failed ({reason})")
        return None


def _write(measuring: Measuring, title: str, found: Sequence[dict[str, float]], form: str, unit: str, of: str) -> None:
    names = list(found[-1]) if found else []
    for name in names:
        values = [one[name] for one in found]
        ratios = [one[name] / one[names[0]] for one in found]
        turns = f", {len(values)} turns" if len(values) > 1 else ", one turn"
        relative = "" if name == names[0] else f"{spread(ratios, '.3f')} {of}"
        measuring.write(f"{title}: {name}", f"{spread(values, form)} {unit}{turns}", relative)


def free_memory() -> None:
    """Frees the memory of the models before: a trainer and its module know each other, so that they stay."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait(sizes: Sizes) -> None:
    """Waits until the device has done all that was asked of it."""
    if sizes.device == "cuda":
        torch.cuda.synchronize()
