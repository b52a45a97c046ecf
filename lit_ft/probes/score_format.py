"""Scores and losses of a metric, as a person reads them."""

from __future__ import annotations


class ScoreFormat:
    """Formats the figures of a metric: R2 as it is, all others as percentages.

    Args:
        metric: What the scores are.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._is_share = metric != "R2"

    @property
    def loss(self) -> str:
        """What the loss is called."""
        return "log-loss" if self._is_share else "loss"

    @property
    def unit(self) -> str:
        """What stands after a difference."""
        return " points" if self._is_share else ""

    def score(self, value: float) -> str:
        """A score."""
        return f"{value:.1%}" if self._is_share else f"{value:.3f}"

    def points(self, value: float) -> str:
        """A difference of scores, in percentage points but for R2."""
        return f"{100 * value:.1f}" if self._is_share else f"{value:.3f}"

    def signed(self, *values: float) -> str:
        """Differences with their signs, as an interval where there are two."""
        return " to ".join(("+" if value >= 0 else "") + self.points(value) for value in values)

    def compare(self, value: float) -> str:
        """A difference of scores in words."""
        return f"{self.points(abs(value))}{self.unit} {'less' if value < 0 else 'more'}"
