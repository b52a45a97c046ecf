"""The options of a run, and which of them may differ when it is resumed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from pkgutil import resolve_name
from typing import Any

from lit_ft.backbones.weights.torch_files import plain
from lit_ft.errors import UserError

RUN_ENDS = frozenset(f"trainer.{limit}_{what}" for limit in ("max", "min") for what in ("epochs", "steps"))
"""The options of where a run ends, beside its time."""

MAY_DIFFER = RUN_ENDS | frozenset(
    {
        # The machine. What it can do decides on precision, too; in any mixed one, weights are kept in float32.
        "trainer.accelerator", "trainer.strategy", "trainer.devices", "trainer.num_nodes", "trainer.precision",
        "trainer.plugins", "trainer.sync_batchnorm", "trainer.use_distributed_sampler", "trainer.deterministic",
        "trainer.benchmark", "trainer.inference_mode", "model.compile", "model.gradient_checkpointing",
        # How many images make a step: learning rates follow the progress in epochs.
        "data.batch_size", "trainer.accumulate_grad_batches",
        "trainer.max_time",
        # What is shown, logged, or done beside the training.
        "trainer.fast_dev_run", "trainer.logger", "trainer.log_every_n_steps", "trainer.enable_checkpointing",
        "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.enable_autolog_hparams",
        "trainer.num_sanity_val_steps", "trainer.limit_test_batches", "trainer.limit_predict_batches",
        "trainer.profiler", "trainer.detect_anomaly", "trainer.barebones", "trainer.model_registry",
        # Where files are and how they are read: the images themselves are compared.
        "trainer.default_root_dir", "data.root", "data.table", "data.class_names_from", "data.download",
        "data.predict", "data.num_workers", "data.cache", "data.chunk_cache", "data.on_bad_image",
        # The weights that it began with, and the classes, which are compared by name.
        "model.weights", "model.source_weights", "model.partial_weights", "model.classes",
    }
)  # fmt: skip
"""What a resumed run may have otherwise than the run that wrote its checkpoint; all else must be the same."""


def run_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the class of the model, of data, plan, seed and trainer, by the options, in plain types.

    Of callbacks it has those alone that average weights; others follow a run without changing it.
    """
    trainer = dict(config["trainer"])
    callbacks = [_plain(callback) for callback in trainer.pop("callbacks", None) or ()]
    unfreeze = _of_class("unfreeze", config.get("unfreeze"))
    if phases := unfreeze.get("unfreeze.phases"):
        unfreeze["unfreeze.phases"] = [*phases[:-1], {**phases[-1], "epochs": None}]  # the last lasts to the end
    return {
        "seed_everything": config.get("seed_everything"),
        "model": _of_class("model", config.get("model"))["model"],  # its options are in the hyperparameters
        **_of_class("data", config.get("data")),
        **unfreeze,
        **{f"trainer.{name}": _plain(value) for name, value in trainer.items()},
        "trainer.callbacks": [c for c in callbacks if isinstance(c, dict) and "Averaging" in c.get("class_path", "")],
    }


def refuse_other_options(path: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `UserError` with all options that may not differ and have other values ``now`` than in a checkpoint's run.

    One that is not ``saved``, as by an earlier version, may be any.
    """
    if others := list_differences(saved, now, MAY_DIFFER):
        raise UserError(
            f"`ckpt_path`: {path} is of a run with {'; '.join(others)}; give the same, or start from its weights with "
            f"`model.weights` {path}"
        )


def list_differences(saved: Mapping[str, Any], now: Mapping[str, Any], may_differ: Collection[str]) -> list[str]:
    """What differs between the options of two runs, but for those that may; of the others, those that both have.

    >>> list_differences({"model.lr": 0.1}, {"model.lr": 0.5, "model.head": None}, ())
    ['`model.lr` 0.1, but this one has 0.5']
    """
    others, saved = list[str](), _part_images(saved)
    for key, value in _part_images(now).items():
        earlier = saved.get(key, value)
        if key in ("model", "data", "unfreeze") and earlier is not None:
            earlier = _class_name(str(earlier))
        if earlier != value and key not in may_differ:
            then, given = ("null" if one is None else one for one in (earlier, value))
            others.append(f"`{key}` {then}, but this one has {given}")
    return others


def _part_images(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with each one of the images by itself: all are settled, and mostly one differs."""
    images = options.get("model.input")
    if not isinstance(images, dict):
        return dict(options)
    rest = {key: value for key, value in options.items() if key != "model.input"}
    return {**rest, **{f"model.input.{key}": value for key, value in images.items()}}


def _of_class(key: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A class and its options, with the defaults of those that are not given."""
    if given is None:
        return {key: None}
    cls = resolve_name(given["class_path"])
    options = {**_defaults(cls), **(given.get("init_args") or {}), **(given.get("dict_kwargs") or {})}
    named = {f"{key}.{option}": _plain(value) for option, value in options.items()}
    return {key: _class_name(f"{cls.__module__}.{cls.__qualname__}"), **named}


def _class_name(path: str) -> str:
    """The path of a class; of one of lit_ft without the module, which differs between its releases."""
    return f"lit_ft.{path.rpartition('.')[2]}" if path.startswith("lit_ft.") else path


def _defaults(cls: type) -> dict[str, Any]:
    """The options of a class that have a default, with those that it hands on to its parents."""
    found: dict[str, Any] = {}
    for home in cls.__mro__:
        parameters = list(inspect.signature(home.__init__).parameters.values())[1:]  # type: ignore[misc]
        for parameter in parameters:
            if parameter.default is not parameter.empty:
                found.setdefault(parameter.name, parameter.default)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _plain(value: Any) -> Any:
    """A value in types that a checkpoint can hold and be read without running code; what has no such form is text."""
    return json.loads(json.dumps(plain(value), default=str))
