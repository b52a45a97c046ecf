"""What docs/scaling.md rests on: memory of a step against its estimate, traffic on two processes, loader, checkpoints.

    LIT_FT_DATA=FOLDER python benchmarks/scaling.py

FOLDER has flowers5. The last table computes from the first ones, and from a step time and a bandwidth that are assumed,
what a run would need on up to 1,000 devices. Nothing of it was measured on several GPUs.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lit_ft import FineTuneModule, ImageFolderDataModule
from lit_ft.assets import data_root
from lit_ft.optim.optimizers import build_optimizer, build_param_groups
from lit_ft.training.checkpoint_io import AtomicCheckpointIO
from lit_ft.training.scale import Cluster
from lit_ft.training.step_cost import measure_memory
from lit_ft.unfreezing.view import reduced_bytes

BATCH = 32
NETWORKS = "squeezenet1_1", "resnet18"
STEP, BANDWIDTH, PHOTO = 0.1, 10.0, 110_000
"""Assumed: seconds of a step of 64 photos on a GPU, GB/s of a device, and bytes of a photo."""


def make(network: str, last: int) -> tuple[FineTuneModule, torch.optim.Optimizer]:
    """A network of which the last stages train, all with 0, and its optimizer."""
    module = FineTuneModule(network, weights=None, classes=1000)
    stages = list(module.stage_modules())
    module.set_trainable(stages[-last:])
    module.train()
    return module, build_optimizer("AdamW", build_param_groups(module.stage_modules(), 1e-3, 1.0, None), 1e-3)


def estimated_and_measured(network: str, last: int) -> tuple[float, float]:
    """MB of a step by the estimate, and by the growth of this process in two steps."""
    before = resident()
    module, optimizer = make(network, last)
    images = torch.randint(256, (BATCH, 3, 224, 224), dtype=torch.uint8)
    for _ in range(2):
        loss = module(images).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        del loss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    trained: Any = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return measure_memory(module, optimizer, BATCH, "32-true", False, trained).total / 1e6, grown / 1e6


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sent_on_two() -> None:
    """Prints, on the first of two processes, the bytes that DDP reduces in a step of each phase."""
    dist.init_process_group("gloo")
    for network in NETWORKS:
        for last in (1, 2, 0):
            module, _ = make(network, last)
            wrapped, sent = DistributedDataParallel(module), [0]

            def count(sent: list[int], bucket: Any) -> Any:
                sent[0] += bucket.buffer().nbytes
                work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
                return work.get_future().then(lambda done: done.value()[0])

            count.__annotations__.clear()  # torch takes none that is text
            wrapped.register_comm_hook(sent, count)
            wrapped(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).sum().backward()
            expected = reduced_bytes(p for p in module.parameters() if p.requires_grad)
            if dist.get_rank() == 0:
                print(f"  {network:<14}{name_of(last):<22}{sent[0]:>12,} sent{expected:>14,} in the plan", flush=True)


def name_of(last: int) -> str:
    """What trains."""
    return {1: "head", 2: "head, last stage", 0: "all"}[last]


def loader_rates(photos: Path, folder: Path) -> None:
    """Prints images and MB a second of one process that reads photos, from files and from ``--data.cache``."""
    sizes = [path.stat().st_size for path in photos.rglob("*.jpg")]
    for name, options in (("files", {}), ("--data.cache", {"cache": str(folder / "cache")})):
        data = ImageFolderDataModule(str(photos), batch_size=BATCH, num_workers=0, **options)
        data.prepare_data()
        data.setup("fit")
        best = 0.0
        for _ in range(3):
            began, count = time.perf_counter(), 0
            for images, _ in data.train_dataloader():
                count += len(images)
            best = max(best, count / (time.perf_counter() - began))
        volume = best * sum(sizes) / len(sizes) / 1e6
        print(f"  {name:<14}{best:>8,.0f} images/s a core{volume:>8.1f} MB/s of photos", flush=True)


def checkpoint_rate(folder: Path) -> None:
    """Prints the time in which a checkpoint with the states of AdamW is written."""
    module, optimizer = make("resnet18", 0)
    module(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).sum().backward()
    optimizer.step()
    content = {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    times = []
    for i in range(5):
        began = time.perf_counter()
        AtomicCheckpointIO().save_checkpoint(content, folder / f"{i}.ckpt")
        times.append(time.perf_counter() - began)
    size = (folder / "0.ckpt").stat().st_size
    print(f"  resnet18      {size / 1e6:>8.0f} MB in {min(times):.2f} to {max(times):.2f} s", flush=True)


def on_paper() -> None:
    """Prints what 64 photos a device need on more and more devices."""
    print(
        f"{'devices':>9}{'batch':>9}{'head, ms':>10}{'ResNet-50, ms':>15}{'ViT-L, ms':>11}{'photos/s':>12}{'GB/s':>8}"
    )
    for devices in (1, 8, 64, 256, 1000):
        cluster = Cluster(devices=devices, bandwidth=BANDWIDTH)
        head, resnet, vit = (1e3 * cluster.reduce_seconds(size) for size in (8_196_000, 102_228_128, 1_217_306_528))
        rate = devices * 64 / STEP
        line = f"{devices:>9,}{devices * 64:>9,}{head:>10.2f}{resnet:>15.1f}{vit:>11.0f}"
        print(f"{line}{rate:>12,.0f}{rate * PHOTO / 1e9:>8.2f}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--two", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if args.one:
        print(*estimated_and_measured(args.one[0], int(args.one[1])))
        return
    if args.two:
        sent_on_two()
        return
    print(f"Memory of a step of {BATCH} photos, float32, AdamW: estimate, and growth of the process")
    for network in NETWORKS:
        for last in (1, 2, 0):
            command = [sys.executable, __file__, "--one", network, str(last)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            estimate, grown = map(float, done.stdout.splitlines()[-1].split())
            cells = f"{estimate:>8,.0f} MB{grown:>8,.0f} MB{estimate / grown:>8.2f}"
            print(f"  {network:<14}{name_of(last):<22}{cells}", flush=True)
    print("Bytes that DDP reduces in a step, counted on two processes", flush=True)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517", __file__, "--two"]
    subprocess.run([sys.executable, *launch], stderr=subprocess.DEVNULL, check=True)
    with tempfile.TemporaryDirectory() as folder:
        print("Photos read by one process")
        loader_rates(Path(data_root(None), "flowers5", "train"), Path(folder))
        print("Checkpoint with the states of AdamW")
        checkpoint_rate(Path(folder))
    print(f"On paper: 64 photos a device, {STEP} s a step, {BANDWIDTH:g} GB/s, {PHOTO / 1000:g} kB a photo")
    on_paper()


if __name__ == "__main__":
    main()
