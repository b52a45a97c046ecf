"""Runs that are resumed with another number of steps in an epoch: all that has a position goes on where it was."""

import math
from types import SimpleNamespace

import lightning as L
import processes
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from small_runs import WARMUP, FewDigits, RateTrace, small_module, small_trainer
from torch import nn

from lit_ft.backbones.freezing import Staged
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.errors import UserError
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.warmup_cosine import WarmupCosine
from lit_ft.unfreezing.callback import GradualUnfreezing

pytestmark = pytest.mark.filterwarnings("ignore")

EPOCHS, FIRST = 6, 3  # epochs of a run, and steps in an epoch of its beginning
UNFREEZE = {"head": 0, "dense": 2, "conv": 4}


def test_length_of_a_run():
    trainer = SimpleNamespace(num_training_batches=7, accumulate_grad_batches=2, max_epochs=3, max_steps=-1)
    assert RunLength.of(trainer) == RunLength(4, 3, math.inf)
    trainer.max_epochs, trainer.max_steps, trainer.num_training_batches = -1, 10, math.inf
    assert RunLength.of(trainer) == RunLength(math.inf, math.inf, 10)
    assert RunLength(4, 3, 10).total_steps == 10
    assert RunLength(4, 3, 10).in_epochs() == RunLength(1, 2.5)
    assert RunLength(math.inf, 3).in_epochs() == RunLength(1, 3)


def fit(folder=None, *callbacks, batch_size=8, schedule=WARMUP, ckpt_path=None, max_epochs=EPOCHS, **options):
    """A run on 24 images that is unfrozen in epochs 2 and 4, its trace and its trainer.

    In the folder, if any, are its checkpoints of every second step and epoch.
    """
    L.seed_everything(1)
    every = {"save_top_k": -1, "enable_version_counter": False, "auto_insert_metric_name": False}
    checkpoints = [
        ModelCheckpoint(folder, "step{step}", every_n_train_steps=2, **every),
        ModelCheckpoint(folder, "best{epoch}", monitor="val/loss", every_n_epochs=2, **every),
        ModelCheckpoint(folder, "end{epoch}", save_on_train_epoch_end=True, every_n_epochs=2, **every),
    ]
    checkpoints = checkpoints if folder else []
    trace, unfreezing = RateTrace(), GradualUnfreezing("gradual", head_epochs=2, epochs_per_stage=2)
    trainer = small_trainer(max_epochs, unfreezing, trace, *callbacks, *checkpoints, limit_val_batches=1, **options)
    module = small_module(lr=1.0, lr_decay=0.5, lr_scheduler=schedule, optimizer="SGD")
    data = FewDigits(batch_size=batch_size, numbers=[3, 3, 3, 3, 2, 2, 2, 2, 2, 2])
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trace, trainer


def rate(place, stage, epochs=EPOCHS):
    """The rate of a stage by the formula, in steps of the run's beginning."""
    step, total, start = place * FIRST, epochs * FIRST, UNFREEZE[stage] * FIRST
    warmup = math.ceil(0.25 * total)
    rise = min(1.0, (step - start + 1) / warmup) if step >= start else 0.0
    cosine = (1 + math.cos(math.pi * max(0.0, step - warmup) / (total - warmup))) / 2
    return 0.5 ** list(UNFREEZE).index(stage) * rise * cosine


def assert_on_the_curve(rates, places, epochs=EPOCHS):
    assert list(rates) == pytest.approx(places)
    for place, found in rates.items():
        expected = {stage: rate(place, stage, epochs) for stage in UNFREEZE}
        assert {name: found[name] for name in UNFREEZE} == pytest.approx(expected, abs=1e-12), place
        assert [found[f"{name}/no_decay"] for name in UNFREEZE] == [found[name] for name in UNFREEZE]


def places(first, steps, end=EPOCHS):
    """The progress at each step from the beginning of an epoch on."""
    return [first + step / steps for step in range((end - first) * steps)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three steps an epoch, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(folder)[0], folder


def test_uninterrupted_run_is_on_the_curve(whole):
    assert_on_the_curve(whole[0].rates, places(0, FIRST))


@pytest.mark.parametrize("name", ["end1", "best1", "step6"])
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param({"batch_size": 2}, 12, id="smaller_batches"),
        pytest.param({"batch_size": 24}, 1, id="larger_batches"),
        pytest.param({"accumulate_grad_batches": 3}, 1, id="accumulated_batches"),
    ],
)
def test_run_resumed_with_other_steps_goes_on_along_the_same_curve(whole, name, options, steps):
    trace, _ = fit(ckpt_path=whole[1] / f"{name}.ckpt", **options)
    assert_on_the_curve(trace.rates, places(2, steps))
    # That of before the validation begins with it.
    assert trace.validated == [*([1] if name == "step6" else []), 2, 3, 4, 5]


