"""The messages are made by the parser itself, so that a change of its wording shows."""

from argparse import ArgumentError
from typing import Literal

import pytest
from jsonargparse import ArgumentParser
from torch.optim import Optimizer

from lit_ft.cli import main
from lit_ft.cli.messages import Complaint, explain, pick_line
from lit_ft.errors import for_command_line
from lit_ft.model.heads import HeadConfig


class Model:
    def __init__(
        self,
        backbone: str,
        lr: float = 0.1,
        task: Literal["multiclass", "regression"] = "multiclass",
        head: HeadConfig = HeadConfig(),  # noqa: B008
        weight: Literal["balanced"] | None = None,
    ) -> None:
        pass


class Needy(Optimizer):
    def __init__(self, params, horizon: int) -> None:
        pass


OPTIONS = ["model", "optimizer", "trainer.max_epochs", "trainer.max_steps", "model.backbone", "model.lr", "model.task"]
CLASSES = {"model": ["Model"], "optimizer": ["Adam", "AdamW", "SGD"]}


def line_of(complaint):
    """The line on the command line."""
    return for_command_line(explain(complaint).args[0])


def told(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--trainer.max_epochs", type=int | None, default=1)
    parser.add_argument("--trainer.precision", type=Literal[64, 32] | Literal["bf16", "64"] | None, default=None)
    parser.add_argument("--feature_cache", type=HeadConfig | None, default=None)
    parser.add_subclass_arguments(Model, "model", required=False)
    parser.add_subclass_arguments(Optimizer, "optimizer", required=False, skip={"params", "lr"})
    parser.set_defaults({"model": {"class_path": f"{__name__}.Model", "init_args": {"backbone": "resnet18"}}})
    with pytest.raises(ArgumentError) as caught:
        parser.parse_args(arguments)
    return line_of(Complaint(str(caught.value), OPTIONS, CLASSES))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model.backbon=x"], "--model.backbon: there is no such option; nearest: --model.backbone"),
        (["--modle.backbone=x"], "--modle.backbone: there is no such option; nearest: --model.backbone"),
        (["--trainer.max_epoch_s=3"], "--trainer.max_epoch_s: there is no such option; nearest: --trainer.max_epochs"),
        (["--model.head.hiden=[3]"], "--model.head.hiden: there is no such option; nearest: --model.head.hidden"),
        (["--optimizer=AdamW", "--optimizer.lr=3"], "--optimizer.lr: there is no such option; give --model.lr"),
        (
            ["--optimizer=AdamW", "--optimizer.beta=3"],
            "--optimizer.beta: there is no such option; nearest: --optimizer.",
        ),
        (
            ["--model.task=regresion"],
            "--model.task: unknown value 'regresion'; nearest: regression (choose from multiclass, regression)",
        ),
        (["--model.task=zzz"], "--model.task: unknown value 'zzz' (choose from multiclass, regression)"),
        (["--optimizer=Adm"], "--optimizer: unknown class 'Adm'; nearest: Adam"),
        (["--optimizer=torch.optim.Adm"], "--optimizer: unknown class 'torch.optim.Adm'; nearest: Adam"),
        (["--optimizer=nope.SGDD"], "--optimizer: unknown class 'nope.SGDD'; nearest: SGD"),
        (["--model.lr=abc"], "--model.lr: abc does not fit; give a number"),
        (["--model.head.dropout=x"], "--model.head.dropout: x does not fit; give a number"),
        (["--model.head.hidden=[1,x]"], "--model.head.hidden: x does not fit; give a whole number"),
        (["--trainer.max_epochs=few"], "--trainer.max_epochs: few does not fit; give a whole number or null"),
        (["--trainer.max_epochs=1e1"], "--trainer.max_epochs: 10.0 does not fit; give a whole number or null"),
        (["--trainer.precision=half"], "--trainer.precision: half does not fit; give --trainer.precision 16-mixed"),
        (["--model.weight=yes"], "--model.weight: unknown value 'True'; choose from balanced, null"),
        (["--model.head=3"], "--model.head: 3 does not fit; give --model.head.hidden [3]"),
        (["--model.head=deep"], "--model.head: deep does not fit; give its options, as --model.head.NAME VALUE"),
        (["--trainer.precision=odd"], "--trainer.precision: unknown value 'odd'; choose from bf16, 64, null"),
        (["--feature_cache=off"], "--feature_cache: False does not fit; give --feature_cache null"),
        (["--feature_cache=4"], "--feature_cache: 4 does not fit; give --feature_cache.views 4"),
        (
            ["--feature_cache=4.5"],
            "--feature_cache: 4.5 does not fit; give null, or an option that --feature_cache.help",
        ),
        (["--config=nowhere.yaml"], "--config: File does not exist: "),
        (
            ["--optimizer=torch.nn.Linear"],
            "--optimizer: torch.nn.Linear is no Optimizer; choose from Adam, AdamW, SGD, or derive yours from it",
        ),
        (["--optimizer=Needy"], "--optimizer: Needy needs horizon; add --optimizer.horizon VALUE"),
        (["3"], "3: follows no option; each value needs one, as in --epochs 3"),
        (["a.yaml"], "a.yaml: without the name of an option; type --config a.yaml"),
    ],
)
def test_mistake_is_told_in_one_line(arguments, text):
    line = told(*arguments)
    assert line.startswith(text)
    assert "\n" not in line
    assert "Parser key" not in line


