"""A search as its config has it: what is refused before the first trial, and what a study must have in common."""

from __future__ import annotations

import copy
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.cli.lightning import FineTuneCLI
from lit_ft.cli.trial import config_args
from lit_ft.console import format_path
from lit_ft.data.fingerprint import digest
from lit_ft.errors import UserError
from lit_ft.runs import find_best_callback
from lit_ft.tasks.monitored import Mode
from lit_ft.training.run_options import MAY_DIFFER
from lit_ft.tuning.space import Dimension, TuneConfig, list_combinations, read_space

# Of what a resumed run may have otherwise, what gives values that cannot be compared with those of other trials.
_SAME = {
    "data.batch_size", "trainer.precision", "trainer.accumulate_grad_batches", "trainer.max_epochs",
    "trainer.min_epochs", "trainer.max_steps", "trainer.min_steps", "trainer.max_time",
}  # fmt: skip

# What has no say in the values of trials.
_BESIDE = ("report", "predictions", "feature_cache.folder", "name", "refit")

_IMAGES = "images"  # among the options, and none of them


@dataclass(frozen=True)
class Search:
    """What is searched, and where it is kept.

    Args:
        config: The options of the search.
        space: What is tried.
        base: The config of a run, as plain values, without the search.
        folder: The folder of the study.
        monitor: The validation metric.
        mode: Whether its least or its greatest value is best.
        images: Stands for the images and their splits, if the data module tells them apart.
    """

    config: TuneConfig
    space: Mapping[str, Dimension]
    base: Mapping[str, Any]
    folder: Path
    monitor: str
    mode: Mode
    images: str | None = None

    @property
    def seed(self) -> int | None:
        """The seed of all trials, and of what is drawn; None for another one each time."""
        seed = self.base["seed_everything"]
        return None if isinstance(seed, bool) else seed

    @cached_property
    def num_trials(self) -> int:
        """Number of trials of all processes: as many as differ, at most."""
        every = None if self.seed is None else list_combinations(self.space)
        return self.config.trials if every is None else min(self.config.trials, len(every))

    @property
    def best_config(self) -> Path:
        """The config of the best trial."""
        return self.folder / "best.yaml"

    @property
    def features(self) -> Path:
        """The folder of cached features that trials share."""
        return self.folder / "features"

    @property
    def trial_config(self) -> dict[str, Any]:
        """The config of a trial, that what is drawn is laid over: on one device, in the folder of the study."""
        base = copy.deepcopy(dict(self.base))
        base |= {"name": self.folder.name, "refit": False}
        base["trainer"]["devices"] = _one_device(base["trainer"]["devices"])
        return base

    @property
    def settings(self) -> dict[str, Any]:
        """What all processes of the study must have in common, by the names of options."""
        options = {name: value for name, value in _flatten(self.base) if _has_a_say(name)}
        every = {**options, "tune.space": self.config.space, _IMAGES: self.images}
        return dict(json.loads(json.dumps(every, default=str)))


def read_search(cli: ConfigCLI) -> Search:
    """The search of a config.

    Raises:
        UserError: If a run of the config would be refused, or cannot be a trial.
    """
    given = {key: value for key, value in cli.config["tune"].as_dict().items() if key != "__path__"}
    config = TuneConfig(**given)
    space = read_space(config.space)
    base = dump_config(cli, cli.config)
    refuse_options(base, config)
    plan = _make_plan(base)
    callback = find_best_callback(plan.trainer)
    folder = Path(base["trainer"]["default_root_dir"] or ".", f"{base['name']}_tune")
    images = json.dumps(plan.datamodule.fingerprint()) if hasattr(plan.datamodule, "fingerprint") else None
    known = None if images is None else digest([images.encode()])
    return Search(config, space, base, folder, callback.monitor, callback.mode, known)


