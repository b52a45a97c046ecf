import pytest
from torch import nn

from lit_ft.compat import BATCH_NORM, INSTANCE_NORM


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
