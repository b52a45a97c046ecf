import inspect

import jsonargparse
import pytest
import torch
from jsonargparse import _common
from lightning.pytorch.strategies import DDPStrategy
from small_runs import FewDigits, small_module, small_trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lit_ft.compat import (
    BATCH_NORM,
    INSTANCE_NORM,
    epochs_done,
    group_by_matcher,
    loads_in_its_own_way,
    parsing_settings,
    set_state_versions,
    state_versions,
)


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


def test_settings_of_the_parser_are_set_for_a_while():
    before = dict(_common.parsing_settings)
    with parsing_settings(instantiate_subclass_spec_in_any=True, validate_defaults=True):
        assert _common.get_parsing_setting("instantiate_subclass_spec_in_any") is True
        assert _common.get_parsing_setting("validate_defaults") is True
    assert _common.parsing_settings == before


def test_parser_has_no_public_way_to_read_settings():
    assert not hasattr(jsonargparse, "get_parsing_setting")
