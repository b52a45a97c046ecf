import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.profilers import SimpleProfiler
from small_runs import FewDigits, differences, final_state, small_module

from lit_ft.errors import UserError
from lit_ft.training import trainer
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing

pytestmark = pytest.mark.filterwarnings("ignore")

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 1,
}  # fmt: skip


@pytest.fixture
def precision():
    """Sets torch's precision of float32 matrices, and puts it back."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("on_cuda", "before", "expected"),
    [(True, "highest", "high"), (True, "medium", "medium"), (False, "highest", "highest")],
)
def test_matrices_are_multiplied_in_tf32_on_cuda(monkeypatch, precision, on_cuda, before, expected):
    if on_cuda:
        monkeypatch.setattr(trainer, "CUDAAccelerator", CPUAccelerator)
    precision(before)
    Trainer(**QUIET)
    assert torch.get_float32_matmul_precision() == expected


def test_profiler_of_the_user_is_kept():
    asked = Trainer(**QUIET, profiler="simple")
    assert type(asked.profiler) is SimpleProfiler
    with Trainer(**QUIET).profiler.profile("step") as nothing:
        assert nothing is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"gradient_clip_val": 0.5}, True),
        ({"precision": "bf16-mixed"}, True),
        # Lightning refuses to clip with a fused optimizer wherever precision is mixed.
        ({"precision": "bf16-mixed", "gradient_clip_val": 0.5}, None),
        ({"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))}, None),
    ],
)
def test_optimizer_is_fused_but_where_lightning_needs_whole_gradients(options, expected):
    run = Trainer(**QUIET, **options, callbacks=[GradualUnfreezing("full")], limit_train_batches=1)
    run.fit(small_module(), datamodule=FewDigits())
    assert {group["fused"] for group in run.optimizers[0].param_groups} == {expected}


def fitted(plan_first):
    L.seed_everything(0)
    run, module, data = Trainer(**QUIET, callbacks=[GradualUnfreezing("full")]), small_module(), FewDigits()
    callbacks = list(run.callbacks)
    if plan_first:
        run.plan(module, data)
        assert run.callbacks == callbacks
        assert run.global_step == 0
    run.fit(module, datamodule=data)
    return final_state(run, module)


class Once(Callback):
    """Refuses one fit, when it is told to."""

    refuses = False

    def on_fit_start(self, trainer, pl_module):
        if self.refuses:
            raise UserError("not now")


def test_fit_after_a_plan_is_as_one_without():
    assert differences(fitted(True), fitted(False)) == []


def test_plan_that_is_refused_leaves_the_callbacks_as_they_were():
    once = Once()
    run = Trainer(**QUIET, callbacks=[once])
    once.refuses = True
    with pytest.raises(UserError, match="not now"):
        run.plan(small_module(compile=True), FewDigits())
    assert run.callbacks == [once]
    once.refuses = False
    run.fit(small_module(), datamodule=FewDigits())
    assert run.global_step == 2


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_end_with_the_fit_are_refused_before_it(strategy):
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    with pytest.raises(UserError, match=f"trainer.strategy.*the processes of {strategy} end with the fit.*give ddp"):
        trainer.finetune(small_module(), FewDigits())


@pytest.mark.parametrize("given", ["epochs", "max_epoch"])
def test_argument_that_lightning_has_not_is_answered_with_the_nearest(given):
    with pytest.raises(UserError, match=rf"^lit_ft.Trainer: unknown argument '{given}'; nearest: .*max_epochs"):
        Trainer(**{given: 3})
