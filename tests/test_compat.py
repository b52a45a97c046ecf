"""Private names of other libraries: those that are used still exist, and no other file uses more."""

import ast
import copy
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors import checkpoint_connector
from small_runs import FewDigits, small_module, small_trainer

import lit_ft
from lit_ft.compat import is_from_restoring_checkpoint, validate_first

PACKAGE = Path(lit_ft.__file__).parent
LIBRARIES = ("lightning", "torch", "jsonargparse", "torchmetrics", "litdata")

# Private names that are used outside of `compat`. The list may only become shorter.
LEFT = {
    ("backbones/freezing.py", "_BatchNorm"),
    ("backbones/freezing.py", "_InstanceNorm"),
    ("backbones/partition/trace.py", "_non_persistent_buffers_set"),
    ("backbones/weights/load.py", "_metadata"),
    ("backbones/weights/load.py", "_load_from_state_dict"),
    ("cli/lightning.py", "_actions"),
    ("cli/lightning.py", "_parser"),
    ("cli/lightning.py", "_subcommand_parsers"),
    ("data/loading/workers.py", "_replace"),  # of a named tuple, and public
    ("model/checkpoints.py", "_load"),
    ("model/divergence.py", "_trainer"),
    ("model/module.py", "_combined_loader"),
    ("model/module.py", "_compiled_call_impl"),
    ("model/module.py", "_compiler_ctx"),
    ("model/module.py", "_current_fx_name"),
    ("model/module.py", "_dynamo"),
    ("model/module.py", "_results"),
    ("model/module.py", "_trainer"),
    ("tasks/task.py", "_update_state"),
    ("unfreezing/callback.py", "_ddp_kwargs"),
    ("unfreezing/preconditions.py", "_BatchNorm"),
}


def own_names(tree):
    """The private names that a file defines: functions, classes, and attributes of its classes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (name.id for line in node.body for name in ast.walk(line) if isinstance(name, ast.Name))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def private_names(tree):
    """The private names of others that a file imports, or takes as attributes."""
    own = set(own_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            yield from (
                part for part in [*node.module.split("."), *(alias.name for alias in node.names)] if part[0] == "_"
            )
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and node.attr not in own:
            yield node.attr


def test_no_other_file_uses_private_names():
    used = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        used |= {(name, private) for private in private_names(ast.parse(path.read_text(encoding="utf-8")))}
    assert {use for use in used if use[0] != "compat.py"} <= LEFT


WHOLE = {"enable_validation": True, "val_check_interval": 1.0, "check_val_every_n_epoch": 1}


def counts(ready, processed, completed):
    return {"ready": ready, "started": ready, "processed": processed, "completed": completed}


def saved(is_last_batch=True, completed=5):
    """A checkpoint of the third step of the second epoch, whose validations have two batches."""
    batches = {"total": counts(6, 6, completed), "current": counts(3, 3, completed - 3), "is_last_batch": is_last_batch}
    validation = {"total": counts(0, 0, 0), "current": counts(2, 2, 2), "is_last_batch": True}
    progress = {"epoch_loop.batch_progress": batches, "epoch_loop.val_loop.batch_progress": validation}
    return {"epoch": 1, "loops": {"fit_loop": progress}}


@pytest.mark.parametrize("every", [1, 2])
def test_run_saved_before_its_validation_starts_with_it(every):
    checkpoint = saved()
    validate_first(checkpoint, SimpleNamespace(**{**WHOLE, "check_val_every_n_epoch": every}))
    progress = checkpoint["loops"]["fit_loop"]
    assert progress["epoch_loop.batch_progress"]["total"] == counts(6, 6, 6)
    assert progress["epoch_loop.batch_progress"]["current"] == counts(3, 3, 3)
    assert progress["epoch_loop.val_loop.batch_progress"]["total"] == counts(1, 0, 0)
    assert progress["epoch_loop.val_loop.batch_progress"]["current"] == counts(0, 0, 0)


@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        pytest.param(saved(is_last_batch=False), {}, id="within_the_epoch"),
        pytest.param(saved(completed=6), {}, id="after_the_validation"),
        pytest.param({"epoch": 1, "state_dict": {}}, {}, id="weights_alone"),
        pytest.param(saved(), {"enable_validation": False}, id="no_validation"),
        pytest.param(saved(), {"check_val_every_n_epoch": 3}, id="no_validation_in_this_epoch"),
        pytest.param(saved(), {"check_val_every_n_epoch": None}, id="validation_by_steps"),
        pytest.param(saved(), {"val_check_interval": 0.5}, id="several_validations_an_epoch"),
    ],
)
def test_other_checkpoints_are_left_as_they_are(checkpoint, options):
    before = copy.deepcopy(checkpoint)
    validate_first(checkpoint, SimpleNamespace(**{**WHOLE, **options}))
    assert checkpoint == before


@pytest.fixture(scope="module")
def lightnings_checkpoint(tmp_path_factory):
    """A checkpoint that was written after the last step of an epoch and before its validation."""
    folder = tmp_path_factory.mktemp("steps")
    steps = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    small_trainer(1, steps).fit(small_module(), datamodule=FewDigits(batch_size=7))
    return torch.load(folder / "step=3.ckpt", weights_only=True)


@pytest.mark.filterwarnings("ignore")
def test_lightnings_checkpoints_have_the_counts_that_are_set(lightnings_checkpoint):
    progress = lightnings_checkpoint["loops"]["fit_loop"]
    names = {"ready", "started", "processed", "completed"}
    batches, validation = progress["epoch_loop.batch_progress"], progress["epoch_loop.val_loop.batch_progress"]
    assert batches["is_last_batch"]
    for counted in (batches, validation):
        assert set(counted["total"]) == set(counted["current"]) == names
    # Else nothing would have to be set.
    assert (batches["total"]["completed"], batches["total"]["processed"]) == (2, 3)


def test_lightnings_callback_has_the_paths_that_are_removed(tmp_path):
    callback = ModelCheckpoint(tmp_path)
    paths = {name for name in vars(callback) if name.endswith("_path") or name.startswith("best_k")}
    assert paths == {"best_model_path", "last_model_path", "kth_best_model_path", "best_k_models"}


def test_lightning_restores_checkpoints_in_one_file():
    assert Path(inspect.getfile(checkpoint_connector)).name == "checkpoint_connector.py"
    connector = vars(checkpoint_connector._CheckpointConnector)
    assert {"_restore_modules_and_callbacks", "restore_training_state", "restore_model"} <= connector.keys()
    assert not is_from_restoring_checkpoint(ValueError("elsewhere"))
