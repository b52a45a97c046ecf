"""Tasks: losses, metrics, the metric that chooses the best model, and predictions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_ft.errors import UserError, unknown
from lit_ft.tasks.monitored import MAIN_METRIC, METRICS, Mode
from lit_ft.tasks.standardisation import Standardisation

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

TaskName = Literal["multiclass", "multilabel", "regression"]
ClassWeight = Literal["balanced"]


def check_task(name: str, label_smoothing: float, class_weight: str | None = None, cutmix: float = 0.0) -> None:
    """Raises `UserError` for a task that is unknown, a smoothing out of range, or what the task does not have."""
    if name not in MAIN_METRIC:
        raise unknown("task", name, MAIN_METRIC, "`model.task`")
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"`model.label_smoothing`: must be at least 0 and below 1, got {label_smoothing}")
    if class_weight not in (None, "balanced"):
        raise unknown("weight", class_weight, ["balanced"], "`model.class_weight`")
    if class_weight is not None and name == "regression":
        raise UserError("`model.class_weight`: is for `model.task` multiclass or multilabel, not regression")
    if cutmix and name == "regression":
        raise UserError("`model.mix.cutmix`: is for classes, not `model.task` regression; take `model.mix.mixup`")


def check_precision(name: str, precision: str) -> None:
    """Raises `UserError` for a precision of the trainer in which Lightning would round targets of regression."""
    if name == "regression" and precision in ("16-true", "bf16-true"):
        raise UserError(
            f"`trainer.precision`: {precision} would round the numbers that are to be learnt; give "
            f"{precision.replace('true', 'mixed')}"
        )


@dataclass(frozen=True)
class Task:
    """A task with K outputs.

    Args:
        name: ``multiclass`` (one class an image, cross-entropy), ``multilabel`` (any number of classes, binary
            cross-entropy) or ``regression`` (numbers, mean squared error).
        num_outputs: K, the number of classes or of regression targets.
        label_smoothing: Share of the target that is spread over all classes in training; for ``multiclass``, else it is
            left out.
        standardisation: Mean and scale by which ``regression`` standardises its targets; without it they are unchanged.

    Raises:
        UserError: If the name is unknown, the smoothing is out of range, or there are too few classes.
    """

    name: TaskName
    num_outputs: int
    label_smoothing: float = 0.0
    standardisation: Standardisation | None = None
    _units: Standardisation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_task(self.name, self.label_smoothing)
        if self.num_outputs < 2 and self.name != "regression":
            raise UserError(f"`model.task`: {self.name} needs at least 2 classes, got {self.num_outputs}")
        units = self.standardisation or Standardisation.none(self.num_outputs)
        object.__setattr__(self, "_units", units)  # as the class is frozen

    @property
    def logged(self) -> dict[str, Mode]:
        """The names of what an evaluation logs, and which value of each is best."""
        can_fail = self.num_outputs > 5  # else the top five are all classes
        return {name: mode for name, mode in METRICS[self.name].items() if name != "acc_top5" or can_fail}

    def loss(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """The mean training loss of a batch, in float32 at least; for ``regression`` that of standardised targets.

        With weights it is the sum divided by B, and not by the sum of the weights, as torch would have it: neither the
        classes that a batch happens to have nor the number of processes that share it scale its gradient.

        Args:
            logits: ``(B, K)``.
            targets: For ``multiclass`` class indices ``(B,)`` or probabilities ``(B, K)``, else ``(B, K)`` of numbers,
                for ``multilabel`` from 0 to 1.
            weight: What each class counts ``(K,)``; for ``multilabel`` what its positives count.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weight = None if weight is None else weight.to(logits.dtype)
        if self.name == "multiclass":
            targets = targets.to(logits.dtype) if targets.ndim == 2 else targets.long()
            if weight is None:
                return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
            total = F.cross_entropy(logits, targets, weight, label_smoothing=self.label_smoothing, reduction="sum")
            return total / len(targets)
        if self.name == "multilabel":
            return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), pos_weight=weight)
        return F.mse_loss(logits, self._units.standardise(targets).to(logits.dtype))

    def evaluation_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch without smoothing, so that runs with and without it can be compared."""
        plain = replace(self, label_smoothing=0.0) if self.label_smoothing else self
        return plain.loss(logits, targets)

    def image_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The evaluation loss of each image ``(N,)``, of logits ``(N, K)`` and targets as metrics count them."""
        as_batches_of_one = logits.unsqueeze(1), targets.unsqueeze(1)
        losses: Tensor = torch.func.vmap(self.evaluation_loss)(*as_batches_of_one)
        return losses

    def metrics(self, prefix: str) -> MetricCollection:
        """Fresh metrics whose names begin with ``prefix``; they see raw logits."""
        # Here, as torchmetrics loads SciPy and Matplotlib, and no prediction needs it.
        from lit_ft.tasks.metrics import build_metrics

        return build_metrics(self.name, self.num_outputs, prefix, "acc_top5" in self.logged)

    def hard(self, targets: Tensor) -> Tensor:
        """The targets that metrics count: of probabilities the most probable class ``(B,)``, or the likely labels."""
        if self.name == "multiclass":
            return targets.argmax(dim=1) if targets.ndim == 2 else targets
        return (targets > 0.5).int() if self.name == "multilabel" else targets

    def update(self, metrics: MetricCollection, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch to the metrics."""
        targets = self.hard(targets)
        if self.name == "multilabel":
            # torchmetrics would take logits that all happen to lie in [0, 1] for probabilities.
            logits = logits.sigmoid()
        elif self.name == "regression":
            logits, targets = (self._units.centred(one) for one in (logits, self._units.standardise(targets)))
        metrics.update(logits, targets)

    def predict(self, logits: Tensor) -> Tensor:
        """Predictions ``(B, K)``: probabilities, float32, or for ``regression`` the numbers in the targets' units.

        The latter are float64, as float32 cannot resolve numbers of a small scale at a large offset.
        """
        if self.name == "multiclass":
            return logits.float().softmax(dim=1)
        return logits.float().sigmoid() if self.name == "multilabel" else self._units.restore(logits)

    def restore_logits(self, predictions: Tensor) -> Tensor:
        """Logits of predictions ``(B, K)``, float64: what `predict` makes these of, but for a constant of each image.

        Those of a probability that was rounded to 0 or 1 are finite. Some runtimes round a label below 1e-8 to 0.
        """
        if self.name == "regression":
            return cast(Tensor, self._units.standardise(predictions))
        if self.name == "multiclass":
            return predictions.double().clamp(min=torch.finfo(torch.float32).tiny).log()
        return predictions.double().logit(torch.finfo(torch.float32).eps / 2)
