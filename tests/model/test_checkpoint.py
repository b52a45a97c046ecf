"""The trained head of a checkpoint, where a new run starts from its weights."""

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from small_runs import FewDigits, small_module, small_trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.model.checkpoint import read_trained_head

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