def test_run_resumed_twice_with_other_steps_is_on_the_curve_of_the_first(whole, tmp_path):
    first, _ = fit(tmp_path / "small", ckpt_path=whole[1] / "end1.ckpt", batch_size=2)
    second, _ = fit(ckpt_path=tmp_path / "small" / "end3.ckpt", batch_size=5)
    assert_on_the_curve(first.rates, places(2, 12))
    assert_on_the_curve(second.rates, places(4, 5))


def test_batches_accumulated_from_the_middle_of_an_epoch_on(tmp_path):
    first, _ = fit(tmp_path, batch_size=6)
    trace, _ = fit(batch_size=6, ckpt_path=tmp_path / "step10.ckpt", accumulate_grad_batches=2)
    assert list(trace.rates) == pytest.approx([2.5, *places(3, 2)])
    before, half, after = first.rates[2.25]["head"], trace.rates[2.5]["head"], first.rates[2.75]["head"]
    assert after < half < before


@pytest.mark.long
def test_run_resumed_on_two_processes_and_again_on_one_is_on_the_same_curve(whole, tmp_path):
    (tmp_path / "start.ckpt").write_bytes((whole[1] / "end1.ckpt").read_bytes())
    found = processes.launch(tmp_path, "resume_on_two")
    for rank in found:
        assert_on_the_curve(rank["resume_on_two"], places(2, 2, end=6))
    trace, _ = fit(ckpt_path=tmp_path / "two" / "end3.ckpt")
    assert_on_the_curve(trace.rates, places(4, FIRST))


def test_run_resumed_for_more_epochs_with_other_steps(whole):
    trace, _ = fit(ckpt_path=whole[1] / "end5.ckpt", batch_size=2, max_epochs=9)
    assert_on_the_curve(trace.rates, places(6, 12, end=9), epochs=9)


def test_second_fit_of_a_trainer_goes_on_along_the_curve_of_the_longer_run():
    trace, trainer = fit(max_epochs=5)
    first = dict(trace.rates)
    trace.rates.clear()
    trainer.fit_loop.max_epochs = 8
    trainer.fit(trainer.lightning_module, datamodule=trainer.datamodule)
    assert_on_the_curve(first, places(0, FIRST, end=5), epochs=5)
    assert_on_the_curve(trace.rates, places(5, FIRST, end=8), epochs=8)


def test_second_fit_keeps_to_the_phases_that_have_begun(tmp_path):
    unfreezing = GradualUnfreezing("plateau", plateau={"patience": 1, "min_delta": 9.0})
    trainer = small_trainer(5, unfreezing, limit_val_batches=1)
    module, data = small_module(lr_scheduler=None), FewDigits()
    trainer.fit(module, datamodule=data)
    assert unfreezing.state.starts == [0, 2, 4]
    trainer.fit_loop.max_epochs = 7
    trainer.fit(module, datamodule=data)
    assert unfreezing.state.starts == [0, 2, 4]
    assert trainer.current_epoch == 7


