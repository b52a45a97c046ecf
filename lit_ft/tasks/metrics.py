"""Metrics of a task: sums in full precision, R2, and means over the classes that a split has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric, MetricCollection
from torchmetrics import classification as C

from lit_ft.rank_zero import rank_zero_warn
from lit_ft.tasks.classes import first_names


class PreciseSums(Metric):
    """Holds its sums as float64, whatever the precision of the network; as float32 on devices without float64."""

    def add_state(self, name: str, default: Any, *args: Any, **options: Any) -> None:
        """Adds a sum."""
        is_float = isinstance(default, Tensor) and default.is_floating_point()
        super().add_state(name, default.double() if is_float else default, *args, **options)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Moves the sums, but leaves their type: a trainer with precision bf16-true converts whatever a module has."""

        def move(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor).to(tensor.dtype)
            except TypeError:  # of MPS, which has no float64
                return fn(tensor.float())

        return super()._apply(move, exclude_state)


class MeanLoss(PreciseSums, MeanMetric):
    """The mean of all values."""

    def __init__(self) -> None:
        # Repeated for each image, as with "disable" torchmetrics passes over weights; but otherwise over nan.
        super().__init__(nan_strategy="disable")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the sum, in which values are added, whatever torch's default type is then."""
        return self.mean_value.dtype

    def compute(self) -> Tensor:
        """The mean, as float32."""
        mean: Tensor = super().compute()
        return mean.float()


class R2(PreciseSums):
    """The coefficient of determination, 1 - (squared errors) / (squared deviations from the mean target).

    It is computed for each of K targets, ``num_outputs``, and then averaged. Where a target has one value only, it is
    not defined, and is left out; where each has, it is nan.

    Deviations are from the mean of what was seen, and the parts of batches and processes are put together as in `Chan
    et al. 1983 <https://doi.org/10.1080/00031305.1983.10483115>`_, so that no offset costs digits.
    """

    num: Tensor
    mean: Tensor
    deviations: Tensor
    errors: Tensor

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self._num_outputs = num_outputs
        # Without a reduction, all processes' parts come to `compute` one upon the other.
        self.add_state("num", torch.zeros(1), dist_reduce_fx=None)
        for name in ("mean", "deviations", "errors"):
            self.add_state(name, torch.zeros(num_outputs), dist_reduce_fx=None)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch ``(B, K)``."""
        mean = target.mean(dim=0)
        parts = (
            torch.stack([self.num, torch.full_like(self.num, len(target))]),
            torch.stack([self.mean, mean.to(self.mean.dtype)]),
            torch.stack([self.deviations, (target - mean).square().sum(dim=0).to(self.mean.dtype)]),
        )
        self.num, self.mean, self.deviations = _merged(*parts)
        self.errors = self.errors + (preds - target).square().sum(dim=0)

    def compute(self) -> Tensor:
        """The mean over the targets, as float32."""
        shape = (-1, self._num_outputs)
        num, mean, deviations = _merged(
            self.num.reshape(-1, 1), self.mean.reshape(shape), self.deviations.reshape(shape)
        )
        errors = self.errors.reshape(shape).sum(dim=0)
        # The rounding errors of equal numbers are no deviation.
        is_defined = deviations > num * (4 * torch.finfo(mean.dtype).eps * mean.abs()).square()
        values = (1 - errors / deviations).where(is_defined, 0)
        return (values.sum() / is_defined.sum()).float()


def _merged(num: Tensor, mean: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The number ``(1,)``, mean ``(K,)`` and squared deviations ``(K,)`` of parts, one a row."""
    total = num.sum(dim=0)
    shares = num / total.clamp(min=1)
    # From the first part's that is any, so that equal means stay what they are.
    first = mean.index_select(0, num.flatten().argmax().view(1)).squeeze(0)  # by a number, a GPU would be waited for
    merged = first + (shares * (mean - first)).sum(dim=0)
    return total, merged, deviations.sum(dim=0) + (num * (mean - merged).square()).sum(dim=0)


