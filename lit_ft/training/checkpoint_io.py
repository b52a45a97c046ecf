"""Checkpoint files: atomic writes, and reads that run no code."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins import TorchCheckpointIO

from lit_ft.assets import random_part
from lit_ft.backbones.weights import torch_files
from lit_ft.console import format_path
from lit_ft.errors import UserError, iterate_causes
from lit_ft.runs import format_intact_checkpoints

# Of files that are being written, whose names have no part of the checkpoint's own: Lightning reads all digits of any
# name with "ckpt_" in it as the number of a checkpoint.
_SUFFIX = ".saving"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes local checkpoints atomically: each to a file beside its own, which then replaces that.

    A run that is killed while it writes leaves the checkpoint that was there before. Lightning writes to the folder for
    temporary files, from where a checkpoint is copied if that is on another disk, and a kill during the copy leaves a
    part of it. Remote checkpoints (s3:// and others) are written as Lightning does.

    What a killed run left behind is removed with the next save in its folder.

    `lit-ft` has this by default; a trainer made in Python takes ``plugins=[AtomicCheckpointIO()]``.
    """

    def __init__(self) -> None:
        self._made_at = time.time()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            TypeError: If there are storage options, as Lightning's plugins for checkpoints take none.
            UserError: If it cannot be written, as where the disk is full; the checkpoints that were there stay.
        """
        system, place = url_to_fs(str(path))
        if storage_options is not None or not isinstance(system, LocalFileSystem):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < self._made_at:  # one that is being written has changed since this run began
                    left.unlink()
        # A name of its own, as two runs can write to one folder.
        part = target.parent / f".{random_part()}{_SUFFIX}"
        try:
            with part.open("xb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # else the new name can reach the disk before the content does
            part.replace(target)
        except (RuntimeError, OSError) as error:  # torch's writer raises the first on its way out of the second
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            if (failed := next((link for link in iterate_causes(error) if isinstance(link, OSError)), None)) is None:
                raise
            folder, reason = format_path(target.parent), failed.strerror or failed
            raise UserError(
                f"{folder}: {target.name} cannot be written ({reason}); {format_intact_checkpoints(folder, failed)}"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Reads a checkpoint, to the CPU unless another device is given.

        Only ``weights_only=False`` lets it run code; Lightning would let it by default.

        Raises:
            FileNotFoundError: If there is none.
        """
        system, place = url_to_fs(str(path))
        if not system.exists(place):
            raise FileNotFoundError(f"there is no checkpoint {path}")
        if map_location is None and isinstance(system, LocalFileSystem):
            return torch_files.load(place, weights_only=weights_only is not False)
        with system.open(place, "rb") as file:
            return torch.load(file, map_location=map_location or "cpu", weights_only=weights_only is not False)
