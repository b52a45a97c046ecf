"""The part of a probe's report about its fine-tuning trial."""

from __future__ import annotations

from collections.abc import Sequence

from lit_ft.console import format_duration
from lit_ft.probes.score_format import ScoreFormat
from lit_ft.probes.trial import Trial, Verdict

_VERDICTS: dict[Verdict, str] = {
    "fine-tune": "fine-tune",
    "linear probe": "the linear probe is enough",
    "undecided": "not decided",
}


def trial_rows(trial: Trial, form: ScoreFormat) -> list[Sequence[str]]:
    """A table of the linear probe and the fine-tuned model."""
    score, loss = trial.comparison.score, trial.comparison.loss
    return [
        ("model", form.metric, form.loss),
        ("linear probe", form.score(score.probe), f"{loss.probe:.3f}"),
        ("fine-tuned", form.score(score.tuned), f"{loss.tuned:.3f}"),
        ("difference", form.signed(score.change), f"{loss.change:+.3f}"),
        ("95% interval", form.signed(*score.interval), "{:+.3f} to {:+.3f}".format(*loss.interval)),
    ]


def trial_lines(trial: Trial) -> list[str]:
    """What follows from that table, what was tried, and how long it took."""
    verdict = f"{_VERDICTS[trial.verdict]}: {trial.reason}"
    if trial.verdict == "undecided" and trial.whole_seconds > trial.budget:
        verdict += f"; all images and epochs would take about {format_duration(trial.whole_seconds)}"
    return [verdict, _setting(trial), _times(trial)]


def choice_lines(trial: Trial, form: ScoreFormat) -> list[str]:
    """The figures behind the choice of the unfreezing."""
    score, loss = trial.comparison.score, trial.comparison.loss
    change = f"{form.signed(score.change)}{form.unit} ({form.signed(*score.interval)})"
    scores = f"fine-tuned {form.score(score.tuned)}, linear probe {form.score(score.probe)}: {change}"
    verdict, setting, _ = trial_lines(trial)
    return [verdict, f"{scores}; {form.loss} {loss.tuned:.3f} against {loss.probe:.3f}", setting]


def _setting(trial: Trial) -> str:
    folds = f" in each of {trial.num_folds} folds" if trial.num_folds > 1 else ""
    tried = f"{round(trial.num_epochs, 1):g} epochs on {trial.num_train:,} of {trial.num_images:,} images{folds}"
    return f"{tried}, from a solved head; compared on {trial.num_held_out:,} held-out images"


def _times(trial: Trial) -> str:
    planned, done = trial.planned, []
    if trial.num_folds < planned.num_tried:
        done.append(f"{trial.num_folds} of {planned.num_tried} folds")
    if trial.num_epochs < planned.num_epochs:
        done.append(f"{round(trial.num_epochs, 1):g} of {planned.num_epochs} epochs")
    end = f"; the budget of {format_duration(trial.budget)} ended it after {' and '.join(done)}" if done else ""
    if trial.num_folds > planned.num_tried:
        end = f"; as time was left, for {trial.num_folds} folds instead of {planned.num_tried}"
    return f"predicted {format_duration(trial.predicted_seconds)}, took {format_duration(trial.seconds)}{end}"
