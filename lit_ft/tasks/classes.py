"""Classes and target scale of a data module, and the classes that a split lacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, NoReturn, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import MetricCollection

from lit_ft.errors import UserError
from lit_ft.tasks.metrics import OverPresent
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import MAIN_METRIC


class TakeClasses(Callback):
    """Gives a module its head as soon as the data module is set up, for callbacks that look at its stages then."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the head."""
        if hasattr(pl_module, "take_classes"):  # the trainer may be given another module later
            cast(Any, pl_module).take_classes(stage)

    @classmethod
    def come_first(cls, trainer: Any) -> None:
        """Puts it before all other callbacks of a trainer, where Lightning has no place for a module's own."""
        if not any(isinstance(callback, cls) for callback in trainer.callbacks):
            trainer.callbacks.insert(0, cls())


def read_classes(data: Any) -> int | list[str] | None:
    """The names of a data module's classes, or else their number, or None where it has neither, or not yet."""
    names = getattr(data, "class_names", None)
    if names is not None and len(names):
        return [str(name) for name in cast(Iterable[Any], names)]
    number = getattr(data, "num_classes", None)
    try:
        return None if number is None else index(number)
    except TypeError as error:
        raise UserError(f"{type(data).__name__}.num_classes: expected a whole number, got {number!r}") from error


def refuse_no_classes(data: Any) -> NoReturn:
    """Raises `UserError`, as there are no classes, or what keeps a data module's own property from giving them."""
    for name in ("class_names", "num_classes"):
        if isinstance(getattr(type(data), name, None), property):
            getattr(data, name)
    raise UserError("classes: the data module names no classes; give FineTuneModule(classes=...)")


def name_classes(classes: int | Sequence[str]) -> list[str]:
    """The names of classes, which are numbers where there is none.

    >>> name_classes(3)
    ['0', '1', '2']
    """
    return [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)


def refuse_other_task(data: Any, task: str) -> None:
    """Raises `UserError` where the targets of a data module are for another task."""
    own = getattr(data, "task", None)
    if own in MAIN_METRIC and own != task:
        raise UserError(
            f"`model.task`: {task}, but the targets of {type(data).__name__} are for {own}; give `model.task` {own}, "
            "or other data"
        )


def read_standardisation(data: Any, num: int, is_needed: bool) -> Standardisation | None:
    """Mean and scale of a data module's training targets for regression, or None where it does not give them.

    Args:
        data: The data module. Its ``train_targets()`` gives those of all training images, ``(N, K)``.
        num: K.
        is_needed: Whether the head should start at the mean.

    Raises:
        UserError: If they are needed and not given.
    """
    targets = data.train_targets() if hasattr(data, "train_targets") else None
    if targets is not None:
        return Standardisation.of(targets.reshape(len(targets), num))
    unknown = "the data module has no train_targets()"
    advice = "add that method to it, which gives those of all training images (N, K)"
    if is_needed:
        raise UserError(f"`model.head.prior_bias`: {unknown}; {advice}, or set prior_bias to false")
    rank_zero_warn(f"regression targets are taken as they are, not standardised, as {unknown}; {advice}")
    return None


def refuse_other_classes(own: list[str], given: int | list[str]) -> None:
    """Raises `UserError` where a data module's classes are others than those of the model."""
    names = name_classes(given)
    if len(names) != len(own) or (not isinstance(given, int) and names != own):
        raise UserError(
            f"the model has {format_classes(own)}, but the data has {format_classes(names)}; give the data the "
            "model was trained on, or start from the backbone alone with `model.weights` CHECKPOINT"
        )


def format_classes(names: Sequence[str]) -> str:
    """The number of classes, and the first of them."""
    return f"{len(names)} classes ({_first(names)})"


def warn_absent_classes(metrics: MetricCollection, split: str, names: Sequence[str]) -> None:
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
