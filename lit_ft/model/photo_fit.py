"""How photos become the squares of a network: said by the data of a fit, recorded by the model, and kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import UserError


def settle_fit(module: Any, data: Any, is_fitted_on: bool) -> None:
    """Lets a model take the fit of the data that it is fitted on, and data that it is evaluated on take the model's.

    Args:
        module: The `FineTuneModule`.
        data: The data module; one that is not of lit_ft says nothing.
        is_fitted_on: Whether the model is to be fitted, so that only its options have been said.

    Raises:
        UserError: If both say it, and not the same.
    """
    if not isinstance(data, ImageDataModule):
        return
    spec: InputSpec = module.input_spec
    if is_fitted_on:  # as by its own options, but for bands that it has taken from its data
        spec = module.own_spec.with_channels_of(spec)
    if is_fitted_on and data.sees_whole_images:
        if module.asked_input.fit == "pad":
            raise UserError("`model.input.fit`: pad is for photos, and images in memory are squeezed; leave it out")
        spec = replace(spec, fit="squash", resize=spec.size)
    elif is_fitted_on:
        fit = data.fit or (data.spec.fit if data.spec else None)
        module.asked_input.refuse_fit(fit, "data.fit" if data.fit else "data.spec.fit")
        spec = spec.with_fit(fit)
    else:
        InputConfig(fit=spec.fit).refuse_fit(data.fit, "data.fit", is_fitted=True)
    module.take_spec(spec)
    data.take_spec(spec)
