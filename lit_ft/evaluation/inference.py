"""A model that predicts, from its checkpoint alone."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_ft.errors import UserError
from lit_ft.model.checkpoint import open_checkpoint
from lit_ft.model.image_model import ImageModel, build_model
from lit_ft.runs import find_best_checkpoint


def load(path: str | Path, device: str | torch.device | None = None) -> ImageModel:
    """The model of a checkpoint, in eval mode, ready to `predict`; without Lightning, which loads for seconds.

    What trains on, or is given to a trainer, is what `FineTuneModule.load_from_checkpoint` makes of the checkpoint.

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
    checkpoint = open_checkpoint(str(path))
    try:
        model = build_model(checkpoint)
    except RuntimeError as error:  # of torch, over weights that are missing or of another shape
        reason = " ".join(" ".join(str(error).split("\n")[1:2]).split()) or str(error)
        raise UserError(f"`ckpt_path`: {path} has not the weights of its network ({reason})") from error
    try:
        return model.to(device)
    except RuntimeError as error:  # torch was built without it, or there is none
        raise UserError(f"device: {device} cannot be used ({str(error).splitlines()[0]}); give cpu") from error
