"""A model that predicts, from its checkpoint alone."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_ft.errors import UserError
from lit_ft.model.checkpoint import hyper_parameters
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import find_best_checkpoint


def load(path: str | Path, device: str | torch.device | None = None) -> FineTuneModule:
    """The model of a checkpoint, in eval mode, ready to `predict`.

    Args:
        path: The checkpoint, or the folder of a run, whose best one is taken.
        device: Where it computes; ``None`` takes a GPU where there is one.

    Raises:
        UserError: If there is no such checkpoint, it is of something else, or the device is not there.

    Example:
        >>> import lit_ft
        >>> model = lit_ft.load("RUN/checkpoints/best.ckpt")  # doctest: +SKIP
        >>> model.predict(["a.jpg", "b.jpg"], top_k=3)  # doctest: +SKIP
    """
    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = found or torch.device("cpu")
    path = find_best_checkpoint(path)
    hyper_parameters(str(path), "predict", "")  # refuses what is no checkpoint of lit_ft
    try:
        module = FineTuneModule.load_from_checkpoint(path, map_location="cpu")
    except RuntimeError as error:  # of torch, over weights that are missing or of another shape
        reason = " ".join(" ".join(str(error).split("\n")[1:2]).split()) or str(error)
        raise UserError(f"`ckpt_path`: {path} has not the weights of its network ({reason})") from error
    try:
        return module.to(device)
    except RuntimeError as error:  # torch was built without it, or there is none
        raise UserError(f"device: {device} cannot be used ({str(error).splitlines()[0]}); give cpu") from error
