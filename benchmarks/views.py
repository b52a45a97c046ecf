"""What cached views of augmented photos cost and give: thirty epochs of a head on SqueezeNet 1.1, flowers5, one thread.

    LIT_FT_DATA=FOLDER python benchmarks/views.py [--rounds 5] [--views 1 2 4 10 0]
    LIT_FT_DATA=FOLDER python benchmarks/views.py --decodes [--rounds 5] [--views 2 4]

Random crops, mirrored; with 0 views each epoch computes its own. All else is as in ``flowers.py``. The second command
measures what the views of a photo take from one decode, and from one for each, in CPU time: their features, and a short
training of a head, with verification and validation. The photos are those of ``decoders.py``.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from decoders import NETWORKS, SHRINK, SPEC, photos, print_ratios, take_turns
from flowers import LIT_FT
from peers.contest import hold, parser, turns
from peers.table import spread
from torch import Tensor

from lit_ft import FeatureCache, FineTuneModule, GradualUnfreezing, ImageFolderDataModule, Trainer
from lit_ft.data.loading.photo_source import PhotoSource
from lit_ft.data.loading.protocols import ImageBatch
from lit_ft.data.loading.sampler import Picks
from lit_ft.features.layout import Layout
from lit_ft.features.source import FeatureSource
from lit_ft.memory import keep_freed_memory

BATCH_SIZE = 32
PHOTOS = 40  # of each size


def main() -> None:
    """Prints the table."""
    options = parser(__doc__, "views.jsonl")
    options.add_argument("--views", type=int, nargs="+")
    options.add_argument("--decodes", action="store_true", help="measure one decode a photo against one a view")
    args = options.parse_args()
    if args.decodes:
        compare_decodes(args.rounds, args.views or [2, 4])
    else:
        compare_views(args, args.views or [1, 2, 4, 10, 0])


def compare_views(args: argparse.Namespace, numbers: Sequence[int]) -> None:
    """Time and accuracy by the number of views."""
    args.models = ["squeezenet1_1"]
    chosen = {views: [*LIT_FT, f"--feature_cache.views={views}"] for views in numbers}
    kinds = [{"augment": True, "head_epochs": 30, "full_epochs": 0, "options": given} for given in chosen.values()]
    held = hold(args.results, turns(args, kinds, ["lit_ft"]))
    print("| views | CPU seconds | accuracy, % |\n|---|---|---|")
    for views, given in chosen.items():
        mine = [turn for turn in held if turn["options"] == given]
        accuracy = spread([100 * turn["accuracies"][-1] for turn in mine], ".1f")
        print(f"| {views or 'off'} | {spread([turn['cpu_seconds'] for turn in mine], '.1f')} | {accuracy} |")


def compare_decodes(rounds: int, numbers: Sequence[int]) -> None:
    """CPU time of several views from one decode, and from one for each."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    keep_freed_memory()  # as each run does
    with tempfile.TemporaryDirectory() as folder:
        for name in SHRINK:
            root = photos(name, Path(folder))
            for title, network in NETWORKS.items():
                module = FineTuneModule(network, weights=None, classes=5).eval()
                things = {
                    f"features of {views} views": partial(take_features, module, root, views) for views in numbers
                }
                things[f"training with {numbers[0]} views"] = partial(take_training, network, root, numbers[0])
                for what, together in things.items():
                    ways = {"one decode a view": partial(one_by_one, together), "one decode": together}
                    print_ratios(f"{name}, {title}: {what}", take_turns(ways, rounds), dict.fromkeys(ways, ""))


def one_by_one(take: partial[int]) -> int:
    """A turn in which each view of a photo decodes it anew."""

    def read_views(
        source: PhotoSource, batches: Sequence[Picks], generators: Sequence[torch.Generator]
    ) -> Iterator[ImageBatch]:
        for views in zip(*(source.read(batches, generator) for generator in generators), strict=True):
            images = torch.stack([images.permute(0, 2, 3, 1) for images, _ in views], dim=1)
            yield images.flatten(0, 1).permute(0, 3, 1, 2), views[0][1].repeat_interleave(len(views))

    read = PhotoSource.read_views
    with (
        patch.object(PhotoSource, "read", lambda source, batches, generator: read(source, batches, [generator])),
        patch.object(PhotoSource, "read_views", read_views),
    ):
        return take()


def take_features(module: FineTuneModule, root: Path, views: int) -> int:
    """The features of the training photos; their number."""
    data = ImageFolderDataModule(str(root), num_workers=0, augment="basic", spec=SPEC)
    data.setup("fit")
    source = data.source("train", augment=True)

    @torch.inference_mode()
    def compute(images: Tensor) -> Tensor:
        features: Tensor = module.backbone(module.normalise(images))
        return features

    rows = range(min(PHOTOS, len(source)))
    layout = Layout(len(source), views, (module.backbone.num_features,), False, torch.float32, torch.float32)
    cached = FeatureSource(torch.empty(views * len(source), *layout.shape), layout, source, 1)
    return sum(cached.fill(compute, rows, BATCH_SIZE, seed=0)) // views


def take_training(network: str, root: Path, views: int) -> int:
    """Verification, cached features of training and validation, and epochs from these; the number of photos."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIT_FT_CACHE"] = folder  # as on its first day
        trainer = Trainer(
            max_epochs=views + 1, accelerator="cpu", default_root_dir=folder, num_sanity_val_steps=0,
            callbacks=[GradualUnfreezing("linear_probe"), FeatureCache(views=views)], logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        data = ImageFolderDataModule(str(root), num_workers=0, augment="basic")
        trainer.fit(FineTuneModule(network, weights=None), data)
        return sum(data.sizes().values())


if __name__ == "__main__":
    main()
