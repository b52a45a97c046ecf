"""Heads: a linear or cosine layer, or a small MLP, from the backbone's features to the logits, new or trained."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_ft.backbones.weights import torch_files
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.console import rank_zero_print
from lit_ft.errors import UserError, unknown
from lit_ft.model.checkpoint import all_hyperparameters
from lit_ft.tasks.classes import read_training_numbers
from lit_ft.tasks.standardisation import Standardisation

HeadKind = Literal["linear", "cosine"]

# What the authors' own code starts from: scale_cls in github.com/gidariss/FewShotWithoutForgetting.
START_SCALE = 10.0


@dataclass
class HeadConfig:
    """The layers for the new task.

    Args:
        hidden: Sizes of the hidden layers, each followed by a ReLU; none makes a head of one layer.
        dropout: Probability with which an input of each layer is dropped in training.
        kind: The last layer: linear, or cosine, a learnt scale times the cosine of features and class weights.
        zero_init: Start the last layer, weight and bias, at zero; for linear. For regression it always does.
        prior_bias: Start the last bias at the log of the training data's class shares or the log-odds of its labels,
            and for regression at the mean of its targets; for linear.

    Raises:
        UserError: If a size is below 1, the dropout is not in [0, 1), the kind is unknown, or options exclude another.
    """

    hidden: list[int] = field(default_factory=list)
    dropout: float = 0.0
    kind: HeadKind = "linear"
    zero_init: bool = False
    prior_bias: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"`model.head.dropout`: must be at least 0 and below 1, got {self.dropout}")
        if any(size < 1 for size in self.hidden):
            raise UserError(f"`model.head.hidden`: sizes must be at least 1, got {self.hidden}")
        if self.kind not in get_args(HeadKind):
            raise unknown("kind", str(self.kind), get_args(HeadKind), "`model.head.kind`")
        for key in ("zero_init", "prior_bias"):  # a weight of zeros has no direction, and there is no bias
            if getattr(self, key) and self.kind == "cosine":
                raise UserError(f"`model.head.{key}`: is for `model.head.kind` linear, not cosine")


class CosineLinear(nn.Module):
    """Logits ``scale * cos(features, weight_k)``: features ``(B, D)`` -> ``(B, K)``.

    The lengths of features and class weights do not count, nor is there a bias, so that classes with few images are not
    outdone by those whose weights grew long (`Gidaris and Komodakis 2018 <https://arxiv.org/abs/1804.09458>`_; it is
    the head of "Baseline++" in `Chen et al. 2019 <https://arxiv.org/abs/1904.04232>`_).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())
        # What the scale is above its start: a bias, so that neither weight decay nor a penalty draws the scale to zero.
        self.scale_bias = nn.Parameter(torch.zeros(1))

    @property
    def scale(self) -> Tensor:
        """The factor of the cosines ``(1,)``."""
        return START_SCALE + self.scale_bias

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, D)`` -> logits ``(B, K)``."""
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    def extra_repr(self) -> str:
        """The sizes, as `torch.nn.Linear` has them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def build_head(num_features: int, num_outputs: int, config: HeadConfig, task: str = "multiclass") -> nn.Sequential:
    """The head ``(B, D) -> (B, K)``: dropout and a layer, once for each hidden size and once for the outputs.

    With ``prior_bias`` the last bias is zero until `set_prior_bias`.

    >>> build_head(512, 10, HeadConfig(hidden=[64]))
    Sequential(
      (0): Linear(in_features=512, out_features=64, bias=True)
      (1): ReLU()
      (2): Linear(in_features=64, out_features=10, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for size in [*config.hidden, num_outputs]:
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        layers += [nn.Linear(num_features, size), nn.ReLU()]
        num_features = size
    layers.pop()  # no ReLU on the logits
    last = cast(nn.Linear, layers[-1])
    if config.kind == "cosine":
        layers[-1] = CosineLinear(last.in_features, last.out_features)
    # For regression, as random weights for large features would begin, and partly stay, far from the mean of targets.
    zero_init = config.zero_init or (task == "regression" and config.kind == "linear")
    if zero_init:
        nn.init.zeros_(last.weight)
    if zero_init or config.prior_bias:
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers)


def set_prior_bias(head: nn.Sequential, data: Any, task: str = "multiclass") -> None:
    """Starts the last bias ``(K,)`` so that with weights of zero the predictions are the shares of the training images.

    That is the log of the class shares, or for ``multilabel`` the log-odds of each label. The idea is that of
    `Lin et al. 2017 <https://arxiv.org/abs/1708.02002>`_, sec. 4.1. A class without an image counts as if it had one,
    and a label that all images have as if one had it not. A bias other than zero was set, trained or loaded before, and
    is left as it is.

    Raises:
        UserError: If the numbers are needed, and the data module does not know them; see `balanced_weights`.
    """
    bias = cast(nn.Linear, head[-1]).bias
    if bias.any():
        return
    option = "head.prior_bias", "prior_bias to false"
    counts = read_training_numbers(data, "counts", "the images of each class", *option)
    images = torch.tensor(counts, dtype=torch.float64)
    others = images.clamp(min=1).sum()
    if task == "multilabel":
        num_train = read_training_numbers(data, "sizes", "the number of images of each split", *option)
        others = (num_train - images).clamp(min=1)
    with torch.no_grad():
        bias.copy_((images.clamp(min=1) / others).log())


def takes_temperature(head: nn.Module) -> bool:
    """Whether the last layer of a head can take a temperature into its weights; that of a user's own may be any."""
    return isinstance(head, nn.Sequential) and isinstance(head[-1], (nn.Linear, CosineLinear))


