"""Gradual unfreezing together with what Lightning and torch do to a run: precision, compilation, clipping, averages."""

import shutil

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from small_runs import FewDigits, Recorder, differences, final_state, small_module, small_resnet, small_trainer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lit_ft.compat import is_compiled
from lit_ft.errors import UserError
from lit_ft.model.compiling import Compiling
from lit_ft.model.module import FineTuneModule
from lit_ft.training.trainer import EarlyStopping
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.preconditions import refuse_averaging
from lit_ft.unfreezing.strategies import make_plan

GRADUAL = [{"head"}, {"dense", "head"}, {"conv", "dense", "head"}]
SGD = {"class_path": "SGD", "init_args": {"momentum": 0.0}}


class Weights(Callback):
    """Notes the weights before the first step and after each, and the learning rates of each epoch's first step."""

    def __init__(self):
        self.steps, self.rates = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.steps:
            self.steps.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})
        if batch_idx == 0:
            self.rates.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


def fit(module, *callbacks, unfreezing=None, compiled=None, epochs=3, ckpt_path=None, data=None, **options):
    """A run of three phases and its trainer, what moved in each epoch, and its weights."""
    L.seed_everything(1)
    unfreezing = unfreezing or GradualUnfreezing("gradual")
    trainer = small_trainer(
        epochs, unfreezing, moves := Recorder(), weights := Weights(), *callbacks, **{"limit_val_batches": 1, **options}
    )
    trainer.fit(module if compiled is None else compiled, datamodule=FewDigits(**(data or {})), ckpt_path=ckpt_path)
    return trainer, moves.moved(), weights