def check_space(search: Search) -> None:
    """Makes a plan with each value of a choice, and with the least and the greatest of a range, by itself.

    Raises:
        UserError: If one is refused.
    """
    for name, dimension in search.space.items():
        for value in dimension.values:
            try:
                _make_plan(search.base, {name: value})
            except UserError as error:
                line = error.args[0]
                where = "" if name in line else f"{name} {json.dumps(value)}: "
                raise UserError(f"`tune.space`: {where}{line}") from error


def refuse_other_study(search: Search, saved: Mapping[str, Any]) -> None:
    """Raises `UserError` if a study was begun with other options or images, so that trials could not be compared."""
    others = [
        f"`{name}` {json.dumps(saved[name])}, but this command has {json.dumps(value)}"
        for name, value in search.settings.items()
        if name in saved and saved[name] != value and name != _IMAGES
    ]
    if not others and saved.get(_IMAGES, search.images) != search.images:
        raise UserError(
            f"{format_path(search.folder)}: this study has trials of other images; give the same, or another `name`"
        )
    if others:
        raise UserError(
            f"{format_path(search.folder)}: this study has {'; '.join(others)}; give the same, or another `name`"
        )


def dump_config(cli: ConfigCLI, config: Any) -> dict[str, Any]:
    """A config as plain values, without the search."""
    config = config.clone()
    for key in ("config", "tune"):
        config.pop(key, None)
    return dict(yaml.safe_load(cli.parser.dump(config, skip_unset=False)))


def _make_plan(*parts: Mapping[str, Any]) -> FineTuneCLI:
    """What `lit-ft plan` does, without what it prints: what is refused there is refused here."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = FineTuneCLI("plan", config_args(*parts))
        plan.execute()
    return plan


def refuse_options(base: Mapping[str, Any], config: TuneConfig) -> None:
    """Raises `UserError` for options of a run that a trial cannot have."""
    trainer = base["trainer"]
    if base["checkpoint"] is None:
        raise UserError("`checkpoint`: null leaves no metric to compare trials by; leave it out")
    data = (base["data"] or {}).get("init_args") or {}
    if data.get("folds") and data.get("fold") is None:
        raise UserError("`data.folds`: a trial has one validation split; leave it out, or give `data.fold` 1")
    if trainer["fast_dev_run"]:
        raise UserError("`trainer.fast_dev_run`: a trial needs the folder of a run; leave it out")
    for name, is_one in (("devices", _one_device(trainer["devices"])), ("num_nodes", trainer["num_nodes"] == 1)):
        if not is_one:
            raise UserError(
                f"`trainer.{name}`: {trainer[name]}, but each trial has one device; give 1, and start the command once "
                "more for each device, as with CUDA_VISIBLE_DEVICES=1"
            )
    loggers = trainer["logger"] if isinstance(trainer["logger"], list) else [trainer["logger"]]
    for one in loggers:
        if isinstance(one, Mapping) and (version := (one.get("init_args") or {}).get("version")) is not None:
            raise UserError(
                f"`trainer.logger`: with the version {version} each trial would replace the run of the one before; "
                "leave it out"
            )
    if trainer["max_epochs"] is not None and 0 <= trainer["max_epochs"] < config.least_epochs:
        raise UserError(
            f"`tune.least_epochs`: {config.least_epochs} are more than `trainer.max_epochs` {trainer['max_epochs']}"
        )


def _one_device(given: Any) -> Any:
    """What names one device, which may be a certain one, as ``[1]`` does; None for several."""
    if given in ("auto", 1, "1"):
        return 1
    is_one = len(given) == 1 if isinstance(given, list) else re.fullmatch(r"\d+,", str(given))
    return given if is_one else None


def _has_a_say(name: str) -> bool:
    is_beside = any(name == one or name.startswith(f"{one}.") for one in _BESIDE)
    return not is_beside and (name not in MAY_DIFFER or name in _SAME)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a config by their names; of a class its path, and its options."""
    for key, value in config.items():
        if key == "class_path":
            yield prefix.removesuffix("."), value
        elif key == "init_args" or isinstance(value, dict):
            yield from _flatten(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
