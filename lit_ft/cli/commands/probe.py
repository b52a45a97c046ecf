"""``lit-ft probe``: what the features of backbones tell about a data set."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_ft.cli.config.defaults import as_plain, config_files
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.cli.failures import raise_user_errors
from lit_ft.console import rank_zero_print
from lit_ft.data.pages import make_folder, write_report
from lit_ft.errors import UserError, find_user_packages, for_command_line, refuse_unwritable
from lit_ft.evaluation.comparison import flatten
from lit_ft.model.module import FineTuneModule
from lit_ft.own_code import UserCodeError
from lit_ft.probes.comparison import Probe, probe_images
from lit_ft.probes.findings.label_table import write_label_table
from lit_ft.probes.images import ProbeImages, read_images
from lit_ft.probes.report import Report, format_json, render_probe
from lit_ft.probes.suggestion import format_suggestion, suggest_config
from lit_ft.probes.survey import BUILT_BY, BackboneChoice
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.training.trial_fit import TrialConfig, refuse_untried, try_fine_tuning
from lit_ft.unfreezing.callback import GradualUnfreezing

_OWN = ("name", "config", "backbones", "stages", "folder", "budget")
"""What no suggestion has: the command's own options, and the name, which is that of the file."""


def probe(cli: ConfigCLI) -> int:
    """Probes the backbones of a config on its data, prints what was found, and writes it where wanted."""
    config = cli.config
    own, choices = _own_backbone(cli), list(_choose_backbones(cli))
    _warn_left_out(own, [choice for choice in choices if choice.title != own.title])
    budget = None if config["budget"] is None else _read_budget(cli)
    folder = None if config["folder"] is None else make_folder(config["folder"])
    images = read_images(cli.make_data(), config["model"]["init_args"].get("class_weight"))
    on_gpu = torch.cuda.is_available() and config["trainer"]["accelerator"] in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if on_gpu else "cpu")
    found, best = probe_images(choices, images, device, config["stages"] == "all")
    if budget is not None:
        found = _try_fine_tuning(cli, images, found, best, device, budget)
    rank_zero_print(Report(found).text())
    if folder is not None:
        _write(folder, cli, images, found, best)
    return 0


def _write(folder: Path, cli: ConfigCLI, images: ProbeImages, found: Probe, best: BackboneChoice) -> None:
    suggested = folder / "suggested.yaml"
    texts = {
        "probe.json": format_json(found),
        "probe.html": render_probe(found, images.thumbnail),
        suggested.name: _suggest(cli, found, best, suggested),
    }
    write_report(folder, texts)
    if found.findings.issues is not None and images.data.in_files:
        table = folder / "label_issues.csv"
        with refuse_unwritable(table):
            write_label_table(table, images, found.findings.issues)
        rank_zero_print(f"Written: {table}")
    rank_zero_print(f"Run: lit-ft finetune --config {shlex.quote(str(suggested))}")


def _suggest(cli: ConfigCLI, found: Probe, best: BackboneChoice, file: Path) -> str:
    """The config that is suggested, and the figures behind that."""
    is_probe = found.trial is not None and found.trial.verdict == "linear probe"
    config = suggest_config(_plain_config(cli), best, is_probe)
    report, given = Report(found), ", ".join(config_files(cli.config)) or "given"
    measured = "Backbone, weights and unfreezing" if is_probe else "Backbone and weights"
    header = [
        f"Suggested by lit-ft probe for {report.title}.",
        f"{measured} were measured, all else is as in {given}.",
        "",
        f"  lit-ft finetune --config {shlex.quote(str(file))}",
    ]
    comments = {"    backbone": report.choice_lines()}
    tried = report.tried_lines()
    if "unfreeze" in config:
        comments["unfreeze"] = tried
    else:
        comments["    backbone"] += tried
    return format_suggestion(config, comments, header)