class OverPresent(Metric):
    """The mean over those classes, or labels, that the images of a split have; to be mixed in before a metric.

    Of a class without an image recall is not defined, and precision and F1 can only be 0, which torchmetrics counts for
    every label, and for a class that was predicted. The metric must be made with ``average="none"``.
    """

    absent: Tensor | None = None
    """Which classes no image had, bool ``(K,)``, when it was last computed; of all processes together."""

    def compute(self) -> Tensor:
        """The mean, or 0 where there is no class at all."""
        counts = cast(Any, self)
        present: Tensor = counts.tp + counts.fn > 0
        self.absent = ~present
        values: Tensor = super().compute()  # type: ignore[safe-super]  # that of the metric it is mixed into
        return values.where(present, 0).sum() / present.sum().clamp(min=1)


class _MeanSquaredError(PreciseSums, MeanSquaredError):
    pass


class _MeanAbsoluteError(PreciseSums, MeanAbsoluteError):
    pass


class _LabelPrecision(OverPresent, C.MultilabelPrecision):
    pass


class _LabelRecall(OverPresent, C.MultilabelRecall):
    pass


class _LabelF1(OverPresent, C.MultilabelF1Score):
    pass


class _ByClass(OverPresent, C.MulticlassStatScores):
    """Counts of a batch, class by class.

    torchmetrics takes the counts from a matrix ``(K, K)`` of each batch, which is 800 MB for 10,000 classes.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch: logits ``(B, K)``, and classes ``(B,)``."""
        found = preds.argmax(dim=1)
        hits = found == target
        tp, fp, fn = (self._counts(*one) for one in ((target, hits), (found, ~hits), (target, ~hits)))
        counts = {"tp": tp, "fp": fp, "tn": len(target) - tp - fp - fn, "fn": fn}
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)

    def _counts(self, classes: Tensor, which: Tensor) -> Tensor:
        """How often each class comes where ``which`` is true."""
        none = torch.zeros(cast(int, self.num_classes), dtype=torch.long, device=classes.device)
        return none.index_add_(0, classes, which.long())


class _Precision(_ByClass, C.MulticlassPrecision):
    pass


class _Recall(_ByClass, C.MulticlassRecall):
    pass


class _F1(_ByClass, C.MulticlassF1Score):
    pass


def build_metrics(task: str, num: int, prefix: str, top_five: bool) -> MetricCollection:
    """Fresh metrics of a task with K outputs, ``num``, whose names begin with ``prefix``; they see raw logits."""
    metrics: dict[str, Metric | MetricCollection]
    # The loss has checked what they see; they would fetch it from the device to do so again.
    unchecked: Any = {"validate_args": False}
    if task == "multiclass":
        metrics = {
            "acc": C.MulticlassAccuracy(num, average="micro", **unchecked),
            "precision": _Precision(num, average="none"),
            "recall": _Recall(num, average="none"),
            "f1": _F1(num, average="none"),
        }
        if top_five:
            metrics["acc_top5"] = C.MulticlassAccuracy(num, average="micro", top_k=5, **unchecked)
    elif task == "multilabel":
        metrics = {
            "acc": C.MultilabelAccuracy(num, **unchecked),
            "precision": _LabelPrecision(num, average="none", **unchecked),
            "recall": _LabelRecall(num, average="none", **unchecked),
            "f1": _LabelF1(num, average="none", **unchecked),
        }
    else:
        metrics = {"mse": _MeanSquaredError(), "mae": _MeanAbsoluteError(), "r2": R2(num)}
    # No groups: metrics that are equal after the first batch would share one state from then on, although that can
    # be by chance, and in one process but not in the other.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def warn_absent_classes(metrics: MetricCollection, split: str, names: Sequence[str]) -> None:
    """Warns of classes that no image of a split has, as the means over classes are without them.

    The metrics are those of the split after all of its batches; every process must ask.
    """
    means = {name: metric for name, metric in metrics.items(keep_base=True) if isinstance(metric, OverPresent)}
    for metric in means.values():
        metric.compute()
    flags = next((metric.absent for metric in means.values()), None)
    if flags is not None and flags.any():
        absent = [name for name, is_absent in zip(names, flags.tolist(), strict=True) if is_absent]
        count = f"{len(absent):,} of {len(names):,} classes ({first_names(absent)})"
        rank_zero_warn(f"{split}: no image of {count}; they are left out of the means of {', '.join(means)}")