class Other(Staged, L.LightningModule):
    """A module of somebody else, with the schedule of lit_ft."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(784, 8), nn.Linear(8, 10)
        self.input_spec = InputSpec(28, 28, mean=(0.5,), std=(0.5,))

    def stage_modules(self):
        return {"first": [self.first], "last": [self.last]}

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.last(self.first(batch[0].float().flatten(1))), batch[1])

    def configure_optimizers(self):
        groups = [{"params": part.parameters(), "name": name} for name, part in self.named_children()]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        schedule = WarmupCosine(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_module_of_somebody_else_goes_on_along_the_same_curve(tmp_path):
    def rates(batch_size, ckpt_path=None):
        checkpoints = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, enable_version_counter=False)
        trainer = small_trainer(4, GradualUnfreezing("lp_ft"), trace := RateTrace(), checkpoints)
        trainer.fit(Other(), datamodule=FewDigits(batch_size=batch_size), ckpt_path=ckpt_path)
        return trace.rates

    whole = rates(5)
    assert whole[0.5]["first"] == 0 < whole[1]["first"] == whole[1]["last"]
    resumed = rates(20, tmp_path / "epoch=1.ckpt")
    assert list(resumed) == [2, 3]
    assert [resumed[epoch] for epoch in (2, 3)] == [pytest.approx(whole[epoch]) for epoch in (2, 3)]


def test_batches_accumulated_by_a_schedule_of_their_own_leave_the_rates_on_the_curve():
    trace, _ = fit(None, GradientAccumulationScheduler({2: 3}))
    assert_on_the_curve(trace.rates, [*places(0, FIRST, end=2), *places(2, 1)])


def test_run_of_a_number_of_steps_comes_to_its_end_with_other_batches(tmp_path):
    options = {"max_epochs": -1, "max_steps": 18}  # six epochs of three
    first, _ = fit(tmp_path / "first", **options)
    assert_on_the_curve(first.rates, places(0, FIRST))
    trace, _ = fit(batch_size=2, ckpt_path=tmp_path / "first" / "end3.ckpt", **options)
    # After 12 steps, six are left: half an epoch of twelve, in which the cosine comes down.
    assert list(trace.rates) == pytest.approx([4 + step / 12 for step in range(6)])
    last = [rates["head"] for rates in trace.rates.values()]
    total, warmup = 4.5 * FIRST, 4
    expected = [(1 + math.cos(math.pi * (place * FIRST - warmup) / (total - warmup))) / 2 for place in trace.rates]
    assert last == pytest.approx(expected)


def old_checkpoint(path, target):
    """What an earlier version would have written: groups and schedule count steps."""
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["epoch_steps"]
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        group["thaw_step"] = group.pop("unfreeze_epoch") * FIRST
    (state,) = checkpoint["lr_schedulers"]
    for key in ("curve_steps", "epoch_steps", "mark_epoch", "mark_step", "warmup_fraction"):
        del state[key]
    torch.save(checkpoint, target)
    return target


@pytest.mark.parametrize(("name", "batch_size", "first"), [("end1", 8, 2), ("step8", 8, 2 + 2 / 3), ("end1", 2, 2)])
def test_checkpoint_of_an_earlier_version_is_resumed(whole, tmp_path, name, batch_size, first):
    path = old_checkpoint(whole[1] / f"{name}.ckpt", tmp_path / "old.ckpt")
    trace, _ = fit(ckpt_path=path, batch_size=batch_size)
    if batch_size == 8:
        assert_on_the_curve(trace.rates, [place for place in places(0, FIRST) if place >= first - 1e-9])
    else:  # drawn in its own steps, as those of the earlier run are not told
        assert list(trace.rates) == pytest.approx(places(2, 12))
        assert trace.rates[2]["head"] == pytest.approx(rate(2, "head"), abs=0.03)


ONE_CYCLE = {"class_path": "OneCycleLR", "init_args": {"cycle_momentum": False}}
CYCLIC = {"class_path": "CyclicLR", "init_args": {"cycle_momentum": False, "step_size_up": 4}}
LISTED = {"class_path": "SequentialLR", "init_args": {"schedulers": ["ConstantLR", "WarmupCosine"], "milestones": [4]}}
SAME = "resume with the same data.batch_size, trainer.accumulate_grad_batches, trainer.max_epochs and number of"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Gives the checkpoint of a run after four epochs of six, which is made once for each schedule."""
    made = {}

    def checkpoint(schedule):
        name = schedule["class_path"]
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            fit(made[name], schedule=schedule)
        return made[name] / "end3.ckpt"

    return checkpoint


@pytest.mark.parametrize(
    ("schedule", "options", "text"),
    [
        (ONE_CYCLE, {"max_epochs": 9}, "OneCycleLR .* had 3 an epoch and 18 in all, this one has 3 an epoch and 27 in"),
        (ONE_CYCLE, {"batch_size": 4}, "OneCycleLR .* had 3 an epoch and 18 in all, this one has 6 an epoch and 36 in"),
        (
            CYCLIC,
            {"batch_size": 4},
            "CyclicLR counts steps: the checkpoint's run had 3 an epoch, this one has 6 an epo",
        ),
        (
            LISTED,
            {"batch_size": 4},
            "SequentialLR counts steps: .* had 3 an epoch, this one has 6 an",
        ),
    ],
)
def test_schedule_that_counts_steps_is_refused_where_it_cannot_go_on(begun, schedule, options, text):
    with pytest.raises(UserError, match=rf"^lr_scheduler: {text}.*; {SAME}"):
        fit(schedule=schedule, ckpt_path=begun(schedule), **options)


@pytest.mark.parametrize("schedule", [CYCLIC, LISTED])
def test_schedule_that_counts_steps_goes_on_for_more_epochs_where_it_has_no_end(begun, schedule):
    trace, _ = fit(schedule=schedule, ckpt_path=begun(schedule), max_epochs=8)
    assert list(trace.rates) == pytest.approx(places(4, FIRST, end=8))


def test_schedule_of_torch_is_refused_in_a_second_fit_of_a_trainer():
    _, trainer = fit(schedule=ONE_CYCLE)
    trainer.fit_loop.max_epochs = 8
    with pytest.raises(UserError, match=r"^lr_scheduler: OneCycleLR would begin anew in a second fit of the same"):
        trainer.fit(trainer.lightning_module, datamodule=trainer.datamodule)


def test_steps_that_are_left_tell_in_which_epoch_a_resumed_run_ends(tmp_path):
    fit(tmp_path / "first", max_epochs=-1, max_steps=24)
    # After epoch 1, of two: 18 are left, of twelve an epoch.
    with pytest.raises(UserError, match=r"^trainer.max_steps: 24 steps end the run after 4 epochs, but the last"):
        fit(batch_size=2, ckpt_path=tmp_path / "first" / "end1.ckpt", max_epochs=-1, max_steps=24)
