"""Arithmetic of a fit on a GPU: that of the CPU, mixed precision, the scaler of gradients, compilation."""

import pytest
import torch
from gpu_runs import SGD, fit, half_precision
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from small_runs import FewDigits, small_module, small_resnet
from torch import nn

from lit_ft.compat import is_compiled
from lit_ft.model.compiling import Compiling
from lit_ft.unfreezing.callback import GradualUnfreezing

pytestmark = [
    pytest.mark.gpu,
    # A scaler passes over the first step where its gradients overflow.
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]


@pytest.mark.parametrize(
    ("build", "options"),
    [(small_module, {"lr": 1e-3}), (small_module, {"mix": {"mixup": 0.4, "erase": 0.5}}), (small_resnet, {})],
    ids=["cnn", "mixed", "resnet18"],
)
def test_fit_goes_as_on_a_cpu(build, options, device):
    """In float64, where what is left is the order of sums: 1e-16, of which a few steps make no more than 1e-9."""
    runs = []
    for place in ("cpu", device):
        trainer, steps = fit(place, lambda: build(**options), GradualUnfreezing("lp_ft"),
                             data=FewDigits(augment="basic"), precision="64-true")  # fmt: skip
        weights = {key: value.cpu() for key, value in trainer.lightning_module.state_dict().items()}
        runs.append((steps.values(), weights, {key: float(v) for key, v in trainer.callback_metrics.items()}))
    (losses, weights, metrics), (losses_there, weights_there, metrics_there) = runs
    assert len(losses) == 4
    assert losses_there == pytest.approx(losses, rel=1e-9)
    assert metrics_there == pytest.approx(metrics, rel=1e-6)  # which are float32
    for key, value in weights.items():
        torch.testing.assert_close(weights_there[key], value, rtol=1e-7, atol=1e-9)


class Convolution(Callback):
    """Notes what the first convolution takes, and gives, in a training step."""

    def on_train_start(self, trainer, pl_module):
        conv = next(part for part in pl_module.modules() if isinstance(part, nn.Conv2d))
        self.seen = []
        conv.register_forward_hook(lambda layer, given, output: self.seen.append((layer.weight, given[0], output)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_channels_lie_together_at_the_convolution_in_the_type_of_the_precision(precision, device):
    _, steps = fit(device, small_resnet, seen := Convolution(), epochs=1, precision=precision)
    weight, images, output = seen.seen[0]
    assert {one.device.type for one in (weight, images, output)} == {device}
    for one in (weight, images, output):
        assert one.is_contiguous(memory_format=torch.channels_last)
    wanted = {"32-true": torch.float32}.get(precision, torch.bfloat16)
    assert output.dtype == wanted
    assert weight.dtype == (wanted if precision.endswith("-true") else torch.float32)
    assert {loss.dtype for loss in steps.losses} == {torch.float32}
    assert all(torch.isfinite(loss) for loss in steps.losses)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_first_loss_in_half_precision_is_that_of_float32_but_for_rounding(precision, device):
    options = half_precision(device) if precision == "16-mixed" else {"precision": precision}
    (_, exact), (_, half) = (fit(device, small_module, epochs=1, **one) for one in ({}, options))
    rounding = torch.finfo(torch.bfloat16 if precision == "bf16-mixed" else torch.float16).eps
    # Three layers, each of which rounds what it takes and gives.
    assert half.values()[0] == pytest.approx(exact.values()[0], rel=6 * rounding)
    assert half.values() != exact.values()


class Scales(Callback):
    """Begins with a scale at which gradients overflow; notes that of each step, and whether the step was taken."""

    def __init__(self, scale=None):
        self.scale, self.scales, self.moved, self.restored = scale, [], [], None

    def on_train_start(self, trainer, pl_module):
        scaler = trainer.precision_plugin.scaler
        self.restored = scaler.get_scale()
        if self.scale:
            scaler.load_state_dict({**scaler.state_dict(), "scale": self.scale})
        self._weight = next(pl_module.head.parameters())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._before = self._weight.detach().clone()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.scales.append(trainer.precision_plugin.scaler.get_scale())
        self.moved.append(not self._weight.equal(self._before))


def test_scale_falls_until_gradients_fit_and_goes_on_through_unfreezing_and_a_resume(device, tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)

    def run(*callbacks, **options):
        options |= {"data": FewDigits(batch_size=5), "epochs": 3, **half_precision(device)}
        module = small_module(optimizer=SGD, lr_scheduler=None, lr=1e-3)
        return fit(device, module, GradualUnfreezing("lp_ft"), *callbacks, **options)

    trainer, _ = run(checkpoints, scales := Scales(2.0**21))
    assert len(scales.scales) == 12
    # Each step is taken, or else halves the scale.
    expected, scale = [], 2.0**21
    for moved in scales.moved:
        scale = scale if moved else scale / 2
        expected.append(scale)
    assert scales.scales == expected
    assert not scales.moved[0]
    assert any(scales.moved)
    assert all(torch.isfinite(value).all() for value in trainer.lightning_module.state_dict().values())

    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["MixedPrecision"]
    assert saved["scale"] == scales.scales[7]
    _, resumed = run(again := Scales(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert again.restored == scales.scales[7]
    assert len(resumed.losses) == 4


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_compiled_fit_has_the_losses_of_one_that_is_not(precision, device, monkeypatch):
    monkeypatch.setattr(Compiling, "backend", "inductor" if device == "cuda" else "eager")  # a CPU takes far longer
    torch.compiler.reset()
    runs = []
    for compiled in (False, True):
        module = small_module(compile=compiled, lr=1e-3, optimizer=SGD, classes=10, head={"zero_init": True})
        trainer, steps = fit(device, module, GradualUnfreezing("lp_ft"), precision=precision)
        assert is_compiled(trainer.lightning_module) == compiled
        runs.append(steps.values())
    torch.compiler.reset()
    # Fused kernels round less often: a few roundings of bfloat16, and of float32 those of sums.
    assert runs[1] == pytest.approx(runs[0], rel=1e-5 if precision == "32-true" else 0.03)


class Averaged(Callback):
    """Averages the weights after each step as an exponential average does."""

    decay = 0.9

    def __init__(self):
        self.average = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}
        before = self.average or now
        self.average = {name: self.decay * before[name] + (1 - self.decay) * now[name] for name in now}


def test_exponential_average_lies_on_the_device_that_is_asked_for(device):
    averaging = EMAWeightAveraging(device=device, decay=Averaged.decay)
    trainer, _ = fit(device, small_module, averaging, expected := Averaged(), epochs=3)
    for name, parameter in trainer.lightning_module.named_parameters():
        assert expected.average[name].device.type == device
        torch.testing.assert_close(parameter.detach().cpu(), expected.average[name].cpu(), rtol=1e-4, atol=1e-6)
