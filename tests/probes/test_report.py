"""Reports of a probe: terminal, JSON and page."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from lit_ft.probes.comparison import Lead, Probe
from lit_ft.probes.findings.image_findings import CopyEffect, Findings, LabelsNeeded, Ranking
from lit_ft.probes.report import Report, best_earlier_stage, format_json, outlook_line, render_probe
from lit_ft.probes.survey import BackboneProbe, StageProbe
from lit_ft.probes.trial import Comparison, Difference, Trial, TrialSize

STAGES = [
    StageProbe("stem", 0.60, -0.341, 0.1, 1_000),
    StageProbe("body", 0.937, -0.004, 0.55, 50_000),
    StageProbe("top", 0.941, 0.0, 1.0, 1_235_000),
]
BEST = BackboneProbe(
    "big<net>", "w.pth", 0.941, (0.92, 0.96), 0.21, 0.1, 0.3, 512, 1_235_000, 0.26, 16.0, 34.4, 1.5, STAGES
)
OTHER = replace(BEST, name="small", score=0.9, stages=[])
INTERVALS = [(0.65, 0.75), (0.76, 0.84), (0.87, 0.93)]
FITTED = [(3.0, 0.69, 0.66, 0.72), (10.0, 0.89, 0.88, 0.9), (40.0, 0.94, 0.91, 0.97)]
LABELS = LabelsNeeded(
    [3, 5, 10], [0.7, 0.8, 0.9], INTERVALS, FITTED, (40.0, 20.0, 90.0), (0.97, 0.95, 0.99), {"ant": 0.95, "bee": 0.8},
    "bee", 0.05,
)  # fmt: skip
ITEM = {"row": 4, "path": "photos/a b.jpg", "split": "val", "class": "ant"}
FINDINGS = Findings(
    "big<net>",
    CopyEffect(6, 0.941, 0.913),
    LABELS,
    Ranking([{**ITEM, "suggested": "bee", "margin": -0.87}] * 60, 7),
    Ranking([{**ITEM, "distance": 2.5}] * 3),
    0.5,
)
PROBE = Probe(
    "ImageFolderDataModule", "accuracy", {"train": 500, "val": 200}, ["ant", "bee"], 5, 4, [BEST, OTHER],
    [Lead("small", 0.041, (0.011, 0.071))], {"odd": "--model.backbone: unknown"}, FINDINGS, ["a note"], 20.0,
)  # fmt: skip

TRIAL = Trial(
    "big<net>", 690, 345, 690, 2, 4, TrialSize(690, 2, 2, 4),
    Comparison(Difference(0.844, 0.861, (-0.006, 0.04)), Difference(0.49, 0.41, (-0.12, -0.04))),
    "fine-tune", "its loss is lower", 300.0, 280.0, 292.0, 420.0,
)  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "Probed ImageFolderDataModule: train 500, val 200 images; 5 folds, 4 times; "
        "feature passes took 32.0 s when made, all else 3.5 s",
        "  big<net>     94.1%  92.0% to 96.0%     0.210  0.300       512      1.24    0.26        16.0 s      34 s",
        "  -> big<net>: 4.1 points more than small (1.1 to 7.1)",
        "  -> odd cannot be used: --model.backbone: unknown",
        "  -> a note",
        "Stages of big<net>",
        "  body      93.7%        -0.4      55%      0.05",
        "  -> body: 0.4 points less, 55% of the compute, in the first of the 4 repetitions",
        "  -> 94.1%, 91.3% without the 6 copies; all other scores are with copies in one fold",
        "  images a class      3      5     10",
        "  accuracy        70.0%  80.0%  90.0%",
        "  -> about 40 more images a class for +1 point (20 to 90)",
        "  -> bee needs them most: recall 80.0%, 5.0 points more than with 5 images a class",
        "  -> about 7 of 700 labels, by out-of-fold predictions; the most suspect first",
        "     photos/a b.jpg  val, ant: rather bee (margin -0.87)",
        "     photos/a b.jpg  val, ant: 2.50",
    ],
)
def test_terminal_has_each_answer(line: str) -> None:
    assert line in Report(PROBE).text().splitlines()


@pytest.mark.parametrize(
    "line",
    [
        "Fine-tuning of big<net>",
        "  model             accuracy          log-loss",
        "  linear probe         84.4%             0.490",
        "  fine-tuned           86.1%             0.410",
        "  difference            +1.7            -0.080",
        "  95% interval  -0.6 to +4.0  -0.120 to -0.040",
        "  -> fine-tune: its loss is lower",
        "  -> 4 epochs on 345 of 690 images in each of 2 folds, from a solved head; compared on 690 held-out images",
        "  -> predicted 4m 40s, took 4m 52s",
    ],
)
def test_terminal_has_the_trial(line: str) -> None:
    assert line in Report(replace(PROBE, trial=TRIAL)).text().splitlines()


def test_trial_that_was_ended_says_so_and_what_would_decide() -> None:
    planned = TrialSize(690, 5, 5, 6)
    cut = replace(TRIAL, planned=planned, num_folds=1, num_epochs=2.75, verdict="undecided", reason="it is short")
    text = Report(replace(PROBE, trial=cut)).text()
    assert "-> not decided: it is short; all images and epochs would take about 7m 00s\n" in text
    assert "-> 2.8 epochs on 345 of 690 images, from a solved head; compared on 690 held-out images\n" in text
    assert "took 4m 52s; the budget of 5m 00s ended it after 1 of 5 folds and 2.8 of 6 epochs\n" in text


def test_further_folds_of_the_trial_are_told() -> None:
    more = replace(TRIAL, planned=TrialSize(690, 2, 1, 4))
    line = "-> predicted 4m 40s, took 4m 52s; as time was left, for 2 folds instead of 1\n"
    assert line in Report(replace(PROBE, trial=more)).text()


def test_figures_of_the_trial_are_given_with_the_choice() -> None:
    assert Report(PROBE).tried_lines() == []
    assert Report(replace(PROBE, trial=TRIAL)).tried_lines()[:2] == [
        "fine-tune: its loss is lower",
        "fine-tuned 86.1%, linear probe 84.4%: +1.7 points (-0.6 to +4.0); log-loss 0.410 against 0.490",
    ]
    assert "+0.017 (-0.006 to +0.040); loss 0.410" in Report(replace(PROBE, metric="R2", trial=TRIAL)).tried_lines()[1]


def test_folds_that_are_not_repeated() -> None:
    text = Report(replace(PROBE, repeats=1)).text()
    assert "images; 5 folds, once; feature" in text
    assert "  -> body: 0.4 points less, 55% of the compute\n" in text


def test_terminal_has_five_images_of_a_ranking() -> None:
    assert Report(PROBE).text().count("rather bee") == 5


def test_what_would_act_on_a_terminal_is_spelt_out() -> None:
    assert "\\x1b[2J" in Report(replace(PROBE, backbones=[replace(OTHER, name="\x1b[2J")])).text()


def test_regression_has_no_points_labels_or_rankings() -> None:
    findings = Findings("small", None, None, None, None, 0.1)
    text = Report(replace(PROBE, metric="R2", backbones=[OTHER], leads=PROBE.leads, findings=findings)).text()
    assert "small     0.900  0.920 to 0.960" in text
    assert "0.041 more than small (0.011 to 0.071)" in text
    assert "0.900: there are no copies among the images" in text
    assert "Labels" not in text
    assert "%" not in text.replace("95% interval", "")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (None, "too few images a class to tell what more of them would bring"),
        ((1234.4, 20.0, math.inf), "about 1,234 more images a class for +1 point (20 to any number)"),
        (
            (math.inf, 20.0, math.inf),
            "further images are not expected to bring +1 point (interval: 20 to any number more a class)",
        ),
    ],
)
def test_outlook(more: tuple[float, float, float] | None, line: str) -> None:
    assert outlook_line(replace(LABELS, more=more)) == line


def test_best_earlier_stage_is_not_the_last() -> None:
    assert best_earlier_stage(STAGES) is STAGES[1]
    assert best_earlier_stage(STAGES[2:]) is None


def test_json_is_complete_and_has_null_for_what_is_not_finite() -> None:
    labels = replace(LABELS, more=(math.inf, 2.0, math.inf))
    found = json.loads(format_json(replace(PROBE, findings=replace(FINDINGS, labels=labels))))
    assert found["findings"]["labels"]["more"] == [None, 2.0, None]
    assert found["backbones"][0]["stages"][1]["compute"] == 0.55
    assert found["leads"] == [{"name": "small", "difference": 0.041, "interval": [0.011, 0.071]}]
    assert len(found["findings"]["issues"]["items"]) == 60


class _Tags(HTMLParser):
    """Counts tags, and refuses those that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_has_the_pictures_of_both_rankings() -> None:
    page = render_probe(PROBE, lambda row: f"PICTURE{row}")
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.count["figure"] == tags.count["img"] == 50 + 3
    assert tags.count["h2"] == 6
    assert (tags.count["tr"], tags.count["th"]) == (3 + 4 + 2, 10 + 5 + 4)
    assert page.count("src='data:image/jpeg;base64,PICTURE4'") == 53
    assert "big&lt;net&gt;" in page
    assert "<net>" not in page
    assert "val, ant: rather bee (margin -0.87)</b><br><span>a b.jpg</span>" in page


def test_page_of_images_without_thumbnails_has_boxes() -> None:
    page = render_probe(PROBE, lambda row: "")
    assert page.count("<div class='none'>") == 53
