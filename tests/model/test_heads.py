from types import SimpleNamespace

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from small_runs import FewDigits, small_module, small_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.errors import UserError
from lit_ft.model.heads import START_SCALE, HeadConfig, build_head, read_trained_head, set_prior_bias
from lit_ft.model.objective import PenaltyConfig, WeightPenalty
from lit_ft.optim.optimizers import build_param_groups


def layers(head):
    return [
        (type(m).__name__, getattr(m, "in_features", None), getattr(m, "out_features", getattr(m, "p", None)))
        for m in head
    ]


def test_default_is_one_linear_layer():
    assert layers(build_head(8, 3, HeadConfig())) == [("Linear", 8, 3)]


def test_hidden_layers_follow_one_another_with_relu_between():
    assert layers(build_head(8, 3, HeadConfig(hidden=[5, 4]))) == [
        ("Linear", 8, 5),
        ("ReLU", None, None),
        ("Linear", 5, 4),
        ("ReLU", None, None),
        ("Linear", 4, 3),
    ]


def test_dropout_stands_before_each_linear_layer():
    head = build_head(8, 3, HeadConfig(hidden=[5], dropout=0.25))
    assert layers(head)[::2] == [("Dropout", None, 0.25), ("ReLU", None, None), ("Linear", 5, 3)]
    assert isinstance(head[3], nn.Dropout)
    assert head[3].p == 0.25


def test_logits_are_those_of_the_formula():
    head = build_head(8, 3, HeadConfig(hidden=[5], dropout=0.5)).eval()
    features = torch.randn(4, 8)
    first, second = head[1], head[4]
    hidden = (features @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(head(features), hidden @ second.weight.T + second.bias)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dropout": 1.0}, "model.head.dropout: must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "model.head.dropout: must be at least 0 and below 1, got -0.1"),
        ({"hidden": [5, 0]}, r"model.head.hidden: sizes must be at least 1, got \[5, 0\]"),
        ({"kind": "cosin"}, r"model.head.kind: unknown kind 'cosin'; nearest: cosine .*"),
        (
            {"kind": "cosine", "zero_init": True},
            "model.head.zero_init: is for model.head.kind linear, not cosine",
        ),
        (
            {"kind": "cosine", "prior_bias": True},
            "model.head.prior_bias: is for model.head.kind linear, not cosine",
        ),
    ],
)
def test_impossible_head_is_refused(options, text):
    with pytest.raises(UserError, match=f"^{text}$"):
        HeadConfig(**options)


def test_cosine_layer_is_the_last_and_follows_its_formula():
    torch.manual_seed(0)
    head = build_head(8, 3, HeadConfig(hidden=[5], dropout=0.5, kind="cosine")).eval()
    assert layers(head)[-2:] == [("Dropout", None, 0.5), ("CosineLinear", 5, 3)]
    assert {name for name, _ in head[-1].named_parameters()} == {"weight", "scale_bias"}
    nn.init.constant_(head[-1].scale_bias, 2.5)
    features = torch.randn(4, 8)
    hidden = (features @ head[1].weight.T + head[1].bias).clamp(min=0)
    weight = head[-1].weight
    cosines = hidden @ weight.T / hidden.norm(dim=1, keepdim=True) / weight.norm(dim=1)
    torch.testing.assert_close(head(features), (START_SCALE + 2.5) * cosines)


def test_cosine_layer_minds_no_lengths_and_bears_features_of_zeros():
    torch.manual_seed(0)
    head = build_head(8, 3, HeadConfig(kind="cosine"))
    features = torch.randn(4, 8)
    before = head(features)
    assert before.abs().max() < START_SCALE
    with torch.no_grad():
        head[-1].weight[1] *= 7
    torch.testing.assert_close(head(features * torch.tensor([[0.1], [1], [5], [30]])), before)
    torch.testing.assert_close(head(head[-1].weight)[0, 0], torch.tensor(START_SCALE))
    zeros = torch.zeros(2, 8, requires_grad=True)
    logits = head(zeros)
    logits.sum().backward()
    assert not logits.any()
    assert zeros.grad.isfinite().all()


