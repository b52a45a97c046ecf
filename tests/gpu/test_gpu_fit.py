"""A fit on a GPU as a whole: resumes, processes, memory, and no step that waits for another."""

import os
import warnings

import lightning as L
import pytest
import torch
from gpu_runs import SGD, Steps, fit, forget_peak, gpu_trainer, half_precision, peak_bytes, telling_syncs
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from small_runs import FewDigits, differences, final_state, small_module, small_resnet

from lit_ft.data import ImageFolderDataModule
from lit_ft.errors import UserError
from lit_ft.features.cache import FeatureCache
from lit_ft.training.progress import Lines
from lit_ft.training.step_cost import measure_memory, measure_seconds
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.plan import PhaseConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    # Of kernels without a deterministic form; whether they differ, the tests see.
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation:UserWarning"),
]


def seeded_run(folder, device, ckpt_path=None, module=None, **options):
    """Phases of the head and of all, with dropout, augmentation and a schedule, and a checkpoint after each step."""
    checkpoints = [] if folder is None else [ModelCheckpoint(folder, "step{step}", every_n_train_steps=1, save_top_k=-1,
                                                             auto_insert_metric_name=False)]  # fmt: skip
    trainer, steps = fit(
        # With its head, as processes that start begin with the seed anew.
        device, lambda: small_module(classes=10, head={"hidden": [16], "dropout": 0.5}, **(module or {})),
        GradualUnfreezing("lp_ft"), *checkpoints, data=FewDigits(batch_size=7, augment="basic"), ckpt_path=ckpt_path,
        **{"deterministic": "warn", **options},
    )  # fmt: skip
    return final_state(trainer, trainer.lightning_module), steps.values()


@pytest.mark.parametrize("case", ["adamw", "sgd, mixed", "float16", "bfloat16"])
@pytest.mark.parametrize("step", [2, 4], ids=["in a phase of the head", "in the last phase"])
def test_resumed_run_ends_bit_for_bit_as_one_that_was_not_interrupted(case, step, device, tmp_path):
    options = {
        "sgd, mixed": {"module": {"optimizer": SGD, "mix": {"mixup": 0.4, "cutmix": 1.0, "erase": 0.5}}},
        "bfloat16": {"precision": "bf16-mixed"},
    }.get(case, {})

    def run(folder, **more):
        return seeded_run(folder, device, **options, **(half_precision(device) if case == "float16" else {}), **more)

    whole, losses = run(tmp_path)
    assert len(losses) == 6
    resumed, rest = run(None, ckpt_path=tmp_path / f"step{step}.ckpt")
    assert rest == losses[step:]
    whole["scores"] = resumed["scores"] = None  # of the checkpoints, which a resume has elsewhere
    assert differences(whole, resumed) == []


class Draws(Callback):
    """Notes what each step draws on the device, and draws some numbers between two steps."""

    def __init__(self, number):
        self.number, self.drawn = number, []

    def on_after_backward(self, trainer, pl_module):
        self.drawn.append(torch.rand(4, device=pl_module.device).tolist())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.rand(self.number, device=pl_module.device)


def test_each_step_draws_on_the_device_what_its_position_says(device):
    draws = []
    for number in (0, 3):
        fit(device, small_module, drawing := Draws(number), data=FewDigits(batch_size=7), epochs=1)
        draws.append(drawing.drawn)
    assert draws[0] == draws[1]
    assert len({tuple(numbers) for numbers in draws[0]}) == 3


