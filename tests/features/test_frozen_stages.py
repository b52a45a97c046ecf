from types import SimpleNamespace

import pytest
import torch
from small_runs import small_module

from lit_ft.features.frozen_stages import FrozenStages


def part_of(module, depth=2, precision="32-true", device="cpu"):
    return FrozenStages(
        SimpleNamespace(precision=precision, strategy=SimpleNamespace(root_device=torch.device(device))), module, depth
    )


def test_identity_tells_weights_depth_precision_and_normalisation_apart():
    module = small_module(classes=10)
    found = [part_of(module), part_of(module, depth=1), part_of(module, precision="bf16-mixed")]
    found.append(part_of(small_module(classes=10, input={"mean": [0.2], "std": [0.5]})))
    identities = {part.identity() for part in found}
    assert part_of(small_module(classes=10)).identity() == found[0].identity()
    for stage in ("conv", "dense"):
        other = small_module(classes=10)
        next(other.backbone.stages[stage].parameters()).data.flatten()[0] += 1e-6
        identities.add(part_of(other).identity())
    assert len(identities) == 6


@pytest.mark.parametrize(("stage", "is_unchanged"), [("conv", False), ("dense", False), ("head", True)])
def test_change_of_one_value_is_seen_in_frozen_stages_alone(stage, is_unchanged):
    module = small_module(classes=10)
    part = part_of(module)
    assert part.is_unchanged()
    next(parameter for parts in module.stage_modules()[stage] for parameter in parts.parameters()).data[0] += 1e-6
    assert part.is_unchanged() == is_unchanged


def test_rounding_is_that_of_the_coarsest_type():
    module = small_module(classes=10)
    names = ("32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true")
    assert [part_of(module, precision=name).rounding for name in names] == [2**-23, 2**-23, 2**-10, 2**-7, 2**-7]
    # The device is where the run computes: float32 in TF32 there.
    assert part_of(module, device="cuda").rounding == 2**-10