def test_scale_of_cosines_trains_but_neither_decay_nor_penalty_draws_it_to_zero():
    head = build_head(8, 3, HeadConfig(kind="cosine"))
    head(torch.randn(4, 8))[:, 0].sum().backward()
    assert head[-1].scale_bias.grad.abs() > 0
    decay, none = build_param_groups({"head": [head]}, 1.0, 1.0)
    assert "weight_decay" not in decay
    assert decay["params"] == [head[-1].weight]
    assert none["weight_decay"] == 0.0
    assert none["params"][0] is head[-1].scale_bias
    penalty = WeightPenalty(nn.Identity(), PenaltyConfig("l2"))(nn.Identity(), head)
    torch.testing.assert_close(penalty, 0.005 * head[-1].weight.square().sum())


def test_zeros_are_for_the_last_layer_alone():
    head = build_head(8, 3, HeadConfig(hidden=[5], zero_init=True))
    assert not head[-1].weight.any()
    assert not head[-1].bias.any()
    assert head[0].weight.all()
    assert head[0].bias.all()
    assert not head(torch.randn(4, 8)).any()


def counted(*train, **others):
    """A data module that counts its images."""
    return SimpleNamespace(counts=lambda: {"train": list(train), "val": [9] * len(train)}, **others)


def test_first_softmax_is_the_shares_of_the_classes():
    head = build_head(8, 3, HeadConfig(hidden=[5], zero_init=True, prior_bias=True))
    set_prior_bias(head, counted(6, 3, 1))
    torch.testing.assert_close(head(torch.randn(4, 8)).softmax(1), torch.tensor([[0.6, 0.3, 0.1]]).expand(4, 3))
    torch.testing.assert_close(head[-1].bias.exp(), torch.tensor([0.6, 0.3, 0.1]))


def test_class_without_images_counts_as_if_it_had_one():
    head = build_head(8, 3, HeadConfig(prior_bias=True))
    assert head[-1].weight.all()
    set_prior_bias(head, counted(6, 0, 3))
    torch.testing.assert_close(head[-1].bias.exp(), torch.tensor([0.6, 0.1, 0.3]))


def test_shares_are_set_once():
    head = build_head(8, 2, HeadConfig(prior_bias=True))
    set_prior_bias(head, counted(1, 3))
    for other in (counted(3, 1), None):
        set_prior_bias(head, other)
        torch.testing.assert_close(head[-1].bias.exp(), torch.tensor([0.25, 0.75]))


def test_shares_that_nobody_knows_are_asked_for():
    with pytest.raises(
        UserError, match=r"^model.head.prior_bias: the data module has no counts\(\) .*prior_bias to false$"
    ):
        set_prior_bias(build_head(8, 2, HeadConfig(prior_bias=True)), None)


def test_labels_start_at_their_odds():
    head = build_head(8, 3, HeadConfig(zero_init=True, prior_bias=True))
    set_prior_bias(head, counted(5, 0, 20, sizes=lambda: {"train": 20}), "multilabel")
    # of 20 images; a label that none or all have counts as if one had it, or had it not
    assert torch.allclose(head(torch.randn(2, 8)), torch.tensor([5 / 15, 1 / 20, 20 / 1]).log().expand(2, 3))
    with pytest.raises(UserError, match=r"^model.head.prior_bias: the data module has no sizes\(\) "):
        set_prior_bias(build_head(8, 3, HeadConfig(prior_bias=True)), counted(5, 0, 20), "multilabel")


