"""Tests of what upstream keeps private: each fails where a release changes it, so that it can go."""

import inspect

import lightning as L
import pytest
import torch
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.compile import from_compiled
from small_runs import small_trainer
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.compat import (
    attached_trainer,
    collect_constructor_arguments,
    inner_schedulers,
    inner_states,
    is_compiled,
    log_repeatedly,
    setup_train_data,
)


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


@pytest.mark.parametrize("ckpt_path", [None, "last.ckpt"])
def test_training_data_set_up_early_is_set_up_again_on_resume(ckpt_path):
    class Early(Logged):
        def configure_optimizers(self):
            given, self.trainer.ckpt_path = self.trainer.ckpt_path, ckpt_path
            setup_train_data(self.trainer)
            self.num_batches, self.loader = self.trainer.num_training_batches, self.trainer.fit_loop._combined_loader
            self.trainer.ckpt_path = given
            return super().configure_optimizers()

    module = Early()
    small_trainer(1).fit(module, loader())
    assert module.num_batches == 3
    assert (module.loader is None) is (ckpt_path is not None)
    assert module.seen == [0, 1, 2]


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
            self.collected = collect_constructor_arguments(inspect.currentframe())

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
