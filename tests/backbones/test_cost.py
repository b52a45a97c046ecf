import pytest
import torch

from lit_ft.backbones.build import build_backbone
from lit_ft.backbones.cost import stage_costs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_cost_is_that_of_float32_whatever_type_the_weights_have(dtype):
    backbone = build_backbone("mnist_cnn", weights=None)
    costs = stage_costs(backbone)
    assert costs[0].macs > 0
    assert stage_costs(backbone.to(dtype)) == costs
