"""Tests of what upstream keeps private: each fails where a release changes it, so that it can go."""

import ast
import copy
import inspect
import re
import runpy
import signal
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import jsonargparse
import lightning as L
import pytest
import torch
from jsonargparse import _common
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities.compile import from_compiled
from PIL import Image
from small_runs import FewDigits, small_module, small_trainer
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

import lit_ft
from lit_ft.cli.failures import is_from_restoring_checkpoint
from lit_ft.compat import (
    BATCH_NORM,
    INSTANCE_NORM,
    attached_trainer,
    chunked_index,
    collect_constructor_arguments,
    collective_timeout,
    epochs_done,
    group_by_matcher,
    inner_schedulers,
    inner_states,
    is_compiled,
    leave_signals,
    loads_in_its_own_way,
    log_repeatedly,
    parsing_settings,
    set_state_versions,
    setup_train_data,
    setup_validation_loaders,
    state_versions,
    validate_first,
)
from lit_ft.data.images import decode
from lit_ft.model.sharding import forget_buckets


@pytest.mark.parametrize(
    ("base", "norms"),
    [
        (BATCH_NORM, [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LazyBatchNorm2d]),
        (INSTANCE_NORM, [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LazyInstanceNorm2d]),
    ],
)
def test_norm_layers_of_torch_share_a_base_that_has_no_public_name(base, norms):
    assert all(issubclass(norm, base) for norm in norms)
    assert base.__name__.startswith("_")
    assert base.__name__ not in vars(nn)


def test_ddp_takes_its_options_where_they_are_changed_to_wrap_anew():
    strategy = DDPStrategy(bucket_cap_mb=3)
    assert strategy._ddp_kwargs == {"bucket_cap_mb": 3}
    assert "init_sync" in inspect.signature(DistributedDataParallel).parameters
    assert not inspect.signature(strategy.configure_ddp).parameters


def test_low_rank_gradients_begin_anew_with_other_buckets():
    state = PowerSGDState(None, start_powerSGD_iter=5)
    kept = state.error_dict, state.p_memory_dict, state.q_memory_dict
    for iteration, left in ((2, 2), (40, 3)):  # two whole steps, in which DDP fills its buckets anew
        state.iter = iteration
        for values in kept:
            values[0] = torch.ones(2)
        forget_buckets(state)
        assert (state.iter, [len(values) for values in kept]) == (left, [0, 0, 0])
    forget_buckets(None)


def test_trainer_leaves_signals_to_others_and_broadcasts_none(monkeypatch):
    handlers, sent = [], []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *_, **__: sent.append(1))

    class Note(Callback):
        def on_train_batch_start(self, trainer, *_):
            handlers.append(signal.getsignal(signal.SIGTERM))
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()

    def fit(change):
        trainer = small_trainer(1, Note(), limit_val_batches=0)
        change(trainer)
        trainer.fit(small_module(lr_scheduler=None), datamodule=FewDigits())
        return {handler == before for handler in handlers}, len(sent)

    before = signal.getsignal(signal.SIGTERM)
    # What Lightning does: as long as it does, there is something to leave.
    assert fit(lambda _: None) == ({False}, 2)
    loop = type(small_trainer(1).fit_loop.epoch_loop)
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(loop.advance)
    handlers.clear()
    assert fit(leave_signals) == ({True}, 2)


def test_loops_count_epochs_and_the_batches_of_the_one_under_way():
    seen = []
    module = small_module(lr_scheduler=None)
    module.on_train_batch_start = lambda *_: seen.append(epochs_done(module.trainer))
    trainer = small_trainer(2, limit_val_batches=0)
    trainer.fit(module, datamodule=FewDigits())
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert epochs_done(trainer) == (2, 0)


def test_state_dicts_have_the_versions_of_the_modules_that_wrote_them():
    state = nn.Sequential(nn.BatchNorm2d(2)).state_dict()
    assert state_versions(state) == {"": {"version": 1}, "0": {"version": 2}}
    assert state_versions({"weight": torch.zeros(1)}) == {}
    # Without a version, batch norm takes the counter of batches to be missing.
    del state["0.num_batches_tracked"]
    set_state_versions(state, {"": {"version": 1}, "0": {"version": 1}})
    nn.Sequential(nn.BatchNorm2d(2)).load_state_dict(state)


def test_module_that_overrides_loading_is_found_at_any_depth():
    class Own(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)

    assert loads_in_its_own_way(nn.Sequential(nn.Sequential(Own(1, 1))))
    assert not loads_in_its_own_way(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm2d(2)))


