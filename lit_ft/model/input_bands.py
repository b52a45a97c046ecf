"""Bands of raw images that a model takes: from its data when it is first fitted, and from its checkpoint later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, cast

import lightning as L

from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.backbones.stem import adapt_channels
from lit_ft.errors import UserError
from lit_ft.model.checkpoint import all_hyperparameters
from lit_ft.model.objective import WeightPenalty
from lit_ft.model.preprocessing import Normalise

_FOLLOW = ("bands", "channels", "mean", "std")
"""What follows from the bands of the data."""


class TakesBands(L.LightningModule):
    """A module that takes the bands of its data: it has a backbone, ``normalise`` and a penalty of its weights."""

    asked_input = InputConfig()
    """What its options say of its images."""

    def take_bands(self, data: Any, is_fit: bool) -> None:
        """Takes the bands of a data module, with mean and deviation of its training images, unless it has its own.

        The first convolution is adapted to their number.

        Args:
            data: The data module.
            is_fit: Whether the module is to be fitted to it.

        Raises:
            UserError: If it cannot take them.
        """
        own, given = cast(Any, self).backbone.spec, getattr(data, "input_spec", None)
        if own.bands is None and getattr(given, "bands", None) is None:
            return
        if (precision := str(self.trainer.precision)) in ("16-true", "bf16-true"):
            instead = precision.replace("true", "mixed")
            raise UserError(f"`trainer.precision`: {precision} would round raw values of bands; give {instead}")
        if own.bands is not None:
            return
        if not is_fit and cast(Any, self).run_seed is not None:
            raise UserError("`data.bands`: the model was fitted to photos of 8 bits; leave it out, or fit it with it")
        # A plan has mean and deviation of the weights that it leaves out.
        asked = replace(self.asked_input, mean=None, std=None) if _is_plan(self.trainer) else self.asked_input
        refuse_other_images(asked, cast(InputSpec, given))
        self._set_spec(own.with_channels_of(data.measured_spec()))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the bands of the checkpoint, if it has any."""
        saved = InputConfig.read(all_hyperparameters(checkpoint).get("input"))
        if saved.bands is not None:
            spec = saved.applied_to(cast(Any, self).backbone.spec)
            if spec != cast(Any, self).backbone.spec:
                self._set_spec(spec)
        super().on_load_checkpoint(checkpoint)

    def _set_spec(self, spec: InputSpec) -> None:
        module = cast(Any, self)
        adapt_channels(module.backbone, spec)
        module.normalise = Normalise.of(spec, module.backbone.memory_format).to(module.device)
        module.penalty = WeightPenalty(module.backbone, module.penalty.config)  # by the weights as they are now
        if hasattr(module, "objective"):
            module.objective.penalty = module.penalty
        self.hparams["input"] = plain_input(spec)


def _is_plan(trainer: L.Trainer) -> bool:
    return bool(getattr(trainer, "is_plan", False))


def plain_input(spec: InputSpec) -> dict[str, Any]:
    """What an `InputConfig` is made of that gives a spec, whatever the backbone."""
    return {**asdict(spec), "channels": spec.channels}


def refuse_other_images(asked: InputConfig, given: InputSpec) -> None:
    """Raises `UserError` for options of the model that contradict the bands of its data."""
    if asked.channels not in (None, given.channels):
        raise UserError(
            f"`model.input.channels`: {asked.channels}, but `data.bands` gives {given.channels}; leave it out"
        )
    for name in ("mean", "std"):
        if getattr(asked, name) is not None:
            raise UserError(
                f"`model.input.{name}`: is computed from the training images for `data.bands`; leave it out, or give "
                "`model.input.bands` with mean and std in the units of the files"
            )


def leave_out_bands(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The hyperparameters in a checkpoint and those of a model that is to go on from it, as they can be compared.

    Bands that the checkpoint's model took from its data are left out: those of the data are compared. So is what an
    earlier release did not know of images.
    """
    then, new = (dict(options.get("input") or {}) for options in (saved, now))
    came_later = then.get("bands") is not None and new.get("bands") is None
    left_out = {key for key in new if key not in then} | {*(_FOLLOW if came_later else ())}
    images = ({key: value for key, value in one.items() if key not in left_out} for one in (then, new))
    kept, given = ({**options, "input": one} for options, one in zip((saved, now), images, strict=True))
    return kept, given
