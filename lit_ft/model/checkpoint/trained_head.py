"""The trained head in a lit_ft checkpoint, for a run with the same classes."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lit_ft.backbones.weights import torch_files
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.console import rank_zero_print
from lit_ft.model.checkpoint.content import all_hyperparameters
from lit_ft.tasks.standardisation import Standardisation


@dataclass(frozen=True)
class TrainedHead:
    """The head in a lit_ft checkpoint.

    Args:
        path: The checkpoint.
        classes: The names of the classes that it was trained for.
        task: The name of the task.
        standardisation: For regression, mean and scale of the targets that it was trained on.
        state: Its tensors, by the head's own names.
    """

    path: str
    classes: list[str]
    task: str
    standardisation: Standardisation
    state: dict[str, Tensor]

    def load_into(self, head: nn.Module, classes: list[str], task: str) -> bool:
        """Loads the tensors into a head for the same classes and task, prints it, and returns whether it could.

        Args:
            head: The new head.
            classes: The names of its classes.
            task: The name of its task.
        """
        if (classes, task) != (self.classes, self.task):
            return False
        shapes = {key: tensor.shape for key, tensor in head.state_dict().items()}
        fits = shapes == {key: tensor.shape for key, tensor in self.state.items()}
        if fits:
            head.load_state_dict(self.state)
            rank_zero_print(f"Head  that of {self.path}, which was trained for the same {len(classes)} classes")
        else:
            rank_zero_print(f"Head  new, as that of {self.path} has other layers")
        return fits


def read_trained_head(path: str | None) -> TrainedHead | None:
    """The head in a file of weights, if that is a lit_ft checkpoint; nothing in it is executed."""
    if path is None or not is_file_name(path) or path.endswith(".safetensors"):
        return None
    try:
        checkpoint = torch_files.load(Path(path).expanduser(), mmap=True)
    except (RuntimeError, pickle.UnpicklingError):
        return None  # a format, or content beside the weights, that no checkpoint of lit_ft has
    hparams = all_hyperparameters(checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or not isinstance(hparams.get("classes"), list):
        return None
    units = checkpoint.get("standardisation")
    standardisation = Standardisation.from_plain(units) if units else Standardisation.none(len(hparams["classes"]))
    states = checkpoint.get("state_dict", {}).items()
    # Copies, so that they do not keep the file open.
    state = {key.removeprefix("head."): tensor.clone() for key, tensor in states if key.startswith("head.")}
    return TrainedHead(path, hparams["classes"], str(hparams.get("task")), standardisation, state)