def test_names_are_grouped_by_the_patterns_of_timm():
    pytest.importorskip("timm")
    matcher = {"stem": r"^conv", "blocks": [(r"^block\.(\d+)", None), (r"^norm", (9,))]}
    names = ["block.1.weight", "conv.weight", "block.0.weight", "norm.weight", "block.0.bias"]
    assert group_by_matcher(names, matcher) == [
        ["conv.weight"],
        ["block.0.weight", "block.0.bias"],
        ["block.1.weight"],
        ["norm.weight"],
    ]


def test_lightning_makes_validation_loaders_late_and_keeps_those_made_before(tmp_path):
    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            self.before = trainer.val_dataloaders
            setup_validation_loaders(trainer)
            self.made = trainer.val_dataloaders

        def on_validation_start(self, trainer, pl_module):
            self.used = trainer.val_dataloaders

    L.seed_everything(1)
    watch = Watch()
    trainer = small_trainer(2, watch, default_root_dir=tmp_path, check_val_every_n_epoch=2)
    trainer.fit(small_module(), datamodule=FewDigits())
    assert watch.before is None  # else setup_validation_loaders is not needed any more
    assert watch.made is not None
    assert watch.used is watch.made


class Logged(L.LightningModule):
    """Logs the step, and counts how often Lightning checks it."""

    def __init__(self):
        super().__init__()
        self.layer, self.num_calls, self.seen = nn.Linear(1, 1), 0, []

    def log(self, *args, **options):
        self.num_calls += 1
        super().log(*args, **options)

    def training_step(self, batch, batch_idx):
        value = self.layer.weight.sum() * 0 + self.global_step
        log_repeatedly(self, "train/step", value, on_step=True, on_epoch=False)
        return value

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(float(self.trainer.callback_metrics["train/step"]))

    def configure_optimizers(self):
        return SGD(self.parameters(), 0.1)


def loader():
    return DataLoader(TensorDataset(torch.zeros(3, 1)))


def test_repeated_log_has_the_value_of_each_step_and_is_checked_once_an_epoch():
    module = Logged()
    assert attached_trainer(module) is None
    small_trainer(2).fit(module, loader())
    assert module.seen == [0, 1, 2, 3, 4, 5]
    assert module.num_calls == 2
    assert attached_trainer(module) is not None


def test_training_data_set_up_early_tells_the_number_of_batches():
    class Early(Logged):
        def configure_optimizers(self):
            setup_train_data(self.trainer)
            self.num_batches = self.trainer.num_training_batches
            return super().configure_optimizers()

    module = Early()
    small_trainer(1).fit(module, loader())
    assert module.num_batches == 3
    assert module.seen == [0, 1, 2]


class StatefulLoader:
    """A loader of the user's that knows how far it was read."""

    def __init__(self):
        self.start, self.read = 0, []

    def __len__(self):
        return 4

    def __iter__(self):
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            self.read.append(batch)
            yield torch.full((2, 1, 28, 28), batch, dtype=torch.uint8), torch.tensor([0, 1])

    def state_dict(self):
        return {"read": len(self.read)}

    def load_state_dict(self, state_dict):
        self.start = state_dict["read"]


def test_state_of_a_loader_is_restored_though_training_data_is_set_up_early(tmp_path):
    whole, rest = StatefulLoader(), StatefulLoader()
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    small_trainer(1, save).fit(small_module(classes=2), whole)
    small_trainer(1).fit(small_module(classes=2), rest, ckpt_path=tmp_path / "step=3.ckpt")
    assert (whole.read, rest.read) == ([0, 1, 2, 3], [3])


def test_compiled_modules_are_known_whoever_compiled_them():
    def network():
        return nn.Sequential(nn.Linear(1, 1))

    assert not is_compiled(network())
    in_place = network()
    in_place[0].compile(backend="eager")
    assert is_compiled(in_place)
    assert is_compiled(nn.Sequential(torch.compile(network(), backend="eager")))
    module = Logged()
    assert not is_compiled(module)
    assert is_compiled(from_compiled(torch.compile(module, backend="eager")))


def test_arguments_are_those_of_the_outermost_constructor():
    class Base(HyperparametersMixin):
        def __init__(self, size=1, **_):
            super().__init__()
            self.collected = collect_constructor_arguments(inspect.currentframe())[-1]

    class Own(Base):
        def __init__(self, depth, rate=2):
            super().__init__(size=depth)

    assert Own(3).collected == {"depth": 3, "rate": 2}
    assert Base(4, more=5).collected == {"size": 4, "more": 5}


def test_schedulers_within_others_are_found_at_any_depth():
    optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.1)
    first, second, third = ConstantLR(optimizer), ExponentialLR(optimizer, 0.5), ConstantLR(optimizer)
    optimizer.step()  # else torch warns that it comes after those of the schedulers
    chained = ChainedScheduler([first, second])
    whole = SequentialLR(optimizer, [chained, third], milestones=[2])
    assert list(inner_schedulers(whole)) == [chained, first, second, third]
    assert [inner_states(state) != () for state in inner_states(whole.state_dict())] == [True, False]
    assert inner_states(first.state_dict()) == ()


