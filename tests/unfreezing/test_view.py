from types import SimpleNamespace

import lightning as L
import pytest
from torch import nn

from lit_ft.backbones.backbone import training_share
from lit_ft.backbones.freezing import Staged
from lit_ft.model.module import FineTuneModule
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.plan import PlateauConfig, UnfreezingState
from lit_ft.unfreezing.view import plan_table, run_plan


class Three(Staged, L.LightningModule):
    """A module of stages of 100, 900 and 1000 parameters."""

    def __init__(self, stages=("stem", "layer1", "head")):
        super().__init__()
        self.layers = nn.ModuleDict(
            {stage: nn.Linear({"stem": 9, "layer1": 89}.get(stage, 99), 10) for stage in stages}
        )

    def stage_modules(self):
        return {name: [layer] for name, layer in self.layers.items()}


def trainer(*callbacks, max_epochs=10, lr_decay=0.5, stages=("head", "layer1", "stem")):
    groups = [{"stage": s, "lr": 0.0, "initial_lr": 0.01 * lr_decay**depth} for depth, s in enumerate(stages)]
    optimizers = [SimpleNamespace(param_groups=groups)]
    return SimpleNamespace(callbacks=callbacks, optimizers=optimizers, max_epochs=max_epochs, fast_dev_run=False)


HEADER = "  phase  epochs  trainable stages    parameters      learning rates  compute  all-reduce a step"


def test_table_shows_each_phase():
    unfreezing = GradualUnfreezing("gradual", epochs_per_stage=3, frozen_norm="stats")
    assert plan_table(trainer(unfreezing), Three()).splitlines() == [
        "Plan  Three: stem, layer1, head; 2,000 parameters; norms of frozen stages: stats",
        HEADER,
        "  1      0       head                1,000 (50.0%)   0.01            -        4.0 kB",
        "  2      1-3     layer1, head        1,900 (95.0%)   0.005 to 0.01   -        7.6 kB",
        "  3      4-9     stem, layer1, head  2,000 (100.0%)  0.0025 to 0.01  -        8.0 kB",
    ]


def test_table_of_a_run_without_end_and_of_many_stages():
    module = Three(("stem", "layer1", "layer2", "head"))
    rows = plan_table(trainer(GradualUnfreezing("lp_ft"), max_epochs=-1), module).splitlines()[2:]
    assert [row.split()[:3] for row in rows] == [["1", "0", "head"], ["2", "1-…", "all"]]


def test_table_of_plateaus_tells_what_is_open():
    unfreezing = GradualUnfreezing("plateau", plateau=PlateauConfig(min_epochs=2))
    rows = plan_table(trainer(unfreezing), Three()).splitlines()[2:]
    assert [row[9:32].split("  ")[0] for row in rows] == [
        "3 to 7, to a plateau",
        "3 to 7, to a plateau",
        "then the rest",
    ]
    endless = plan_table(trainer(unfreezing, max_epochs=None), Three()).splitlines()[2]
    assert "3 or more, to a plateau" in endless


def test_table_of_auto_tells_what_will_be_chosen():
    rows = plan_table(trainer(GradualUnfreezing("auto")), Three()).splitlines()[2:]
    assert "1-9     chosen after phase 1, head  2,000 (100.0%)" in rows[1]
    decided = GradualUnfreezing("auto")
    decided.state = UnfreezingState(decided.make_plan(Three(), 10))
    decided.state.decide({"stem": 0.1, "layer1": 1.0}, decided.auto_threshold)
    assert "1-9     layer1, head      1,900 (95.0%)" in plan_table(trainer(decided), Three()).splitlines()[3]


def test_table_of_a_network_has_the_share_of_compute():
    module = FineTuneModule("resnet18", weights=None, classes=10)
    rows = plan_table(trainer(GradualUnfreezing("lp_ft")), module).splitlines()[2:]
    assert [row.split()[-3] for row in rows] == [
        "34%",
        "100%",
    ]  # forward alone: one of three, less the images' gradient
    assert rows[0].split()[-2:] == ["20.5", "kB"]  # (512 * 10 + 10) * 4


@pytest.mark.parametrize(
    ("trains", "share"),
    [
        ([1, 1, 1], 1.0),
        ([0, 0, 1], (2 + 3 + 5 * 2) / 28),
        ([0, 1, 1], (2 + 6 + 15) / 28),
        ([1, 0, 1], (4 + 6 + 15) / 28),
    ],
)
def test_share_of_compute(trains, share):
    # All: 2 * 2 for the first stage, of whose input nobody wants the gradient, and 3 * 3 + 5 * 3.
    assert training_share([2, 3, 5], list(map(bool, trains))) == pytest.approx(share)


def test_without_a_callback_that_unfreezes_everything_trains():
    plan = run_plan(trainer(), Three())
    assert [phase.trainable for phase in plan.phases] == [("stem", "layer1", "head")]
    assert "norms" not in plan_table(trainer(), Three())


def test_norm_layers_that_train_while_frozen_are_counted():
    module = FineTuneModule("resnet18", weights=None, classes=10)
    frozen = plan_table(trainer(GradualUnfreezing("lp_ft")), module).splitlines()[2]
    trained = plan_table(trainer(GradualUnfreezing("lp_ft", frozen_norm="train")), module).splitlines()[2]
    assert "5,130 (0.0%)" in frozen
    assert "14,730 (0.1%)" in trained  # and the 9,600 weights and biases of ResNet-18's batch norm
    assert trained.endswith("58.9 kB")
