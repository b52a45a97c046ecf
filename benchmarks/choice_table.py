"""Tables of ``probe_choice.py``: how far the orders of backbones agree with that after fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from peers.table import Turn, spread
from scipy.stats import kendalltau

Array = np.ndarray[Any, Any]
RESAMPLES = 1000


def agreement(predicted: Array, correct: Array) -> tuple[float, float, float]:
    """Kendall's tau of two orders of backbones, and its 95% interval by resampling splits and test images.

    Args:
        predicted: A number for each backbone in each split ``(S, B)``, higher where it should be better.
        correct: Which test images are predicted well ``(S, B, N)``.
    """
    draws, taus = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        splits, images = (draws.integers(size, size=size) for size in (len(correct), correct.shape[2]))
        taus.append(tau(predicted[splits].mean(axis=0), correct[splits][:, :, images].mean(axis=(0, 2))))
    low, high = np.nanpercentile(taus, [2.5, 97.5])
    return tau(predicted.mean(axis=0), correct.mean(axis=(0, 2))), float(low), float(high)


def tau(predicted: Array, accuracies: Array) -> float:
    """Kendall's tau-b of two orders."""
    return float(kendalltau(predicted, accuracies).statistic)


def lost(predicted: Array, accuracies: Array) -> float:
    """How much less accurate the backbone that is predicted best is than the best one, on average ``(S, B)``."""
    chosen = np.take_along_axis(accuracies, predicted.argmax(axis=1)[:, None], axis=1)[:, 0]
    return float((accuracies.max(axis=1) - chosen).mean())


def order_tables(turns: Sequence[Turn]) -> str:
    """A table of the backbones on a target, and one of how well each order of them predicts that of fine-tuning.

    Args:
        turns: Those of the target, of each backbone in each split.
    """
    names, splits = list(dict.fromkeys(turn["backbone"] for turn in turns)), sorted({turn["split"] for turn in turns})
    of = {(turn["split"], turn["backbone"]): turn for turn in turns}
    figures = {
        key: np.array([[of[split, name][key] for name in names] for split in splits])
        for key in ("score", "loss", "logme", "gflops")
    }
    correct = {
        key: np.array([[[*map(int, of[split, name][key])] for name in names] for split in splits])
        for key in ("probe", "last", "best")
    }
    return f"{_backbone_table(names, figures, correct)}\n\n{_order_table(names, figures, correct)}"


def _backbone_table(names: Sequence[str], figures: dict[str, Array], correct: dict[str, Array]) -> str:
    accuracies = {key: values.mean(axis=2) for key, values in correct.items()}
    lines = [
        "| backbone | probe, cross-validated | LogME | GFLOPs | test: probe | last epoch | handed back |",
        "|---|---|---|---|---|---|---|",
    ]
    for b in np.argsort(-accuracies["best"].mean(axis=0), kind="stable"):
        scores = [spread(100 * values[:, b], ".1f") for values in (figures["score"], *accuracies.values())]
        rest = [f"{figures['logme'][:, b].mean():.3f}", f"{figures['gflops'][0, b]:.3f}"]
        lines.append(f"| {' | '.join([names[b], scores[0], *rest, *scores[1:]])} |")
    return "\n".join(lines)


def _order_table(names: Sequence[str], figures: dict[str, Array], correct: dict[str, Array]) -> str:
    tuned = [correct["last"], correct["best"]]
    orders = {"accuracy of the probe": figures["score"], "its log-loss": -figures["loss"], "LogME": figures["logme"]}
    rows = [
        [title, *(cell for of in tuned for cell in _cells(predicted, of))]
        for title, predicted in {**orders, "GFLOPs": figures["gflops"]}.items()
    ]
    alike = [b for b, name in enumerate(names) if name.endswith("ImageNet")]
    if len(alike) > 1:
        cells = (cell for of in tuned for cell in _cells(figures["score"][:, alike], of[:, alike]))
        rows.append(["accuracy of the probe, ImageNet alone", *cells])
    if len(figures["score"]) > 1:
        rows.append(
            ["fine-tuning on another split", *(cell for of in tuned for cell in _other_splits(of.mean(axis=2)))]
        )
    header = ["order by", "last epoch: tau", "points lost", "handed back: tau", "points lost"]
    first, *rest = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return "\n".join([first, "|---" * len(header) + "|", *rest])


def _cells(predicted: Array, correct: Array) -> tuple[str, str]:
    middle, low, high = agreement(predicted, correct)
    accuracies = correct.mean(axis=2)
    each = ", ".join(f"{tau(*both):.2f}" for both in zip(predicted, accuracies, strict=True))
    return f"{middle:.2f} ({low:.2f} to {high:.2f}); {each}", f"{100 * lost(predicted, accuracies):.1f}"


def _other_splits(accuracies: Array) -> tuple[str, str]:
    """How well the order in one split predicts that in another one."""
    pairs = [(a, b) for a in range(len(accuracies)) for b in range(len(accuracies)) if a != b]
    points = np.mean([lost(accuracies[a : a + 1], accuracies[b : b + 1]) for a, b in pairs])
    each = ", ".join(f"{tau(accuracies[a], accuracies[b]):.2f}" for a, b in pairs if a < b)
    return f"in pairs of splits {each}", f"{100 * points:.1f}"
