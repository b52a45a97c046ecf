"""The same fit on one process and on two, with each strategy: the loss of each step, and the weights at the end."""

import contextlib
import io
import os
from datetime import timedelta

import forked
import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.overrides.distributed import _register_ddp_comm_hook
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from small_runs import FewDigits, small_module, small_resnet, small_trainer
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from lit_ft.cli import main as lit_ft_main
from lit_ft.model.sharding import whole
from lit_ft.unfreezing.callback import GradualUnfreezing

GLOO = {"process_group_backend": "gloo", "timeout": timedelta(seconds=forked.SECONDS / 2)}
EACH = 8  # images of a class, so that batches of 32 and two of 16 hold the same


class Compressing(DDPStrategy):
    """With its hook also on CPUs, where Lightning leaves it out."""

    def _register_ddp_hooks(self):
        given = self._ddp_comm_state, self._ddp_comm_hook, self._ddp_comm_wrapper
        _register_ddp_comm_hook(self.model, *given)


class Steps(Callback):
    """The mean loss over all processes at each step."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = outputs["loss"].detach().clone()
        if trainer.world_size > 1:
            dist.all_reduce(loss)
        self.losses.append(float(loss) / trainer.world_size)


def sgd(momentum=0.9):
    return {"class_path": "SGD", "init_args": {"momentum": momentum}}


def train(strategy, plan="gradual", batch_size=16, epochs=3, *callbacks, module=None, ckpt_path=None, **options):
    """What a fit comes to; images and weights are the same whatever the number of processes."""
    L.seed_everything(1)
    module = module or small_module(lr=0.01, lr_scheduler=None, optimizer=sgd(), classes=10)
    steps, data = Steps(), FewDigits(batch_size=batch_size, numbers=[EACH] * 10)
    size = int(os.environ.get("WORLD_SIZE", 1))
    trainer = small_trainer(
        epochs, GradualUnfreezing(plan), steps, *callbacks, strategy=strategy, devices=size, **options
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    weights = {name: whole(tensor.detach()).clone() for name, tensor in module.state_dict().items()}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return {"losses": steps.losses, "weights": weights, "metrics": metrics}


def on_one(plan="gradual", **options):
    return train("auto", plan, 32, **options)


def replicated(folder, rank):
    return train(DDPStrategy(**GLOO))


def static_graph(folder, rank):
    return train(DDPStrategy(static_graph=True, **GLOO))


def half(folder, rank):
    return train(Compressing(ddp_comm_hook=default_hooks.fp16_compress_hook, **GLOO))


def low_rank(folder, rank):
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    # In one bucket, as Gloo mixes up what the hook sends for several; on GPUs they follow one another.
    options = {"ddp_comm_state": state, "ddp_comm_hook": powerSGD_hook.powerSGD_hook, "bucket_cap_mb": 100}
    return train(Compressing(**options, **GLOO))


def sharding():
    sizes = {"data_parallel_size": int(os.environ["WORLD_SIZE"]), "tensor_parallel_size": 1}
    return ModelParallelStrategy(**sizes, save_distributed_checkpoint=False, **GLOO)


def sharded_full(folder, rank):
    return train(sharding(), "full")


def sharded_probe(folder, rank):
    return train(sharding(), "linear_probe")


def sharded_gradual(folder, rank):
    return train(sharding(), "gradual")


def norms(strategy):
    """A network with batch norm, cut out of its graph, of which the last stage and then all train."""
    L.seed_everything(1)
    module = small_resnet(lr_scheduler=None, optimizer=sgd(), classes=10)
    # In double precision, as such a network of 32 pixels, whose last stages have one place, multiplies rounding.
    return train(strategy, "lp_ft", 16, 2, module=module.double())


def replicated_norms(folder, rank):
    return norms(DDPStrategy(**GLOO))


def sharded_norms(folder, rank):
    return norms(sharding())


def sharded_again(folder, rank):
    """A run, and one that goes on from its checkpoint of the end of the first epoch, with clipped gradients."""

    def run(ckpt_path=None):
        kept = ModelCheckpoint(folder / "epochs", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        return train(sharding(), "full", 16, 3, kept, ckpt_path=ckpt_path, gradient_clip_val=0.5)

    whole_run = run()
    if rank == 0:
        (folder / "epochs").rename(folder / "whole")
    dist.barrier()
    return {"whole": whole_run, "resumed": run(folder / "whole" / "epoch=0.ckpt")}


COMMAND = (
    "--trainer.accelerator cpu --trainer.devices 2 --trainer.max_epochs 3 --unfreeze.strategy gradual "
    "--unfreeze.head_fit trained --data DigitsDataModule --data.shots 4"
)


def sharded_command(folder, rank):
    """What lit-ft finetune prints and leaves with sharded weights."""
    os.chdir(folder)
    strategy = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    options = [f"--trainer.strategy.{name}={value}".lower() for name, value in strategy.items()]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = lit_ft_main(["finetune", "--trainer.strategy", "ModelParallelStrategy", *options, *COMMAND.split()])
    dist.barrier()
    (best,) = folder.rglob("best.ckpt")
    weights = {type(tensor).__name__ for tensor in torch.load(best, weights_only=True)["state_dict"].values()}
    return {"code": code, "printed": printed.getvalue(), "weights": weights}
