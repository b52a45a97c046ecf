import pytest
import torch
from parameter_rates import rates, two_groups
from torch import nn

from lit_ft.errors import UserError
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.warmup_cosine import WarmupCosine

TEN = RunLength(max_steps=10)


@pytest.mark.parametrize(
    ("options", "unfreeze_epoch", "expected"),
    [
        ({}, None, {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.85355, 6: 0.5, 8: 0.14645, 10: 0.0, 11: 0.0}),
        ({}, 5, {0: 0.0, 3: 0.0, 4: 0.0, 5: 0.5 * 0.69134, 6: 0.5, 8: 0.14645, 10: 0.0}),
        ({"warmup_fraction": 0.0}, None, {0: 1.0, 5: 0.5, 10: 0.0}),
        ({"warmup_fraction": 0.0}, 3, {2: 0.0, 3: 0.79389, 5: 0.5}),
        ({"final_fraction": 0.2}, None, {0: 0.5, 2: 1.0, 6: 0.6, 10: 0.2}),
        ({"warmup_fraction": 0.11}, None, {0: 0.5, 1: 1.0}),  # 1.1 steps are rounded up to 2
    ],
)
def test_warmup_cosine_has_the_values_of_the_formula(options, unfreeze_epoch, expected):
    optimizer = two_groups()
    scheduler = WarmupCosine(optimizer, **{"total_steps": 10, "warmup_fraction": 0.2, **options})
    if unfreeze_epoch is not None:
        # The trainer sets it after the scheduler was made; what is unfrozen at step 0 has its rate from the start.
        for group in optimizer.param_groups:
            group.update(unfreeze_epoch=unfreeze_epoch, lr=0.0)
    seen = rates(optimizer, scheduler, 12)
    for step, factor in expected.items():
        assert seen[step] == pytest.approx([factor, 0.1 * factor], abs=1e-5)


def test_warmup_cosine_warms_up_each_group_when_it_is_unfrozen():
    optimizer = two_groups((1.0, 1.0))
    scheduler = WarmupCosine(optimizer, total_steps=10, warmup_fraction=0.2)
    optimizer.param_groups[1]["unfreeze_epoch"] = 5
    seen = rates(optimizer, scheduler, 8)
    assert seen[4] == pytest.approx([0.85355, 0.0], abs=1e-5)
    assert seen[5] == pytest.approx([0.69134, 0.34567], abs=1e-5)
    assert seen[6] == pytest.approx([0.5, 0.5])  # both are on the same cosine


def test_warmup_cosine_goes_on_from_its_state(tmp_path):
    whole, first, second = two_groups(), two_groups(), two_groups()
    expected = rates(whole, WarmupCosine(whole, 10), 10)
    begun = WarmupCosine(first, 10)
    rates(first, begun, 4)
    torch.save([begun.state_dict(), first.state_dict()], tmp_path / "state")
    states = torch.load(tmp_path / "state", weights_only=True)
    resumed = WarmupCosine(second, 10)
    resumed.load_state_dict(states[0])
    second.load_state_dict(states[1])
    assert rates(second, resumed, 6) == expected[4:]


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_warmup_out_of_range_is_refused(fraction):
    text = f"^lr_scheduler.warmup_fraction: must be at least 0 and below 1, got {fraction}$"
    with pytest.raises(UserError, match=text):
        WarmupCosine(two_groups(), 10, warmup_fraction=fraction)


def test_resumed_cosine_takes_up_its_position_and_keeps_its_own_length():
    def made(total_steps):
        return WarmupCosine(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), total_steps, warmup_fraction=0.0)

    short, longer = made(10), made(20)
    short.last_epoch = 10
    longer.load_state_dict(short.state_dict())
    assert longer.last_epoch == 10
    assert longer.factor(10) == pytest.approx(0.5)