def divide_logits(head: nn.Module, temperature: float) -> None:
    """Divides what a head gives by a temperature, in the weights of its last layer; see `takes_temperature`."""
    if temperature == 1:
        return
    last = cast(nn.Sequential, head)[-1]
    with torch.no_grad():
        if isinstance(last, CosineLinear):
            last.scale_bias.copy_(last.scale / temperature - START_SCALE)
        else:
            for parameter in last.parameters():
                parameter.div_(temperature)


@dataclass(frozen=True)
class TrainedHead:
    """The head in a lit_ft checkpoint, with its tensors by the head's own names."""

    path: str
    classes: list[str]
    task: str
    standardisation: Standardisation
    state: dict[str, Tensor]

    def load_into(self, head: nn.Module, classes: list[str], task: str) -> Standardisation | None:
        """Loads the tensors into a new head, if it is for the same classes and task and fits, and prints whether.

        For regression it returns mean and scale of the targets that the loaded head was trained on.
        """
        if (classes, task) != (self.classes, self.task):
            return None
        new = head.state_dict()
        if new.keys() != self.state.keys() or any(new[key].shape != self.state[key].shape for key in new):
            rank_zero_print(f"Head  new, as that of {self.path} has other layers")
            return None
        head.load_state_dict(self.state)
        rank_zero_print(f"Head  that of {self.path}, which was trained for the same {len(classes)} classes")
        return self.standardisation if task == "regression" else None


def read_trained_head(path: str | None) -> TrainedHead | None:
    """The head in a file of weights, if that is a lit_ft checkpoint; nothing in it is executed."""
    if path is None or not is_file_name(path) or path.endswith(".safetensors"):
        return None
    try:
        checkpoint = torch_files.load(Path(path).expanduser(), mmap=True)
    except (RuntimeError, pickle.UnpicklingError):
        return None  # a format, or content beside the weights, that no checkpoint of lit_ft has
    hparams = all_hyperparameters(checkpoint)
    if not isinstance(hparams.get("classes"), list):
        return None
    units = checkpoint.get("standardisation")
    standardisation = Standardisation.from_plain(units) if units else Standardisation.none(len(hparams["classes"]))
    states = checkpoint.get("state_dict", {}).items()
    # Copies, so that they do not keep the file open.
    state = {key.removeprefix("head."): tensor.clone() for key, tensor in states if key.startswith("head.")}
    return TrainedHead(path, hparams["classes"], str(hparams.get("task")), standardisation, state)
