"""Small runs: few images, quick backbones, and what a run leaves behind."""

import hashlib

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.data import DigitsDataModule
from lit_ft.model.module import FineTuneModule
from lit_ft.optim.run_length import RunLength

NUM_VAL = 37  # odd, so that no number of processes or batch size divides it


# Kinds of runs that must end the same wherever they are resumed.
SGD = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
WARMUP = {"class_path": "WarmupCosine", "init_args": {"warmup_fraction": 0.25}}
ALL_MIXES = {"mixup": 0.4, "cutmix": 1.0, "erase": 0.5}
CASES = {
    "sgd": {"module": {"optimizer": SGD}},
    "adamw": {},
    "averaged": {"average": True},
    "plateau schedule": {
        "module": {
            "optimizer": SGD,
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
                "init_args": {"patience": 0, "threshold": 0.9},
            },
        }
    },
    # No loss falls by so much, so that each phase lasts two epochs.
    "plateau": {
        "unfreezing": {"strategy": "plateau", "plateau": {"patience": 1, "min_delta": 9.0, "min_epochs": 2}},
        "max_epochs": 6,
    },
    "auto, mixed": {
        "unfreezing": {"strategy": "auto", "auto_batches": 2},
        "module": {"mix": ALL_MIXES, "label_smoothing": 0.1, "class_weight": "balanced"},
        "data": {"numbers": [8, 4] + [1] * 8},
    },
}


UNEVEN = [5, 2] + [1] * 8
SHARES = torch.tensor(UNEVEN) / 15


class FewDigits(DigitsDataModule):
    """Digits with few images to train and to validate on; two of each class to train on, or as many as ``numbers``."""

    def __init__(self, num_val=NUM_VAL, numbers=None, **options):
        super().__init__(**{"shots": None if numbers else 2, "batch_size": 10, "augment": "none", **options})
        self.num_val = num_val
        self.numbers = numbers

    def read_splits(self):
        splits = super().read_splits()
        few = {"val": torch.arange(self.num_val), "test": torch.arange(20)}
        if self.numbers:
            targets = splits["train"].targets
            few["train"] = torch.cat([(targets == k).nonzero().squeeze(1)[:n] for k, n in enumerate(self.numbers)])
        return splits | {name: splits[name].part(rows) for name, rows in few.items()}


def small_module(**options):
    """The shipped network, with a head whose dropout makes every step random, or what the options say."""
    return FineTuneModule(**{"backbone": "mnist_cnn", "weights": "MNIST", "lr": 0.05, **options})


def small_resnet(**options):
    return FineTuneModule(
        **{"backbone": "resnet18", "weights": None, "input": {"size": 32, "resize": 32}, "lr": 0.01, **options}
    )


def images_of(channels=1, size=28, num=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num, channels, size, size), dtype=torch.uint8, generator=generator)


def loader(num=8, classes=10):
    return DataLoader(TensorDataset(images_of(num=num), torch.arange(num) % classes), batch_size=4)


def one_epoch(batch_size=10, **options):
    L.seed_everything(1)
    module = small_module(**options)
    trainer = small_trainer(1, limit_val_batches=0)
    trainer.fit(module, datamodule=FewDigits(batch_size=batch_size))
    return trainer, module


def filled(module):
    """Gives a network without data weights that hide no mistake, faster than torch's own initialisation."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 22, generator=generator)
    for owner in module.modules():
        for key, parameter in list(owner.named_parameters(recurse=False)):
            count = parameter.numel()
            values = noise[:count] if count <= len(noise) else noise.repeat(count // len(noise) + 1)[:count]
            scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            shift = 1.0 if key == "weight" and parameter.ndim == 1 else 0.0
            setattr(owner, key, nn.Parameter(values.mul(scale).add_(shift).view(parameter.shape)))
    return module


def small_trainer(max_epochs, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {
        "num_sanity_val_steps": 0,
        "enable_checkpointing": any("Checkpoint" in type(c).__name__ for c in callbacks),
    }
    place = {"accelerator": "cpu", "devices": 1}
    return L.Trainer(max_epochs=max_epochs, callbacks=list(callbacks), **{**place, **quiet, **options})


def digest(tensors):
    """A hash of every bit of the tensors, in order."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def digests(module):
    """The hashes of each stage's parameters and buffers."""
    return {
        name: (
            digest(p for part in parts for p in part.parameters()),
            digest(b for part in parts for b in part.buffers()),
        )
        for name, parts in module.stage_modules().items()
    }


class Recorder(Callback):
    """Notes the stages' hashes before each epoch and after the last, and the parameter groups at each step.

    It stands behind `GradualUnfreezing` in the list of callbacks, so that it sees what that one did.
    """

    def __init__(self):
        self.digests = []
        self.rates = []
        self.modes = []

    def on_train_epoch_start(self, trainer, pl_module):
        if not self.digests:
            self.digests.append(digests(pl_module))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})
        modules = {name: parts[0].training for name, parts in pl_module.stage_modules().items()}
        self.modes.append({name for name, training in modules.items() if training})

    def on_train_epoch_end(self, trainer, pl_module):
        self.digests.append(digests(pl_module))

    def moved(self, what=0):
        """The stages whose parameters (0) or buffers (1) changed, by epoch."""
        return [
            {name for name in now if now[name][what] != before[name][what]}
            for before, now in zip(self.digests, self.digests[1:], strict=False)
        ]


class RateTrace(Callback):
    """Notes the learning rates at each step by the progress of the run in epochs, and the epochs' validations."""

    def __init__(self):
        self.rates, self.validated = {}, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        batch = trainer.fit_loop.epoch_loop.batch_idx // trainer.accumulate_grad_batches
        place = trainer.current_epoch + batch / RunLength.of(trainer).epoch_steps
        assert place not in self.rates
        self.rates[place] = {group["name"]: group["lr"] for group in optimizer.param_groups}

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.current_epoch)


def final_state(trainer, module):
    """All that two equal runs must agree on at their end, bit for bit."""
    return {
        "weights": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "scores": {c.monitor: c.best_model_score for c in trainer.checkpoint_callbacks if c.monitor},
    }


def differences(left, right, path=""):
    """The paths at which two nested states differ."""
    if isinstance(left, torch.Tensor):
        return [] if isinstance(right, torch.Tensor) and left.equal(right) else [path]
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [found for key in left for found in differences(left[key], right[key], f"{path}/{key}")]
    if isinstance(left, (list, tuple)) and len(left) == len(right):
        pairs = zip(left, right, strict=True)
        return [found for i, (one, other) in enumerate(pairs) for found in differences(one, other, f"{path}/{i}")]
    return [] if left == right else [path]


def harmonic(epoch):
    return 1 / (1 + epoch)