@pytest.mark.filterwarnings("ignore:You passed .*precision='16-mixed'")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_unfreezes_with_mixed_precision_on_a_cpu(precision):
    """A CPU has no mixed float16: Lightning takes bfloat16 for it, and warns."""
    exact, mixed = small_module(), small_module()
    fit(exact)
    trainer, moved, _ = fit(mixed, precision=precision)
    assert trainer.precision == "bf16-mixed"
    assert moved == GRADUAL
    for name, weight in mixed.named_parameters():
        assert weight.dtype == torch.float32
        assert not weight.equal(exact.get_parameter(name))


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A run that is not compiled, with a checkpoint of each epoch."""
    return compiled_run(None, tmp_path_factory.mktemp("plain"))


def compiled_run(how, folder=None, ckpt_path=None, backend="aot_eager"):
    """A run compiled as ``how`` says, the state it ends with, and the folder of its checkpoints."""
    torch.compiler.reset()
    L.seed_everything(1)
    module = small_module(classes=10, compile=how == "by its option")
    compiled = torch.compile(module, backend=backend) if how == "by the trainer" else None
    if how == "in place":
        module.compile(backend=backend)
    if how == "backbone":
        module.backbone.compile(backend=backend)
    checkpoints = [ModelCheckpoint(folder, "{epoch}", save_top_k=-1)] if folder else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compiling, "backend", backend)
        trainer, moved, _ = fit(module, *checkpoints, compiled=compiled, ckpt_path=ckpt_path)
    return final_state(trainer, module), moved, folder


WAYS = [pytest.param(None, id="not"), "by the trainer", "in place", "backbone", "by its option"]


@pytest.mark.long
@pytest.mark.parametrize("how", [pytest.param(WAYS[1], marks=pytest.mark.slow), *WAYS[2:]])
def test_compiled_run_unfreezes_and_its_checkpoints_fit_runs_that_are_not_compiled(how, plain_run, tmp_path):
    # The backend that also traces gradients takes twice as long, and does the same whoever calls it.
    final, moved, _ = compiled_run(how, tmp_path, backend="aot_eager" if how == "backbone" else "eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert moved == GRADUAL
    assert differences(plain_run[0], final) == []
    resumed, _, _ = compiled_run(None, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert differences(plain_run[0], resumed) == []
    loaded = FineTuneModule.load_from_checkpoint(tmp_path / "epoch=2.ckpt").state_dict()
    assert differences(plain_run[0]["weights"], dict(loaded)) == []


@pytest.mark.long
def test_run_that_was_not_compiled_is_resumed_compiled(plain_run):
    resumed, moved, _ = compiled_run("in place", ckpt_path=plain_run[2] / "epoch=0.ckpt")
    assert moved == GRADUAL[1:]
    assert differences(plain_run[0], resumed) == []


@pytest.mark.long
def test_versions_of_earlier_phases_do_not_count_to_the_limit_of_the_compiler():
    # Each phase has one for training and one for validation.
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        assert compiled_run("in place", backend="eager")[1] == GRADUAL


@pytest.mark.long
def test_option_compiles_in_a_fit_alone_and_tells_each_phase(tmp_path, capsys):
    compiled_run("by its option", tmp_path, backend="eager")
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": its first step took" in line]
    assert told == [f"Compiled to train {stages}" for stages in ("head", "dense, head", "conv, dense, head")]
    module = FineTuneModule.load_from_checkpoint(tmp_path / "epoch=2.ckpt")
    assert module.hparams["compile"]
    small_trainer(1).validate(module, datamodule=FewDigits(), verbose=False)
    assert not is_compiled(module)


def test_steps_are_timed_where_others_train_than_before(capsys):
    compiling, module = Compiling(), small_module(classes=10)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for trained in (["head"], ["head"], ["dense", "head"]):
        module.set_trainable(trained)
        for step in range(2):
            compiling.on_train_batch_start(trainer, module, None, step)
            compiling.on_train_batch_end(trainer, module, None, None, step)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "Compiled to train head", "Compiled to train dense, head",
    ]  # fmt: skip


def test_option_to_compile_is_refused_without_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"^model.compile: true needs a C\+\+ compiler, as g\+\+; install one"):
        fit(small_module(compile=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("how", WAYS[1:])
def test_run_compiled_to_machine_code_unfreezes(how, plain_run):
    final, moved, _ = compiled_run(how, backend="inductor")
    assert moved == GRADUAL
    for name, weight in plain_run[0]["weights"].items():
        torch.testing.assert_close(final["weights"][name], weight, rtol=1e-2, atol=2e-3)


def test_accumulated_batches_make_the_step_of_a_larger_batch():
    runs = []
    for batch_size, count in ((10, 1), (5, 2)):
        module = small_module(optimizer=SGD)
        options = {"accumulate_grad_batches": count, "data": {"batch_size": batch_size}}
        trainer, moved, _ = fit(module, **options)
        assert (trainer.global_step, moved) == (6, GRADUAL)
        runs.append(dict(module.named_parameters()))
    for name, weight in runs[0].items():
        torch.testing.assert_close(runs[1][name], weight, rtol=1e-4, atol=1e-6)


# The gradients of the first phase must not count in the second.
REFREEZING = [
    {"train": ["*"], "epochs": 1},
    {"train": ["head"], "epochs": 1},
    {"train": ["dense", "head"], "epochs": 1},
]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_is_of_the_gradients_of_what_trains(algorithm):
    clip, lr = 0.01, 0.5
    module = small_module(optimizer=SGD, lr=lr, lr_scheduler=None)
    options = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
    _, moved, weights = fit(module, unfreezing=GradualUnfreezing("phases", phases=REFREEZING), **options)
    assert moved == [GRADUAL[2], GRADUAL[0], GRADUAL[1]]
    assert len(weights.steps) == 7
    for before, now in zip(weights.steps, weights.steps[1:], strict=False):
        change = torch.cat([(now[name] - before[name]).flatten() for name in now])
        size = change.norm() if algorithm == "norm" else change.abs().max()
        assert float(size) == pytest.approx(lr * clip, rel=1e-3)


KEPT = [{"train": ["head"], "epochs": 1}, {"train": ["layer4", "head"], "epochs": 1}]
FROZEN = tuple(f"backbone.stages.{name}." for name in ("stem", "layer1", "layer2", "layer3"))


def averaged_run(averaging, **options):
    """A ResNet with statistics of its own, whose first four stages stay frozen."""
    L.seed_everything(2)
    module = small_resnet(optimizer=SGD, **options)
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.add_(torch.rand(buffer.shape), alpha=0.2)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items() if name.startswith(FROZEN)}
    trainer, moved, weights = fit(module, averaging, epochs=2, unfreezing=GradualUnfreezing("phases", phases=KEPT))
    assert moved == [{"head"}, {"layer4", "head"}]
    assert len(trainer.optimizers[0].param_groups) == 12
    return module, start, weights


def ema(weights, decay):
    """The average over the steps, that of the first step being its weights."""
    average = dict(weights.steps[1])
    for step in weights.steps[2:]:
        average = {name: decay * average[name] + (1 - decay) * step[name] for name in average}
    return average


@pytest.mark.long
def test_exponential_average_through_unfreezing():
    module, start, weights = averaged_run(EMAWeightAveraging(decay=0.9))
    for name, average in ema(weights, 0.9).items():
        torch.testing.assert_close(module.get_parameter(name).detach(), average, rtol=1e-4, atol=1e-6)
    final = module.state_dict()
    for name, tensor in start.items():
        # Not bit for bit: 0.9 x + 0.1 x is rounded.
        torch.testing.assert_close(final[name], tensor, rtol=1e-5, atol=0)


@pytest.mark.long
def test_exponential_average_by_interpolation_keeps_frozen_stages_bit_for_bit():
    averaging = WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9))
    module, start, weights = averaged_run(averaging)
    final = module.state_dict()
    assert [name for name, tensor in start.items() if not final[name].equal(tensor)] == []
    name = "backbone.stages.layer4.layer4.1.conv2.weight"
    torch.testing.assert_close(final[name], ema(weights, 0.9)[name], rtol=1e-4, atol=1e-6)
    assert not final[name].equal(weights.steps[-1][name])


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize("rates", [0.02, [0.02, 0.02, 0.01, 0.01, 0.005, 0.005]], ids=["one", "each group"])
def test_stochastic_weight_averaging_through_unfreezing(rates):
    module = small_module(optimizer=SGD, lr_decay=0.5)
    phases = [{"train": ["head"], "epochs": 1}, {"train": ["dense", "head"], "epochs": 3}]
    start = {name: p.detach().clone() for name, p in module.backbone.stages["conv"].named_parameters()}
    swa = StochasticWeightAveraging(rates, swa_epoch_start=2, annealing_epochs=1)
    trainer, moved, weights = fit(module, swa, epochs=4, unfreezing=GradualUnfreezing("phases", phases=phases))
    assert moved == [{"head"}, *[{"dense", "head"}] * 3]
    groups = trainer.optimizers[0].param_groups
    assert [group["name"] for group in groups[::2]] == ["head", "dense", "conv"]
    assert list(weights.rates[-1].values()) == pytest.approx(rates if isinstance(rates, list) else [rates] * 6)
    # Those of the beginnings of epochs 1, 2 and 3, of two steps each.
    beginnings = [weights.steps[2 * epoch] for epoch in (1, 2, 3)]
    for name, weight in module.named_parameters():
        average = sum(step[name] for step in beginnings) / 3
        torch.testing.assert_close(weight.detach(), average, rtol=1e-5, atol=1e-7)
    for name, weight in module.backbone.stages["conv"].named_parameters():
        assert weight.equal(start[name])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_stochastic_weight_averaging_gathers_the_statistics_of_unfrozen_batch_norm_anew():
    module = small_resnet(optimizer=SGD)
    swa = StochasticWeightAveraging(0.01, swa_epoch_start=2, annealing_epochs=1)
    trainer, _, _ = fit(module, swa, epochs=3, unfreezing=GradualUnfreezing("lp_ft"))
    norm = module.backbone.stages["stem"].bn1
    assert (int(norm.num_batches_tracked), norm.momentum) == (2, 0.1)
    images = torch.cat([images for images, _ in trainer.datamodule.train_dataloader()])
    with torch.no_grad():
        means = module.backbone.stages["stem"].conv1(module.normalise(images)).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-3, atol=1e-4)


STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize(
    ("strategy", "callback", "frozen_norm", "refused"),
    [
        ("linear_probe", StochasticWeightAveraging(0.1), "eval", True),
        ("linear_probe", StochasticWeightAveraging(0.1), "stats", False),
        ("linear_probe", EarlyStopping(), "eval", False),
        ("lp_ft", StochasticWeightAveraging(0.1), "eval", False),
    ],
)
def test_stochastic_weight_averaging_that_would_reset_frozen_batch_norm_is_refused(
    strategy, callback, frozen_norm, refused
):
    stages, plan = small_resnet(classes=2).stage_modules(), make_plan(strategy, STAGES, 3)
    if not refused:
        return refuse_averaging([callback], stages, plan, frozen_norm)
    with pytest.raises(UserError, match=r"^trainer.callbacks: StochasticWeightAveraging would reset .*\(stem, layer1"):
        refuse_averaging([callback], stages, plan, frozen_norm)


@pytest.mark.filterwarnings("ignore:.early_stopping.patience")
def test_early_stopping_ends_the_plan_where_it_is():
    module = small_module()
    trainer, moved, _ = fit(module, EarlyStopping(patience=1, min_delta=1e9), epochs=6)
    assert (moved, trainer.current_epoch, trainer.should_stop) == (GRADUAL[:2], 2, True)