DIGITS = [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A module after a short run, and its checkpoint."""
    module, trainer = small_module(), small_trainer(2, limit_val_batches=0)
    trainer.fit(module, datamodule=FewDigits())
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    trainer.save_checkpoint(path)
    return module, str(path)


def head_of(module):
    return module.head[0].weight


@pytest.mark.parametrize("options", [{}, {"head": {"zero_init": True, "prior_bias": True}}], ids=["plain", "started"])
def test_head_for_the_same_classes_is_kept_and_told(trained, options, capsys):
    before, path = trained
    module, data = small_module(weights=path, **options), FewDigits()
    scores = [small_trainer(1).validate(model, datamodule=data, verbose=False) for model in (before, module)]
    assert head_of(module).equal(head_of(before))
    assert scores[0] == scores[1]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Head ")]
    assert told == [f"Head  that of {path}, which was trained for the same 10 classes"]


@pytest.mark.parametrize("head", [{}, {"prior_bias": True}], ids=["plain", "started"])
def test_training_goes_on_from_the_head(trained, head):
    before, path = trained
    module, trainer = small_module(weights=path, lr=1e-9, head=head), small_trainer(1, limit_val_batches=0)
    trainer.fit(module, datamodule=FewDigits())
    assert not head_of(module).equal(head_of(before))
    torch.testing.assert_close(head_of(module), head_of(before), rtol=0, atol=1e-6)
    torch.testing.assert_close(module.head[0].bias, before.head[0].bias, rtol=0, atol=1e-6)


class Years(L.LightningDataModule):
    """Images whose target is a year, from one on."""

    num_classes, task = 1, "regression"

    def __init__(self, first):
        super().__init__()
        self.targets = torch.arange(first, first + 8.0).unsqueeze(1)

    def train_targets(self):
        return self.targets

    def train_dataloader(self):
        shades = torch.arange(0, 160, 20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
        return DataLoader(TensorDataset(shades, self.targets), batch_size=8)

    val_dataloader = train_dataloader


def test_head_of_regression_keeps_its_units(tmp_path):
    before, trainer = small_module(task="regression"), small_trainer(1)
    trainer.fit(before, datamodule=Years(1980))
    trainer.save_checkpoint(path := str(tmp_path / "best.ckpt"))
    module = small_module(task="regression", weights=path, lr=1e-9)
    small_trainer(1).fit(module, datamodule=Years(1880))
    assert module.task.standardisation == before.task.standardisation
    images, _ = next(iter(Years(1880).train_dataloader()))
    answers = [model.eval().predict_step(images, 0)["answers"] for model in (module, before)]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"classes": DIGITS[:9]},
        {"classes": [*DIGITS[:9], "ten"]},
        {"classes": [DIGITS[1], DIGITS[0], *DIGITS[2:]]},
        {"classes": DIGITS, "task": "multilabel"},
        {"classes": DIGITS, "weights_key": "state_dict"},
    ],
    ids=["fewer", "another name", "another order", "another task", "a key"],
)
def test_head_for_other_classes_is_new(trained, options, capsys):
    before, path = trained
    module = small_module(weights=path, **options)
    assert next(module.backbone.parameters()).equal(next(before.backbone.parameters()))
    rows = min(len(head_of(module)), 10)
    assert not head_of(module)[:rows].equal(head_of(before)[:rows])
    assert capsys.readouterr().out == ""


def test_head_of_other_layers_is_new_and_told(trained, capsys):
    _, path = trained
    module = small_module(weights=path, classes=DIGITS, head={"hidden": [8]})
    assert module.head[0].weight.shape == (8, 128)
    assert capsys.readouterr().out == f"Head  new, as that of {path} has other layers\n"


def test_other_files_of_weights_have_no_trained_head(trained, tmp_path):
    before, path = trained
    states = before.state_dict()
    save_file(states, tmp_path / "net.safetensors")
    torch.save(states, tmp_path / "net.pth")
    torch.save(torch.load(path, weights_only=True), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert all(read_trained_head(str(tmp_path / name)) is None for name in ("net.safetensors", "net.pth", "old.ckpt"))
    assert read_trained_head(path).classes == DIGITS


def test_command_line_tells_of_the_head(trained, run):
    _, path = trained
    options = ("--model.weights", path, "--data.shots", 2, "--trainer.max_epochs", 1, "--unfreeze.strategy", "full")
    printed = run("fit", "--data", "DigitsDataModule", *options)
    assert printed.count(f"Head  that of {path}, which was trained for the same 10 classes\n") == 1