def test_mistake_in_a_file_is_told_like_one_on_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  backbon: x\n")
    assert told(f"--config={file}").startswith("--model.backbon: there is no such option; nearest: --model.backbone")


def test_values_without_options_are_told_with_the_options(tmp_path):
    message = f"unrecognized arguments: best.ckpt {tmp_path}"
    assert line_of(Complaint(message, command="predict")) == (
        f"best.ckpt {tmp_path}: without the name of an option; type --ckpt_path best.ckpt --data ImageFolderDataModule "
        f"--data.predict {tmp_path}"
    )
    assert line_of(Complaint(message)).endswith(f" --data ImageFolderDataModule --data.root {tmp_path}")


def test_path_that_is_not_there_is_told_with_the_config_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told("--config=configs/image_folder_gradual.yaml").endswith("; type --config image_folder_gradual")
    assert told("--config=image_folder_gradul.yaml").endswith("; nearest: image_folder_gradual")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "image_folder_gradual.yaml").touch()
    assert told("--config=configs/image_folder_gradual").endswith("; type --config configs/image_folder_gradual.yaml")


UNION = """Parser key "x":
  Does not validate against any of the Union subtypes
  Errors:
    - {}
    - Expected a <class 'bool'>
    - Expected a <class 'NoneType'>
  Given value: 3"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("\nbad option\nmore of it", "bad option"),
        ('Parser key "x":\n  bad option', "bad option"),
        ('Parser key "x": bad option', "bad option"),
        (UNION.format("save_top_k must be >= -1"), "save_top_k must be >= -1"),
        (UNION.format("Expected a <class 'int'>"), "Expected a <class 'int'>"),
        (
            UNION.format("Problem with given class_path 'a.b.Logger':\n        wandb is missing"),
            "Logger: wandb is missing",
        ),
        (UNION.format("Problem with given class_path 'a.C':\n  Parser key \"y\":\n    too few"), "C: too few"),
        ("", ""),
    ],
)
def test_line_that_says_most_is_picked(message, line):
    assert pick_line(message) == line


def test_option_like_no_other_has_no_nearest():
    assert line_of(Complaint("unrecognized arguments: --qqqq=1", ["lr"])) == "--qqqq: there is no such option"


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["--model.lr"], "--model.lr"),
        (["--model.lr", "1", "--model.backbone", "--trainer.max_epochs", "1"], "--model.backbone"),
        (["--trainer.max_epochs"], "--trainer.max_epochs"),
        (["--config"], "--config"),
    ],
)
def test_option_without_a_value_is_named(args, option, capsys):
    assert main(["plan", *args]) == 2
    assert capsys.readouterr().err == f"lit-ft: {option}: no value follows; add one, as {option} VALUE\n"


def test_missing_option_of_a_command_is_named_as_it_is_typed(capsys):
    assert main(["convert"]) == 2
    assert capsys.readouterr().err == "lit-ft: --folder: required; add --folder VALUE\n"


def test_number_for_the_trainer_in_a_config_is_refused(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("trainer: 3\n")
    assert main(["plan", "--config", str(tmp_path / "x.yaml")]) == 2
    text = "lit-ft: --trainer: 3 does not fit; give its options, as --trainer.max_epochs 3\n"
    assert capsys.readouterr().err == text
