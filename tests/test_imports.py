import ast
import importlib
import re
import subprocess
import sys
import traceback
from importlib import metadata
from pathlib import Path

import pytest

import lit_ft.data

PACKAGE = Path(lit_ft.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# The rooms of the package. Each file may import those of its own room, and of the rooms above it in this list.
ROOMS = [
    "errors",
    "own_code",
    "rank_zero",
    "memory",
    "console",
    "compat",
    "assets",
    "runs",
    "recipes",
    "backbones",
    "optim",
    "tasks",
    "data",
    "model",
    "probes",
    "unfreezing",
    "features",
    "training",
    "evaluation",
    "tuning",
    "serving",
    "export",
    "callbacks",
    "cli",
    "__main__",
    "__init__",
]


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


def test_every_file_is_in_a_room():
    assert {unit(path) for path in FILES} == set(ROOMS)


def test_name_of_a_class_or_type_means_one_thing():
    defined = {}
    for path in FILES:
        for node in ast.parse((PACKAGE / path).read_text(encoding="utf-8")).body:
            targets = getattr(node, "targets", [node.target] if isinstance(node, ast.AnnAssign) else [])
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in [node.name] if isinstance(node, ast.ClassDef) else names:
                if re.fullmatch("[A-Z]+[a-z]+.*", name):
                    defined.setdefault(name, []).append(str(path))
    assert {name: paths for name, paths in defined.items() if len(paths) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_upward_in_the_list_of_rooms(path):
    own = unit(path)
    used = {name.split(".")[1] for name in imported(path) if name.startswith("lit_ft.")}
    assert not {name for name in used - {own} if ROOMS.index(name) >= ROOMS.index(own)}


def test_no_modules_import_each_other_in_a_circle():
    names = {".".join(("lit_ft", *path.with_suffix("").parts)).removesuffix(".__init__"): path for path in FILES}
    needs = {name: {used for used in imported(path) if used in names} - {name} for name, path in names.items()}
    while free := {name for name, used in needs.items() if not used}:
        needs = {name: used - free for name, used in needs.items() if name not in free}
    assert not needs


_LOWEST = [
    "errors",
    "assets",
    "recipes",
    "unfreezing/plan",
    "unfreezing/strategies",
    "cli/__init__",
    "cli/command_line",
    "cli/commands/__init__",
    "cli/config/advice",
    "cli/process",
    "training/launch",
    "training/signals",
]


@pytest.mark.parametrize("name", _LOWEST)
def test_lowest_files_need_only_the_standard_library(name):
    roots = {module.split(".")[0] for module in imported(Path(f"{name}.py"), nested=False)}
    assert roots <= sys.stdlib_module_names | {"lit_ft"}


@pytest.mark.parametrize("path", [path for path in FILES if unit(path) in ("assets", "backbones", "optim")], ids=str)
def test_networks_and_optimizers_need_no_lightning(path):
    assert not {"lightning", "pytorch_lightning", "jsonargparse"} & {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize(
    "name",
    ["cli/commands/predict", "cli/commands/models", "cli/commands/serve", "serving/server", "evaluation/inference"],
)
def test_what_predicts_loads_no_library_of_trainings(name):
    known = {".".join(("lit_ft", *path.with_suffix("").parts)).removesuffix(".__init__"): path for path in FILES}
    left, homes = [known[f"lit_ft.{name.replace('/', '.')}"]], {}
    while left:
        path = left.pop()
        used = [*imported(path, nested=False), *(".".join(("lit_ft", *parent.parts)) for parent in path.parents)]
        left += [known[one] for one in used if one in known and known[one] not in homes]
        homes[path] = {one.split(".")[0] for one in used}
    trained = {"lightning", "torchmetrics", "scipy", "sklearn", "matplotlib", "jsonargparse", "tensorboard"}
    assert {str(path): found & trained for path, found in homes.items() if found & trained} == {}
    assert Path("errors.py") in homes


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import lit_ft", ["lit_ft", "lit_ft.errors"]),
        ("import lit_ft; lit_ft.UserError, lit_ft.__all__", ["lit_ft", "lit_ft.errors"]),
        (
            "import lit_ft; lit_ft.make_plan('full', ['stem', 'head'], 1)",
            [
                "lit_ft",
                "lit_ft.errors",
                "lit_ft.tasks",
                "lit_ft.tasks.monitored",
                "lit_ft.unfreezing",
                "lit_ft.unfreezing.plan",
                "lit_ft.unfreezing.strategies",
            ],
        ),
        (
            "from lit_ft.cli import main; main(['--help'])",
            [
                "lit_ft",
                "lit_ft.assets",
                "lit_ft.cli",
                "lit_ft.cli.command_line",
                "lit_ft.cli.commands",
                "lit_ft.cli.config",
                "lit_ft.cli.config.advice",
                "lit_ft.cli.config.other_names",
                "lit_ft.cli.config.other_values",
                "lit_ft.cli.process",
                "lit_ft.errors",
                "lit_ft.own_code",
                "lit_ft.recipes",
                "lit_ft.training",
                "lit_ft.training.launch",
                "lit_ft.training.signals",
            ],
        ),
        (
            "from lit_ft.cli import main; main(['recipes'])",
            [
                "lit_ft",
                "lit_ft.assets",
                "lit_ft.cli",
                "lit_ft.cli.command_line",
                "lit_ft.cli.commands",
                "lit_ft.cli.commands.recipes",
                "lit_ft.cli.config",
                "lit_ft.cli.config.advice",
                "lit_ft.cli.config.other_names",
                "lit_ft.cli.config.other_values",
                "lit_ft.cli.process",
                "lit_ft.console",
                "lit_ft.errors",
                "lit_ft.own_code",
                "lit_ft.recipes",
                "lit_ft.training",
                "lit_ft.training.launch",
                "lit_ft.training.signals",
            ],
        ),
    ],
    ids=["package", "error", "plan", "help", "recipes"],
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
        "EarlyStopping",
        "Explanation",
        "FeatureCache",
        "FineTuneModule",
        "GradualUnfreezing",
        "HeadConfig",
        "ImageArrayDataModule",
        "ImageDatasetDataModule",
        "ImageFolderDataModule",
        "ImageModel",
        "ImageTableDataModule",
        "InputSpec",
        "MNISTToEMNISTDataModule",
        "MixConfig",
        "PenaltyConfig",
        "PhaseConfig",
        "Plan",
        "PlateauConfig",
        "Prediction",
        "PredictionWriter",
        "Result",
        "RunReport",
        "Staged",
        "StreamDataModule",
        "Trainer",
        "UserError",
        "build_backbone",
        "explain",
        "finetune",
        "load",
        "make_plan",
        "run",
        "tune",
    ]


@pytest.mark.parametrize("name", lit_ft.__all__)
def test_public_name_is_the_thing_itself(name):
    thing = getattr(lit_ft, name)
    assert thing.__name__ == name
    assert getattr(importlib.import_module(thing.__module__), name) is thing


def test_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="module 'lit_ft' has no attribute 'Nothing'"):
        lit_ft.Nothing  # noqa: B018
    with pytest.raises(AttributeError, match=r"module 'lit_ft\.data' has no attribute 'Nothing'"):
        lit_ft.data.Nothing  # noqa: B018


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("train", "lit_ft.finetune"),
        ("load_model", "lit_ft.load(RUN).predict(PHOTOS)"),
        ("finetun", "lit_ft.finetune"),
        ("Trainr", "lit_ft.Trainer"),
    ],
)
def test_name_of_another_library_or_mistyped_is_answered_with_ours(name, instead):
    with pytest.raises(AttributeError) as refused:
        getattr(lit_ft, name)
    assert str(refused.value) == f"module 'lit_ft' has no attribute {name!r}; use {instead}"
    assert "Did you mean" not in "".join(traceback.format_exception(refused.value))


def test_names_that_are_not_imported_yet_are_listed_with_the_version():
    assert dir(lit_ft) == sorted([*lit_ft.__all__, "__version__"])
    assert lit_ft.__version__ == metadata.version("lit_ft")


def test_flags_stand_in_the_command_line_alone():
    """Messages of the library name options as a config does; flags of other programs are no ours."""
    flag = re.compile(r"(?<![\w-])--([a-z{]|$)")
    others = ("pip install", "tensorboard")
    found = []
    for path in FILES:
        if path.parts[0] in ("cli", "__main__.py"):
            continue
        tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found += [(str(path), text.value) for text in texts if id(text) not in docs and flag.search(text.value)]
    found = [(path, text) for path, text in found if not any(other in text for other in others)]
    assert not found
