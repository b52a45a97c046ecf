"""Reports of a probe: lines in a terminal, JSON for programs, and a page of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_ft.console import dump_json, format_path, format_table
from lit_ft.data.pages import render_page
from lit_ft.errors import printable
from lit_ft.probes.comparison import Lead, Probe
from lit_ft.probes.curve_picture import draw_curve
from lit_ft.probes.findings.image_findings import GAIN, CopyEffect, LabelsNeeded, Ranking
from lit_ft.probes.score_format import ScoreFormat
from lit_ft.probes.survey import EPOCH_PASSES, StageProbe
from lit_ft.probes.trial_report import choice_lines, trial_lines, trial_rows

_MAX_LINES = 5  # of a ranking, in the terminal

Row = Sequence[str]


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Args:
        title: Its title.
        rows: A table, perhaps empty.
        lines: What follows from it.
        ranking: Images.
        picture: A picture for the page, as SVG.
    """

    title: str
    rows: list[Row]
    lines: list[str]
    ranking: Ranking | None = None
    picture: str = ""


class Report(ScoreFormat):
    """The parts of a report, as tables and lines that terminal and page share."""

    def __init__(self, probe: Probe) -> None:
        super().__init__(probe.metric)
        self.probe = probe

    @property
    def title(self) -> str:
        """What was probed."""
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.probe.sizes.items())
        times = "once" if self.probe.repeats == 1 else f"{self.probe.repeats} times"
        return f"{self.probe.data}: {sizes} images; {self.probe.num_folds} folds, {times}"

    def backbone_rows(self) -> list[Row]:
        """A table of the backbones."""
        header = ["backbone", self.metric, "95% interval", self.loss, "LogME", "features", "M params", "GFLOPs"]
        rows: list[Row] = [[*header, "feature pass", "an epoch"]]
        for one in self.probe.backbones:
            low, high = map(self.score, one.interval)
            figures = (f"{one.loss:.3f}", f"{one.logme:.3f}", f"{one.num_features:,}", f"{one.parameters / 1e6:.2f}")
            costs = (f"{one.gflops:.2f}", f"{one.feature_seconds:.1f} s", f"{one.epoch_seconds:.0f} s")
            rows.append([one.name, self.score(one.score), f"{low} to {high}", *figures, *costs])
        return rows

    def backbone_lines(self) -> list[str]:
        """What follows from that table, and how it was made."""
        leads = [self._lead_line(lead) for lead in self.probe.leads]
        failed = [f"{name} cannot be used: {why}" for name, why in self.probe.failed.items()]
        rule = f"an epoch of fine-tuning is predicted to take {EPOCH_PASSES} times the feature pass of its images"
        return [*leads, *failed, *self.probe.notes, rule]

    def _lead_line(self, lead: Lead) -> str:
        low, high = map(self.points, lead.interval)
        return f"{self.probe.best.name}: {self.compare(lead.difference)} than {lead.name} ({low} to {high})"

    def choice_lines(self) -> list[str]:
        """The figures behind the choice of the best backbone."""
        best = self.probe.best
        low, high = map(self.score, best.interval)
        lines = [f"{self.metric} {self.score(best.score)} ({low} to {high}), {best.gflops:.2f} GFLOPs"]
        return [*lines, *map(self._lead_line, self.probe.leads), *self._stage_lines()]

    def tried_lines(self) -> list[str]:
        """The figures behind the choice of the unfreezing, if there was a trial."""
        return [] if self.probe.trial is None else choice_lines(self.probe.trial, self)

    def stage_rows(self) -> list[Row]:
        """A table of the stages of the best backbone."""
        rows: list[Row] = [("stage", self.metric, "difference", "compute", "M params")]
        for stage in self.probe.best.stages:
            figures = (self.score(stage.score), self.points(stage.difference), f"{stage.compute:.0%}")
            rows.append((stage.name, *figures, f"{stage.parameters / 1e6:.2f}"))
        return rows

    def _stage_lines(self) -> list[str]:
        stage = best_earlier_stage(self.probe.best.stages)
        if stage is None:
            return []
        where = f", in the first of the {self.probe.repeats} repetitions" if self.probe.repeats > 1 else ""
        return [f"{stage.name}: {self.compare(stage.difference)}, {stage.compute:.0%} of the compute{where}"]

    def _curve_rows(self, labels: LabelsNeeded) -> list[Row]:
        sizes = [f"{size:,}" for size in labels.sizes]
        return [("images a class", *sizes), (self.metric, *map(self.score, labels.accuracies))]

    def _curve_lines(self, labels: LabelsNeeded) -> list[str]:
        recall = f"recall {labels.recalls[labels.neediest]:.1%}"
        if labels.neediest_gain is not None:
            recall += f", {self.compare(labels.neediest_gain)} than with {labels.sizes[-2]:,} images a class"
        return [outlook_line(labels), f"{labels.neediest} needs them most: {recall}"]

    def _copies_line(self, copies: CopyEffect | None) -> str:
        if copies is None:
            return f"{self.score(self.probe.best.score)}: there are no copies among the images"
        these = "the copy" if copies.num_copies == 1 else f"the {copies.num_copies:,} copies"
        kept = "all other scores are with copies in one fold"
        return f"{self.score(copies.with_copies)}, {self.score(copies.without)} without {these}; {kept}"

    def sections(self) -> Iterator[Section]:
        """The parts, one by one."""
        yield Section("Backbones", self.backbone_rows(), self.backbone_lines())
        found, name = self.probe.findings, self.probe.best.name
        if self.probe.best.stages:
            yield Section(f"Stages of {name}", self.stage_rows(), self._stage_lines())
        if (trial := self.probe.trial) is not None:
            yield Section(f"Fine-tuning of {name}", trial_rows(trial, self), trial_lines(trial))
        yield Section(f"Honest score of {name}", [], [self._copies_line(found.copies)])
        if found.labels is not None:
            rows, lines = self._curve_rows(found.labels), self._curve_lines(found.labels)
            yield Section("Labels needed", rows, lines, picture=draw_curve(found.labels))
        if found.issues is not None:
            number = f"about {found.issues.count:,} of {sum(self.probe.sizes.values()):,} labels"
            line = f"{number}, by out-of-fold predictions; the most suspect first"
            yield Section("Labels that are probably wrong", [], [line], found.issues)
        if found.unlike is not None:
            line = "by the distance to the nearest of their class, in units of the median; the furthest first"
            yield Section("Images unlike the others of their class", [], [line], found.unlike)

    def text(self) -> str:
        """Everything as lines of a terminal, with a few images of each ranking."""
        passes = sum(one.feature_seconds for one in self.probe.backbones)
        solved = self.probe.findings.seconds + sum(one.solver_seconds for one in self.probe.backbones)
        lines = [f"Probed {self.title}; feature passes took {passes:.1f} s when made, all else {solved:.1f} s"]
        for part in self.sections():
            lines += ["", part.title, *(f"  {line}" for line in _table(part.rows))]
            lines += [f"  -> {line}" for line in part.lines]
            lines += [f"     {_line(item)}" for item in (part.ranking.items if part.ranking else [])[:_MAX_LINES]]
        return "\n".join(map(printable, lines))


