"""``lit-ft probe``: what the features of backbones tell about a data set."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from lit_ft.cli.config.defaults import config_files
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.console import rank_zero_print
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.pages import make_folder, write_report
from lit_ft.errors import UserError, refuse_unwritable
from lit_ft.probes.comparison import Probe, probe_images
from lit_ft.probes.findings.label_table import write_label_table
from lit_ft.probes.images import ProbeImages, read_images
from lit_ft.probes.report import Report, format_json, render_probe
from lit_ft.probes.suggestion import format_suggestion
from lit_ft.probes.survey import BUILT_BY, BackboneChoice

_OWN = ("name", "config", "backbones", "stages", "folder")
"""What no suggestion has: the command's own options, and the name, which is that of the file."""


def probe(cli: ConfigCLI) -> int:
    """Probes the backbones of a config on its data, prints what was found, and writes it where wanted."""
    config = cli.config
    choices = list(_choose_backbones(cli))
    folder = None if config["folder"] is None else make_folder(config["folder"])
    images = read_images(cli.make_data())
    on_gpu = torch.cuda.is_available() and config["trainer"]["accelerator"] in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if on_gpu else "cpu")
    found, best = probe_images(choices, images, device, config["stages"] == "all")
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
    if found.findings.issues is not None and isinstance(images.data, PhotoDataModule):
        table = folder / "label_issues.csv"
        with refuse_unwritable(table):
            write_label_table(table, images, found.findings.issues)
        rank_zero_print(f"Written: {table}")
    rank_zero_print(f"Run: lit-ft finetune --config {shlex.quote(str(suggested))}")


def _suggest(cli: ConfigCLI, found: Probe, best: BackboneChoice, file: Path) -> str:
    """The config with the best backbone, and the figures behind that."""
    dumped = cli.parser.dump(cli.config.clone(), skip_unset=False, skip_default=True)
    config = {key: value for key, value in yaml.safe_load(dumped).items() if key not in _OWN}
    report, given = Report(found), ", ".join(config_files(cli.config)) or "given"
    header = [
        f"Suggested by lit-ft probe for {report.title}.",
        f"Backbone and weights were measured, all else is as in {given}.",
        "",
        f"  lit-ft finetune --config {shlex.quote(str(file))}",
    ]
    return format_suggestion(config, best, report.choice_lines(), header)


def _choose_backbones(cli: ConfigCLI) -> Iterator[BackboneChoice]:
    """The backbones that ``--backbones`` names, or the config's own.

    Raises:
        UserError: If one has no name, or comes twice.
    """
    model = cli.model_options()
    if "backbone" not in model:
        raise UserError("`model.backbone`: is missing; name one, or give `backbones`")
    own = BackboneChoice(model["backbone"], model.get("weights"), {key: model[key] for key in BUILT_BY if key in model})
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


def _weights(text: str) -> str | None:
    return None if text in ("null", "") else text
