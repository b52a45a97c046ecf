"""Decides what a contestant is told, and what it tells: `Job` from its command line, `Clock` as one line of JSON.

Standard library alone, as it is imported in the environment of every contestant.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version

BATCH_SIZE = 32
LR = 1e-3
BACKBONE_LR = 1e-4
"""Of a backbone that trains, where a contestant can be told: what Lightning's `BackboneFinetuning` starts it with."""
SCALE = (0.5, 1.0)
"""Share of a photo's area that a random crop takes, where images are augmented."""
SIZE, RESIZE = 224, 256
"""Pixels of the image that enters the network, and of a photo's shorter side before its centre is cut out."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Job:
    """What a contestant trains, by AdamW at `LR`, in batches of `BATCH_SIZE`, in float32, with one thread.

    Args:
        model: Torchvision's name of the network.
        weights: The file of its weights; it lies in torch's cache, too, under the name of the published ones.
        data: A folder of photos, with ``train`` and ``val``, each with a folder a class.
        augment: Whether training images are random crops, mirrored or not, rather than the centre of each photo.
        head_epochs: Epochs in which the head alone trains.
        full_epochs: Epochs in which everything trains, after these.
        workers: Processes that read images; 0 for none but that which trains.
        seed: Of the new head and of the order of the images.
        spawned: When the contestant was started, in seconds since 1970.
    """

    model: str
    weights: str
    data: str
    augment: bool
    head_epochs: int
    full_epochs: int
    workers: int
    seed: int
    spawned: float

    @classmethod
    def given(cls) -> Job:
        """The job on the command line."""
        return cls(**json.loads(sys.argv[1]))

    def written(self) -> str:
        """The job for a command line."""
        return json.dumps(asdict(self))

    @property
    def epochs(self) -> int:
        """All epochs."""
        return self.head_epochs + self.full_epochs


class Clock:
    """Measures a fit, from the call that starts it, with whatever it reads, writes and validates.

    Args:
        job: What is done.
    """

    def __init__(self, job: Job) -> None:
        self._spawned = job.spawned
        self._ends: list[float] = []
        self._accuracies: list[float] = []

    def start(self) -> None:
        """The model and the loaders are made: all before this was start-up."""
        self._startup = time.time() - self._spawned
        self._cpu = _cpu()
        self._start = time.perf_counter()

    def epoch(self, accuracy: float) -> None:
        """An epoch has been trained and validated."""
        self._ends.append(time.perf_counter() - self._start)
        self._accuracies.append(accuracy)

    def tell(self, *packages: str) -> None:
        """Ends the fit and prints what was measured.

        Args:
            *packages: Those whose versions matter.
        """
        seconds, cpu = time.perf_counter() - self._start, _cpu() - self._cpu
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        measured = {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "ends": self._ends,
            "accuracies": self._accuracies,
            "startup": self._startup,
            "peak_mb": peak / (1024 if os.uname().sysname == "Linux" else 1024**2),
            "versions": {package: version(package) for package in packages},
        }
        print(f"\n{json.dumps(measured)}", flush=True)


def _cpu() -> float:
    """CPU seconds of this process and of those that it has ended, which some read or check images with."""
    return sum(os.times()[:4])