@pytest.fixture
def processes(monkeypatch):
    """What a strategy of processes leaves in this one, until the test ends."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def test_one_process_of_ddp_does_what_a_device_alone_does(device, processes):
    """By NCCL, through a phase for which the model is wrapped anew."""
    alone, losses = seeded_run(None, device)
    backend = "nccl" if device == "cuda" else "gloo"
    strategy = DDPStrategy(process_group_backend=backend)
    wrapped, losses_there = seeded_run(None, device, strategy=strategy)
    assert torch.distributed.get_backend() == backend
    assert losses_there == losses
    assert differences(alone, wrapped) == []


def test_batch_norm_of_all_processes_is_that_of_the_device_where_there_is_one(device, processes):
    def run(**options):
        L.seed_everything(1, verbose=False)
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_epochs=2, limit_val_batches=1,
            callbacks=[GradualUnfreezing("lp_ft"), steps := Steps()], deterministic="warn", logger=False,
            num_sanity_val_steps=0, **quiet, **options,
        )  # fmt: skip
        trainer.fit(small_resnet(classes=10), datamodule=FewDigits())
        return steps.values(), {name: value.cpu() for name, value in trainer.lightning_module.state_dict().items()}

    losses, weights = run()
    if device == "cpu":
        with pytest.raises(UserError, match=r"^trainer.sync_batchnorm: torch has it on GPUs alone"):
            run(strategy="ddp", sync_batchnorm=True)
    losses_there, weights_there = run(strategy="ddp", sync_batchnorm=device == "cuda")
    assert losses_there == losses
    assert differences(weights, weights_there) == []


class Peaks(Callback):
    """Notes the most memory of each epoch."""

    def __init__(self, device):
        self.device, self.peaks = device, []

    def on_train_epoch_start(self, trainer, pl_module):
        forget_peak(self.device)

    def on_train_epoch_end(self, trainer, pl_module):
        self.peaks.append(peak_bytes(self.device))


def test_phase_that_trains_less_takes_less_memory(device):
    phases = [PhaseConfig(train, 1) for train in (["head"], ["layer4", "head"], ["*"])]
    options = {
        "data": FewDigits(batch_size=64 if device == "cuda" else 10, numbers=[13] * 10 if device == "cuda" else None)
    }
    fit(device, small_resnet, GradualUnfreezing("phases", phases=phases), peaks := Peaks(device), epochs=3, **options)
    head, last, everything = peaks.peaks
    if device == "cuda":
        assert 0 < head < last < everything


def test_memory_and_time_of_a_step_are_measured_with_the_module_on_the_device(device):
    module = small_resnet(classes=10).to(device)
    module.set_trainable(list(module.stage_modules()))
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, fused=True)
    here, there = (measure_memory(one, optimizer, 16, "bf16-mixed", False, parameters)
                   for one in (small_resnet(classes=10), module))  # fmt: skip
    assert there.parameters == here.parameters
    assert there.optimizer == here.optimizer == 2 * sum(p.nbytes for p in parameters)
    assert there.activations == pytest.approx(here.activations, rel=0.3)  # of other kernels
    assert measure_seconds(module, 4, "bf16-mixed") > 0
    assert {p.device.type for p in module.parameters()} == {device}


class Waits(Callback):
    """Notes where the CPU waits for the GPU, in steps after those at which the losses are looked at."""

    first, last = 10, 18

    def __init__(self, device):
        self.device, self.found, self.given, self._open = device, None, None, None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.first:
            self.given = type(batch[0]).__name__
            self._open = warnings.catch_warnings(record=True), telling_syncs(self.device)
            self.found = self._open[0].__enter__()
            warnings.simplefilter("always")
            self._open[1].__enter__()
        elif trainer.global_step == self.last:
            for one in reversed(self._open):
                one.__exit__(None, None, None)


@pytest.mark.parametrize("kind", ["arrays", "photos", "features", "mixed"])
def test_no_step_waits_for_the_gpu(kind, device, tmp_path, photo_root):
    mix = {"mixup": 0.4, "erase": 0.5} if kind == "mixed" else {}
    callbacks = [GradualUnfreezing("linear_probe"), FeatureCache(views=1)] if kind == "features" else []
    data = FewDigits(batch_size=2, numbers=[4] * 10, augment="basic", num_val=10)
    if kind == "photos":
        data = ImageFolderDataModule(str(photo_root), batch_size=1, num_workers=2, val_fraction=0.2)
    trainer = gpu_trainer(device, 2, *callbacks, waits := Waits(device), Lines(), log_every_n_steps=100,
                          enable_progress_bar=True, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(small_module(mix=mix), datamodule=data)
    found = [f"{one.filename}:{one.lineno}" for one in waits.found if "called a synchronizing" in str(one.message)]
    assert trainer.num_training_batches > Waits.last  # of one epoch, as what is between two may wait
    assert waits.given == ("StageOutput" if kind == "features" else "Tensor")
    assert found == []
