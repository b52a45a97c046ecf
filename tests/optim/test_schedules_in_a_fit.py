"""Every scheduler of torch in a fit with two unfreezings: its rates by its published formula, and on resume."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import FewDigits, Recorder, differences, final_state, harmonic, small_module, small_trainer
from torch.optim import lr_scheduler

from lit_ft.model.module import FineTuneModule
from lit_ft.unfreezing.callback import GradualUnfreezing

SGD = {"class_path": "SGD", "init_args": {"momentum": 0.9}}
LR, EPOCHS, STEPS_PER_EPOCH = 0.08, 3, 4
STEPS = EPOCHS * STEPS_PER_EPOCH
UNFROZEN = {"head": 0, "dense": 4, "conv": 8}
CONSTANT = {"class_path": "ConstantLR", "init_args": {"factor": 0.5, "total_iters": 2}}
HALVING = {"class_path": "ExponentialLR", "init_args": {"gamma": 0.5}}


def cosine(share):
    """Half a cosine from 1 down to 0."""
    return (1 + math.cos(math.pi * share)) / 2


def triangle(step, up=3, down=2):
    place = step % (up + down)
    return place / up if place <= up else (up + down - place) / down


def one_cycle(step):
    """From 1/25 to 1 at the last step of the first quarter, then to 1/250000 at the last step of all."""
    top = STEPS // 4 - 1
    if step <= top:
        return 1 + (1 / 25 - 1) * cosine(step / top)
    return 1 / 250000 + (1 - 1 / 250000) * cosine((step - top) / (STEPS - 1 - top))


def cosine_after_four_steps(step, start):
    if step < 4:
        return 0.5
    step, start = step - 4, max(0, start - 4)
    rise = min(1.0, (step - start + 1) / 2) if step >= start else 0.0
    return rise * cosine(max(0, step - 2) / 6)


# For each class its options, and the share of a group's own rate in an epoch (e) and step (s), for a group with that
# base rate (b) that is unfrozen at a step (t). Frozen groups are on the same schedule as others, but for WarmupCosine.
SCHEDULES = {
    "LambdaLR": ({"lr_lambda": "small_runs.harmonic"}, lambda e, s, b, t: 1 / (1 + e)),
    "MultiplicativeLR": ({"lr_lambda": "small_runs.harmonic"}, lambda e, s, b, t: 1 / math.factorial(e + 1)),
    "StepLR": ({"step_size": 2, "gamma": 0.1}, lambda e, s, b, t: 0.1 ** (e // 2)),
    "MultiStepLR": ({"milestones": [1, 2], "gamma": 0.5}, lambda e, s, b, t: 0.5 ** ((e >= 1) + (e >= 2))),
    "ConstantLR": (CONSTANT["init_args"], lambda e, s, b, t: 0.5 if e < 2 else 1.0),
    "LinearLR": ({"start_factor": 0.25, "total_iters": 2}, lambda e, s, b, t: 0.25 + 0.75 * e / 2),
    "ExponentialLR": (HALVING["init_args"], lambda e, s, b, t: 0.5**e),
    "PolynomialLR": ({"total_iters": 4, "power": 2.0}, lambda e, s, b, t: (1 - e / 4) ** 2),
    "CosineAnnealingLR": (
        {"T_max": 2, "eta_min": 0.01},
        lambda e, s, b, t: (0.01 + (b - 0.01) * cosine(e / 2)) / b,
    ),
    "CosineAnnealingWarmRestarts": ({"T_0": 2}, lambda e, s, b, t: cosine(e % 2 / 2)),
    "CyclicLR": ({"step_size_up": 3, "step_size_down": 2}, lambda e, s, b, t: 0.25 + 0.75 * triangle(s)),
    "OneCycleLR": ({"pct_start": 0.25}, lambda e, s, b, t: one_cycle(s)),
    # No loss is 100 below the first one: each later epoch is a bad one.
    "ReduceLROnPlateau": (
        {"patience": 0, "factor": 0.5, "threshold": 100.0, "threshold_mode": "abs"},
        lambda e, s, b, t: 0.5 ** max(0, e - 1),
    ),
    "SequentialLR": (
        {"schedulers": [CONSTANT, HALVING], "milestones": [1]},
        lambda e, s, b, t: 0.5 if e == 0 else 0.5 ** (e - 1),
    ),
    "ChainedScheduler": (
        {"schedulers": [CONSTANT, HALVING]},
        lambda e, s, b, t: 0.5**e * (0.5 if e < 2 else 1.0),
    ),
}
OF_STEPS = {
    "SequentialLR of steps": (
        {
            "schedulers": [
                {"class_path": "ConstantLR", "init_args": {"factor": 0.5, "total_iters": 99}},
                {"class_path": "WarmupCosine", "init_args": {"warmup_fraction": 0.25}},
            ],
            "milestones": [4],
        },
        lambda e, s, b, t: cosine_after_four_steps(s, t),
    ),
    "ChainedScheduler of steps": (
        {"schedulers": [{"class_path": "OneCycleLR", "init_args": {"pct_start": 0.25}}]},
        lambda e, s, b, t: one_cycle(s),
    ),
}


def test_table_has_every_scheduler_of_torch():
    classes = {
        name
        for name, thing in vars(lr_scheduler).items()
        if isinstance(thing, type) and issubclass(thing, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert set(SCHEDULES) == classes - {"LRScheduler"}


def scheduled_run(name, options, folder, seed, ckpt_path=None):
    L.seed_everything(seed)
    spec = {"class_path": name.split()[0], "init_args": options}
    module = small_module(lr=LR, lr_decay=0.5, optimizer=SGD, lr_scheduler=spec, head={"dropout": 0.5})
    checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=6, save_top_k=-1, enable_version_counter=False)
    recorder = Recorder()
    trainer = small_trainer(EPOCHS, GradualUnfreezing("gradual"), recorder, checkpoint, limit_val_batches=1)
    trainer.fit(module, datamodule=FewDigits(batch_size=5), ckpt_path=ckpt_path)
    return recorder, final_state(trainer, module)


@pytest.fixture(scope="module", params=[*SCHEDULES, *OF_STEPS])
def whole_run(request, tmp_path_factory):
    options, factor = {**SCHEDULES, **OF_STEPS}[request.param]
    folder = tmp_path_factory.mktemp("run")
    return request.param, options, factor, folder, *scheduled_run(request.param, options, folder, seed=1)


def test_each_group_has_the_rate_of_the_formula_at_each_step(whole_run):
    _, _, factor, _, recorder, _ = whole_run
    assert len(recorder.rates) == STEPS
    for depth, (stage, start) in enumerate(UNFROZEN.items()):
        base = LR * 0.5**depth
        expected = [base * factor(step // STEPS_PER_EPOCH, step, base, start) for step in range(STEPS)]
        for name in (stage, f"{stage}/no_decay"):
            assert [rates[name] for rates in recorder.rates] == pytest.approx(expected)
    assert recorder.moved() == [{"head"}, {"dense", "head"}, {"conv", "dense", "head"}]


def test_resumed_run_has_the_same_rates_and_ends_bit_for_bit_the_same(whole_run, tmp_path):
    name, options, _, folder, recorder, final = whole_run
    path = folder / "step=6.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 6
    resumed, end = scheduled_run(name, options, tmp_path, seed=2, ckpt_path=path)
    assert resumed.rates == recorder.rates[6:]
    assert differences(final, end) == []


def test_function_is_kept_as_its_path(tmp_path):
    spec = {"class_path": "LambdaLR", "init_args": {"lr_lambda": harmonic}}
    module = small_module(lr_scheduler=spec)
    trainer = small_trainer(1, limit_val_batches=0, limit_train_batches=1)
    trainer.fit(module, datamodule=FewDigits())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = FineTuneModule.load_from_checkpoint(tmp_path / "run.ckpt")
    assert again.hparams["lr_scheduler"]["init_args"] == {"lr_lambda": "small_runs.harmonic"}


class WaitsForPlateau(FineTuneModule):
    """Halves its rate whenever the loss has not fallen by 1e9, which it never does, by its own optimizer."""

    config = {"monitor": "val/loss"}  # noqa: RUF012

    def configure_optimizers(self):
        optimizer = torch.optim.SGD([{"params": self.parameters(), "name": "all"}], LR)
        options = {"factor": 0.5, "patience": 0, "threshold": 1e9, "threshold_mode": "abs"}
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.config}}


class WaitsEachStep(WaitsForPlateau):
    config = {"monitor": "train/loss", "interval": "step", "frequency": 2}  # noqa: RUF012


class HasOwnEpochEnd(WaitsForPlateau):
    def on_train_epoch_end(self):
        """Calls no other, as a hook of Lightning's does nothing."""


class StepsByItself(WaitsForPlateau):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(metric)


class StepsByTheOther(WaitsForPlateau):
    def lr_scheduler_step(self, scheduler, metric):
        super().lr_scheduler_step(scheduler, metric)


@pytest.mark.parametrize(
    ("cls", "checks"),
    [
        (WaitsForPlateau, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        (HasOwnEpochEnd, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        (StepsByItself, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        (StepsByTheOther, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        (WaitsEachStep, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
    ],
)
def test_plateau_of_a_subclass_is_looked_for_as_often_as_lightning_does(cls, checks):
    recorder = Recorder()
    trainer = small_trainer(EPOCHS, recorder, limit_val_batches=1, log_every_n_steps=1)
    trainer.fit(cls("mnist_cnn", weights="MNIST"), datamodule=FewDigits(batch_size=5))
    # The first value is the best one, and each further one halves the rate.
    assert [rates["all"] for rates in recorder.rates] == [LR * 0.5 ** max(0, num - 1) for num in checks]
