import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lit_ft

PACKAGE = Path(lit_ft.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# Each may import those of lower levels, and of its own package.
LEVELS = {
    "errors": 0,
    "plan": 1,
    "freezing": 1,
    "faults": 1,
    "explain": 2,
    "assets": 1,
    "commands": 1,
    "metrics": 1,
    "standardise": 1,
    "torch_files": 1,
    "strategies": 2,
    "checkpoints": 2,
    "resume": 2,
    "run_length": 1,
    "run_options": 1,
    "optim": 2,
    "schedules": 3,
    "runs": 3,
    "heads": 2,
    "tasks": 2,
    "penalty": 2,
    "mixing": 2,
    "normalise": 2,
    "class_weight": 2,
    "backbones": 2,
    "catalog": 3,
    "compiling": 3,
    "classes": 3,
    "divergence": 3,
    "finders": 3,
    "first_batch": 3,
    "hparams": 3,
    "checkpoint_io": 3,
    "data": 3,
    "download": 4,
    "module": 4,
    "callbacks": 5,
    "trainer": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}


def unit(path):
    return path.parts[0].removesuffix(".py")


def imported(path, nested=True):
    """The full names of the modules that a file imports; without what functions import, where ``nested`` is false."""
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from lit_ft import plan` imports a module, `from lit_ft.plan import Plan` a name.
            names = [f"lit_ft.{alias.name}" for alias in node.names] if node.module == "lit_ft" else [node.module]
            yield from names


def test_every_file_has_a_level():
    assert {unit(path) for path in FILES} == set(LEVELS)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downward(path):
    own = unit(path)
    used = {name.split(".")[1] for name in imported(path) if name.startswith("lit_ft.")}
    assert not {name for name in used - {own} if LEVELS[name] >= LEVELS[own]}


@pytest.mark.parametrize("name", ["errors", "plan", "strategies", "explain", "assets", "commands"])
def test_lowest_files_need_only_the_standard_library(name):
    roots = {module.split(".")[0] for module in imported(Path(f"{name}.py"), nested=False)}
    assert roots <= sys.stdlib_module_names | {"lit_ft"}


@pytest.mark.parametrize("path", [path for path in FILES if LEVELS[unit(path)] <= 2], ids=str)
def test_lower_files_need_no_lightning(path):
    assert not {"lightning", "pytorch_lightning", "jsonargparse"} & {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import lit_ft", ["lit_ft", "lit_ft.errors"]),
        ("import lit_ft; lit_ft.UserError, lit_ft.__all__", ["lit_ft", "lit_ft.errors"]),
        (
            "import lit_ft; lit_ft.make_plan('full', ['stem', 'head'], 1)",
            ["lit_ft", "lit_ft.errors", "lit_ft.plan", "lit_ft.strategies"],
        ),
        (
            "from lit_ft.__main__ import main; sys.argv = ['lit-ft', '--help']; main()",
            ["lit_ft", "lit_ft.__main__", "lit_ft.assets", "lit_ft.commands", "lit_ft.errors"],
        ),
    ],
    ids=["package", "error", "plan", "help"],
)
def test_only_these_modules_are_loaded_beside_the_standard_library(code, loaded):
    code = (
        f"import sys; before = set(sys.modules); {code}; new = set(sys.modules) - before; "
        "print(sorted(name for name in new if name.split('.')[0] not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == repr(loaded)


def test_torch_and_torchvision_are_compared_before_they_are_loaded_and_never_again(monkeypatch):
    importlib.import_module("torchvision")  # where no other test has
    compared = []
    monkeypatch.setattr("lit_ft.errors.check_torchvision", lambda: compared.append("now"))
    monkeypatch.delitem(vars(lit_ft), "Backbone", raising=False)
    assert lit_ft.Backbone
    assert compared == []
    monkeypatch.delitem(vars(lit_ft), "Backbone")
    monkeypatch.delitem(sys.modules, "torchvision")
    assert lit_ft.Backbone
    assert compared == ["now"]
    assert lit_ft.Backbone
    assert compared == ["now"]


def test_public_names():
    assert lit_ft.__all__ == [
        "AtomicCheckpointIO",
        "Backbone",
        "CIFAR10DataModule",
        "DigitsDataModule",
        "FeatureCache",
        "FineTuneModule",
        "GradualUnfreezing",
        "HeadConfig",
        "ImageFolderDataModule",
        "ImageTableDataModule",
        "InputSpec",
        "MNISTToEMNISTDataModule",
        "MixConfig",
        "PenaltyConfig",
        "PhaseConfig",
        "Plan",
        "PlateauConfig",
        "PredictionWriter",
        "RunReport",
        "Staged",
        "StreamDataModule",
        "Trainer",
        "UserError",
        "build_backbone",
        "make_plan",
    ]


@pytest.mark.parametrize("name", lit_ft.__all__)
def test_public_name_is_the_thing_itself(name):
    thing = getattr(lit_ft, name)
    assert thing.__name__ == name
    assert getattr(importlib.import_module(thing.__module__), name) is thing


def test_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="module 'lit_ft' has no attribute 'Nothing'"):
        lit_ft.Nothing  # noqa: B018
