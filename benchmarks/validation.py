"""What a validation of a small network costs, by how many batches are counted at once, and by hand.

    OMP_NUM_THREADS=1 python benchmarks/validation.py [--rounds 15]

1,000 digits through the small CNN, in batches of 10 and of 100. By hand: the same loader and network, the loss and its
metrics of all images at once, no trainer. CPU time of a validation; minimum / median / maximum, the contestants in
turns, and ratios of each turn to the one by hand.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable

import torch
from lightning import seed_everything
from peers.table import spread

from lit_ft import FineTuneModule, Trainer
from lit_ft.data import DigitsDataModule
from lit_ft.model import monitoring

ONE_BY_ONE = 1


def main() -> None:
    """Prints a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    args = options.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")  # of Lightning, over itself
    print("| batches of | validation | ms | of the time by hand |\n|---|---|---|---|")
    for batch_size in (10, 100):
        contestants = make_contestants(batch_size)
        turns: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(args.rounds + 1):
            for name in sorted(contestants, reverse=turn % 2 == 1):
                began = time.process_time()
                contestants[name]()
                if turn:  # the first is to warm up
                    turns[name].append(1000 * (time.process_time() - began))
        for name, taken in turns.items():
            shares = [mine / other for mine, other in zip(taken, turns["by hand"], strict=True)]
            print(f"| {batch_size} | {name} | {spread(taken, '.1f')} | {spread(shares, '.2f')} |", flush=True)


def make_contestants(batch_size: int) -> dict[str, Callable[[], object]]:
    """What validates the digits, by its name."""
    seed_everything(0, verbose=False)
    data = DigitsDataModule(batch_size=batch_size)
    module = FineTuneModule("mnist_cnn", weights="MNIST", classes=data.class_names)
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)

    def by_lit_ft(waiting: int) -> None:
        module.metrics["val"]._waiting = monitoring._Waiting(waiting)
        trainer.validate(module, datamodule=data, verbose=False)

    by_lit_ft(ONE_BY_ONE)  # from now on, the data has the size of the network's images

    @torch.inference_mode()
    def by_hand() -> None:
        data.setup("validate")
        batches = [(module(module.normalise(images)), targets) for images, targets in data.val_dataloader()]
        logits, targets = map(torch.cat, zip(*batches, strict=True))
        metrics = module.task.metrics("val/")
        module.task.update(metrics, logits, targets)
        metrics.compute(), module.task.loss(logits, targets).item()

    return {
        "many batches at once": lambda: by_lit_ft(monitoring._WAITING_VALUES),
        "each batch on its own": lambda: by_lit_ft(ONE_BY_ONE),
        "by hand": by_hand,
    }


if __name__ == "__main__":
    main()
