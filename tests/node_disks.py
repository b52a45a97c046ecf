"""Photos, their cache and what is derived from them, on two nodes with a disk of their own each, or one for both."""

import os
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from image_files import save_photo
from lightning.pytorch.callbacks import Callback
from processes import fit
from torch import nn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageFolderDataModule


class Sees(L.LightningModule):
    """Notes the colour of each training image, by epoch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = {}

    def training_step(self, batch, batch_idx):
        colours = [tuple(image[:, 8, 8].tolist()) for image in batch[0]]
        self.seen.setdefault(self.current_epoch, []).extend(colours)
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def photos(folder):
    """Twenty photos, each of a colour of its own."""
    for i in range(20):
        save_photo(folder / "photos" / "train" / f"class{i % 2}" / f"{i}.png", (10 * i, 100, 200))
        save_photo(folder / "photos" / "val" / f"class{i % 2}" / f"{i}.png", (10 * i, 50, 100))


def read(folder, disk):
    """The colours by epoch, and the files on a disk afterwards."""
    os.environ["LIT_FT_CACHE"] = str(disk / "derived")
    L.seed_everything(1)
    options = {"cache": str(disk / "cache"), "augment": "none", "num_workers": 0, "spec": InputSpec(16, 16)}
    module, data = Sees(), ImageFolderDataModule(str(folder / "photos"), batch_size=3, **options)
    fit(module, data, Callback(), 2, limit_val_batches=0)
    dist.barrier()
    files = sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())
    return {"seen": module.seen, "files": files}


def read_on_nodes(folder, rank):
    """From one disk, from two, and from two after a photo has changed, of which both then have an old copy."""
    own = folder / f"disk{rank}"
    found = {"shared": read(folder, folder / "disk"), "own": read(folder, own)}
    (cache,) = Path(own, "cache").glob("*.safetensors")
    before = cache.stat().st_mtime_ns
    if rank == 0:
        save_photo(folder / "photos" / "train" / "class0" / "0.png", (255, 255, 255))
    dist.barrier()
    found["changed"] = read(folder, own)
    found["is_new"] = cache.stat().st_mtime_ns != before
    return found