def best_earlier_stage(stages: Sequence[StageProbe]) -> StageProbe | None:
    """The stage before the last with the highest score."""
    return max(stages[:-1], key=lambda stage: stage.score, default=None)


def outlook_line(labels: LabelsNeeded) -> str:
    """How many further images a class bring the gain.

    >>> outlook_line(LabelsNeeded([3], [0.5], [(0.4, 0.6)], [], (44.2, 20.0, 90.4), None, {}, "ant", None))
    'about 44 more images a class for +1 point (20 to 90)'
    """
    if labels.more is None:
        return "too few images a class to tell what more of them would bring"
    middle, least, most = (f"{value:,.0f}" if math.isfinite(value) else "any number" for value in labels.more)
    gain = f"+{100 * GAIN:.0f} point"
    if not math.isfinite(labels.more[0]):
        return f"further images are not expected to bring {gain} (interval: {least} to {most} more a class)"
    return f"about {middle} more images a class for {gain} ({least} to {most})"


def format_json(probe: Probe) -> str:
    """The fields of `Probe` in full; what is not finite is null."""
    return dump_json(asdict(probe), indent=1)


def render_probe(probe: Probe, picture: Callable[[int], str]) -> str:
    """The report as one HTML file; ``picture`` gives a thumbnail, in base 64, of the image of a row."""
    title = f"lit-ft probe: {probe.data}"
    values = {"report": Report(probe), "caption": _caption, "picture": picture}
    return render_page("lit_ft.probes", "probe.html", title=title, **values)


def _table(rows: Sequence[Row]) -> list[str]:
    return format_table(rows, ["<", *[">"] * (len(rows[0]) - 1)]).splitlines() if rows else []


def _caption(item: dict[str, Any]) -> str:
    """Split and class of an image, and what it was ranked by."""
    if "suggested" in item:
        return f"{item['split']}, {item['class']}: rather {item['suggested']} (margin {item['margin']:.2f})"
    return f"{item['split']}, {item['class']}: {item['distance']:.2f}"


def _line(item: dict[str, Any]) -> str:
    return f"{format_path(Path(item['path']))}  {_caption(item)}"