def test_settings_of_the_parser_are_set_for_a_while():
    before = dict(_common.parsing_settings)
    with parsing_settings(instantiate_subclass_spec_in_any=True, validate_defaults=True):
        assert _common.get_parsing_setting("instantiate_subclass_spec_in_any") is True
        assert _common.get_parsing_setting("validate_defaults") is True
    assert _common.parsing_settings == before


def test_parser_has_no_public_way_to_read_settings():
    assert not hasattr(jsonargparse, "get_parsing_setting")


PACKAGE = Path(lit_ft.__file__).parent


LIBRARIES = ("lightning", "torch", "jsonargparse", "torchmetrics", "litdata")


def own_names(tree):
    """The private names that a file defines: functions, classes, and attributes of its classes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
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


@pytest.mark.long
def test_no_other_file_uses_private_names():
    used = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        used |= {(name, private) for private in private_names(ast.parse(path.read_text(encoding="utf-8")))}
    # A method of named tuples and a function of Python that are public.
    files = "data/loading/workers.py", "training/signals.py"
    documented = {(files[0], "_replace"), *((file, "_exit") for file in files)}
    assert {use for use in used if not use[0].startswith("compat/")} == documented


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


@pytest.mark.parametrize(("given", "found", "expected"), [(None, 0, 4), ("2", 2, 2)])
def test_pillow_keeps_memory_unless_its_variable_says_otherwise(given, found, expected, monkeypatch):
    monkeypatch.delenv("PILLOW_BLOCKS_MAX", raising=False)
    if given:
        monkeypatch.setenv("PILLOW_BLOCKS_MAX", given)
    before = Image.core.get_blocks_max()
    Image.core.set_blocks_max(found)  # as Pillow is loaded with this variable
    try:
        runpy.run_path(decode.__file__)  # as it is first imported
        assert Image.core.get_blocks_max() == expected
    finally:
        Image.core.set_blocks_max(before)


def test_pillow_has_no_public_way_to_keep_memory():
    assert not hasattr(Image, "set_blocks_max")


def test_litdata_takes_an_index_with_the_chunks_ahead():
    pytest.importorskip("litdata")
    place = chunked_index(7, 2, [2, 5], is_last=True)
    assert (place.index, place.chunk_index, place.chunk_indexes, place.is_last_index) == (7, 2, [2, 5], True)


def test_litdata_downloads_single_files_by_its_downloaders():
    pytest.importorskip("litdata")
    from litdata.streaming import downloader

    assert list(inspect.signature(downloader.get_downloader).parameters)[:3] == ["remote_dir", "cache_dir", "chunks"]
    parameters = list(inspect.signature(downloader.Downloader.download_file).parameters)
    assert parameters == ["self", "remote_chunkpath", "local_chunkpath"]


def test_strategy_keeps_its_timeout():
    assert collective_timeout(DDPStrategy(timeout=timedelta(seconds=5))) == timedelta(seconds=5)
    assert collective_timeout(SingleDeviceStrategy()) is None
    assert not hasattr(DDPStrategy(), "timeout")


class Recorder(Profiler):
    """Notes what Lightning calls."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def start(self, action_name):
        self.calls[action_name] += 1

    def stop(self, action_name):
        pass


class Ends(Callback):
    def on_train_batch_end(self, *_):
        self.ends = getattr(self, "ends", 0) + 1


def test_hooks_of_a_batch_that_nobody_defines_are_not_called():
    recorder, ends, seen = Recorder(), Ends(), []
    of_its_own = LambdaCallback(on_before_backward=lambda *_: seen.append("backward"))
    options = {"limit_train_batches": 2, "limit_val_batches": 1, "profiler": recorder}
    small_trainer(1, Callback(), ends, of_its_own, **options).fit(small_module(), datamodule=FewDigits(batch_size=7))
    of_batches = "batch_(start|end)|before_(zero_grad|backward|optimizer_step)|after_backward"
    assert {name: num for name, num in recorder.calls.items() if re.search(rf"on_[a-z_]*({of_batches})$", name)} == {
        "[LightningModule]FineTuneModule.on_train_batch_start": 2,
        "[LightningModule]FineTuneModule.on_validation_batch_start": 1,  # of which Lightning asks for the arguments
        "[LightningModule]FineTuneModule.on_validation_batch_end": 1,
        "[Callback]Ends.on_train_batch_end": 2,
        "[Callback]LambdaCallback.on_before_backward": 2,
        "[Strategy]SingleDeviceStrategy.on_train_batch_start": 2,
    }
    assert (ends.ends, seen) == (2, ["backward"] * 2)