def _plain_config(cli: ConfigCLI) -> dict[str, Any]:
    """What the config has beside defaults and the command's own options."""
    dumped = cli.parser.dump(cli.config.clone(), skip_unset=False, skip_default=True)
    return {key: value for key, value in yaml.safe_load(dumped).items() if key not in _OWN}


def _try_fine_tuning(
    cli: ConfigCLI, images: ProbeImages, found: Probe, best: BackboneChoice, device: torch.device, budget: float
) -> Probe:
    """Adds the trial of the config that is suggested, or why there is none: what was found before is not lost."""
    parsed = cli.parser.parse_object(suggest_config(_plain_config(cli), best))
    model, unfreeze = parsed["model"], parsed["unfreeze"]
    unfreeze["init_args"]["head_fit"] = "solved"
    if "compile" in model["init_args"]:
        model["init_args"]["compile"] = False  # which takes longer than so short a fit

    def build() -> tuple[FineTuneModule, GradualUnfreezing]:
        made = cli.make(model=model, unfreeze=unfreeze)
        return made["model"], made["unfreeze"]

    trainer = cli.config["trainer"].as_dict()
    trial = TrialConfig(build, unfreeze["init_args"]["strategy"], trainer, device, budget)
    try:
        with raise_user_errors(find_user_packages(cli.config.as_dict())):
            return replace(found, trial=try_fine_tuning(trial, images, found.best))
    except UserCodeError:
        raise
    except UserError as error:
        return replace(found, notes=[*found.notes, f"fine-tuning was not tried: {for_command_line(error.args[0])}"])


def _read_budget(cli: ConfigCLI) -> float:
    """The seconds of ``--budget``.

    Raises:
        UserError: If it is no duration, or the config leaves nothing to try.
    """
    text = cli.config["budget"]
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise UserError(f"`budget`: {text!r} is no duration above 0; give one such as 90s, 5m or 1h")
    unfreeze = cli.config["unfreeze"]
    options = None if unfreeze is None else as_plain(unfreeze["init_args"])
    refuse_untried(cli.model_options(), options, cli.config["trainer"]["max_epochs"])
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _own_backbone(cli: ConfigCLI) -> BackboneChoice:
    """The backbone of the config."""
    model = cli.model_options()
    if "backbone" not in model:
        raise UserError("`model.backbone`: is missing; name one, or give `backbones`")
    return BackboneChoice(
        model["backbone"], model.get("weights"), {key: model[key] for key in BUILT_BY if key in model}
    )


def _choose_backbones(cli: ConfigCLI) -> Iterator[BackboneChoice]:
    """The backbones that ``--backbones`` names, or the config's own.

    Raises:
        UserError: If one has no name, or comes twice.
    """
    own = _own_backbone(cli)
    if cli.config["backbones"] is None:
        yield own
        return
    seen: set[str] = set()
    for part in cli.config["backbones"].split(","):
        name, given, weights = (text.strip() for text in part.partition("="))
        if not name or name in seen:
            empty = f"{cli.config['backbones']!r} has an empty name; give names with one comma between two"
            raise UserError(f"`backbones`: {f'{name} comes twice; leave one out' if name else empty}")
        seen.add(name)
        if name != own.title:
            yield BackboneChoice(name, _weights(weights) if given else "DEFAULT")
        else:
            yield BackboneChoice(own.name, _weights(weights) if given else own.weights, own.options)


def _warn_left_out(own: BackboneChoice, others: Sequence[BackboneChoice]) -> None:
    """Warns of options of the config's own backbone that the others do not have."""
    given = [f"`model.{name}`" for name, value in flatten(own.options) if value != BUILT_BY.get(name)]
    if given and others:
        names = ", ".join(choice.title for choice in others)
        rank_zero_warn(
            f"{', '.join(given)}: left out for {names}, as it is for {own.title}, the backbone of the config; to probe "
            f"another one with it: `model.backbone` {others[0].title}"
        )


def _weights(text: str) -> str | None:
    return None if text in ("null", "") else text
