"""What users see and keep: help, configs, plans, what a run prints, its files, and the files of runs made before.

`LIT_FT_SURFACE=write pytest tests/test_surface.py` writes ``tests/surface`` anew, for its diff to be read. The run in
``tests/surface/run`` is of the first release and is never made anew: what it holds must load for ever.
"""

import importlib
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

import lit_ft as package
from lit_ft.cli.commands import COMMANDS
from lit_ft.cli.config.checkpoint import name_run

pytestmark = [pytest.mark.usefixtures("lit_ft"), pytest.mark.filterwarnings("ignore")]

SURFACE = Path(__file__).parent / "surface"
OLD_RUN = SURFACE / "run"
CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = ("--config", CONFIGS / "quickstart.yaml")
PHASES = "[{train: [head], epochs: 1}, {train: [conv, head]}]"
TWO_EPOCHS = ("--trainer.max_epochs", 2, "--unfreeze.strategy", "phases", "--unfreeze.phases", PHASES)
RUN = Path("logs/quickstart/version_0")
# Their parsers and classes have a say in help and configs.
VERSIONS = ", ".join(f"{name} {version(name)}" for name in ("lightning", "jsonargparse", "torch"))


def check(name, text):
    """Compares a text with what was written of it, or writes it."""
    path = SURFACE / name
    if os.environ.get("LIT_FT_SURFACE") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def check_of_versions(name, text):
    """The same of what depends on the versions of libraries."""
    header = f"# {VERSIONS}\n"
    if os.environ.get("LIT_FT_SURFACE") != "write" and not (SURFACE / name).read_text("utf-8").startswith(header):
        pytest.skip(f"{name} was written with other versions of libraries")
    check(name, header + text)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "120")
    printed = run(command, "--help") if command else run("--help")
    # Of classes also those that other tests have defined.
    printed = re.sub(r"known\s+subclasses:[^)]*\)", "known subclasses)", printed)
    check_of_versions(f"help_{command or 'lit-ft'}.txt", printed)


@pytest.mark.parametrize("recipe", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_config_of_a_recipe(run, recipe):
    check_of_versions(
        f"config_{recipe}.yaml", run("finetune", "--config", CONFIGS / f"{recipe}.yaml", "--print_config")
    )


@pytest.mark.parametrize("recipe", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_recipe_takes_the_config_of_a_cluster(run, recipe):
    configs = ("--config", CONFIGS / f"{recipe}.yaml", "--config", CONFIGS / "cluster" / "ddp.yaml")
    found, own = (yaml.safe_load(run("fit", *given, "--print_config")) for given in (configs, configs[:2]))
    clustered = yaml.safe_load((CONFIGS / "cluster" / "ddp.yaml").read_text(encoding="utf-8"))["trainer"]
    assert found["trainer"] == {**own["trainer"], **clustered}
    assert {**found, "trainer": None} == {**own, "trainer": None}


def test_run_with_the_config_of_a_cluster_has_the_name_of_its_recipe(run):
    printed = run("plan", *QUICKSTART, "--config", CONFIGS / "cluster" / "ddp.yaml", "--step_seconds", 1, "--nodes", 2)
    assert "Scale  2 x 1 devices, ddp, bf16-mixed; an estimate" in printed
    assert name_run(None, [str(CONFIGS / "quickstart.yaml"), str(CONFIGS / "cluster" / "ddp.yaml")]) == "quickstart"


def test_plan(run):
    check("plan.txt", run("plan", *QUICKSTART, "--trainer.accelerator", "cpu"))


def test_description_of_a_network(run):
    check("describe.txt", run("describe", "resnet50"))


@pytest.mark.long
def test_run_prints_and_writes(run):
    printed = run("finetune", *QUICKSTART, *TWO_EPOCHS, "--trainer.accelerator", "cpu")
    digits = re.sub(r"\d+\.\d+", "#.#", printed)
    files = sorted(re.sub(r"tfevents.*", "tfevents", str(path)) for path in RUN.rglob("*") if path.is_file())
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    hparams = checkpoint["hyper_parameters"]
    keys = "\n".join([*checkpoint, *(f"hyper_parameters.{key}" for key in hparams)])
    check("run.txt", f"{digits}\n# Files\n" + "\n".join(files) + f"\n\n# Keys of a checkpoint\n{keys}\n")


def test_public_names():
    check("names.txt", "\n".join(package.__all__) + "\n")


@pytest.fixture
def old_run():
    """The folder of a run of the first release, as if made here."""
    shutil.copytree(OLD_RUN, RUN)
    return RUN


@pytest.mark.long
def test_old_run_is_tested_as_it_was(run, old_run):
    given = ("--config", old_run / "config.yaml", "--ckpt_path", old_run / "checkpoints/best.ckpt")
    assert re.search(r"test/acc +0\.83[0-9]+", run("test", *given))
    run("predict", *given, "--predictions.file", "answers.csv")
    assert len(Path("answers.csv").read_text().splitlines()) == 1001


@pytest.mark.long
def test_old_run_is_resumed_with_its_plan(run, old_run):
    given = ("--config", old_run / "config.yaml", "--ckpt_path", old_run / "checkpoints/last.ckpt")
    printed = run("finetune", *given, "--trainer.max_epochs", 3)
    assert "epoch 2/2" in printed
    assert "epoch 1/2" not in printed
    newest = max(Path("logs").rglob("last.ckpt"), key=os.path.getmtime)
    resumed = torch.load(newest, weights_only=True)
    assert resumed["global_step"] == 30
    assert resumed["callbacks"]["GradualUnfreezing"]["starts"] == [0, 1]


def test_old_checkpoint_gives_its_model():
    model = package.FineTuneModule.load_from_checkpoint(OLD_RUN / "checkpoints/best.ckpt")
    assert model.class_names == [str(digit) for digit in range(10)]


def test_class_paths_of_old_configs_are_found():
    config = yaml.safe_load((OLD_RUN / "config.yaml").read_text())
    for key in ("model", "data", "unfreeze", "feature_cache", "report", "predictions"):
        module, name = config[key]["class_path"].rsplit(".", 1)
        assert (module, hasattr(package, name)) == ("lit_ft", True)
    assert package.optim.WarmupCosine.__name__ == "WarmupCosine"
    for name in ("EarlyStopping", "FeatureCache", "GradualUnfreezing", "PredictionWriter", "RunReport"):
        assert getattr(importlib.import_module("lit_ft.callbacks"), name) is getattr(package, name)
