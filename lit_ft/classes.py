"""Classes of a run: their names, taken from the data module, and those that a split has no image of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import MetricCollection

from lit_ft.errors import UserError
from lit_ft.metrics import OverPresent
from lit_ft.tasks import MAIN_METRIC


class TakeClasses(Callback):
    """Gives a module its head as soon as the data module is set up, for callbacks that look at its stages then."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the head."""
        cast(Any, pl_module).take_classes(stage)

    @classmethod
    def come_first(cls, trainer: Any) -> None:
        """Puts it before all other callbacks of a trainer, where Lightning has no place for a module's own."""
        if not any(isinstance(callback, cls) for callback in trainer.callbacks):
            trainer.callbacks.insert(0, cls())


def classes_of(data: Any) -> int | list[str] | None:
    """The names of a data module's classes, or else their number, or None where it has neither, or not yet."""
    names = getattr(data, "class_names", None)
    if names is not None and len(names):
        return [str(name) for name in cast(Iterable[Any], names)]
    number = getattr(data, "num_classes", None)
    return None if number is None else index(number)


def names_of(classes: int | Sequence[str]) -> list[str]:
    """The names of classes, which are numbers where there is none.

    >>> names_of(3)
    ['0', '1', '2']
    """
    return [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)


def refuse_other_task(data: Any, task: str) -> None:
    """Raises `UserError` where a data module says that its targets are for another task."""
    own = getattr(data, "task", None)
    if own in MAIN_METRIC and own != task:
        raise UserError(
            f"--model.task: {task}, but the targets of {type(data).__name__} are for {own}; give --model.task {own}, "
            "or other data"
        )


def told(names: Sequence[str]) -> str:
    """How many classes, and the first of them."""
    return f"{len(names)} classes ({_first(names)})"


def warn_of_absent(metrics: MetricCollection, split: str, names: Sequence[str]) -> None:
    """Warns of classes that no image of a split has, as the means over classes are without them.

    Args:
        metrics: Those of the split, after all of its batches; every process must ask.
        split: Its name.
        names: The names of the classes.
    """
    means = {name: metric for name, metric in metrics.items(keep_base=True) if isinstance(metric, OverPresent)}
    for metric in means.values():
        metric.compute()
    flags = next((metric.absent for metric in means.values()), None)
    absent = [] if flags is None else [name for name, flag in zip(names, flags.tolist(), strict=True) if flag]
    if absent:
        rank_zero_warn(
            f"{split}: no image of {len(absent):,} of {len(names):,} classes ({_first(absent)}); they are left out of "
            f"the means of {', '.join(means)}"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
