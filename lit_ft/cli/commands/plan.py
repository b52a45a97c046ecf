"""``lit-ft plan``: a config reduced to what its plan depends on."""

from __future__ import annotations

from dataclasses import asdict

from jsonargparse import Namespace

from lit_ft.backbones.build import input_spec
from lit_ft.backbones.input_spec import InputConfig
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.cli.config.defaults import as_plain
from lit_ft.training.trainer import refuse_unknown_names

_HERE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": None, "plugins": None}


def remove_effects(config: Namespace) -> None:
    """Leaves of a config what its plan depends on: no weights, no files, and no other processor than this one.

    Args:
        config: The config, which is changed.

    Raises:
        UserError: If it names a strategy or an accelerator that does not exist.
    """
    model = config["model"]["init_args"]
    if "backbone" in model and "weights" in model:
        images = InputConfig(**as_plain(model["input"] or {}))
        spec = images.applied_to(input_spec(as_plain(model["backbone"]), model["weights"]))
        if model["weights"] is not None and not is_file_name(model["weights"]):  # what is published does fit
            model["weights"] = None
        model["input"] = Namespace({**asdict(spec), "mean": list(spec.mean), "std": list(spec.std)})
    refuse_unknown_names(config["trainer"])
    config["trainer"].update(Namespace({**_HERE, "logger": False, "num_sanity_val_steps": 0}))
    config["report"] = Namespace(class_path="lit_ft.RunReport", init_args=Namespace())
