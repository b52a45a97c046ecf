"""Decides how a checkpoint gets onto the disk, whole or not at all, and how it is read without running code."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, _load, get_filesystem

from lit_ft.backbones.weights import torch_files
from lit_ft.console import format_path
from lit_ft.errors import UserError, iterate_causes
from lit_ft.runs import format_intact_checkpoints

# Of files that are being written: hidden, and nothing that Lightning takes for a checkpoint. It reads all digits of any
# name with "ckpt_" in it as the number of a checkpoint, so theirs has no part of the checkpoint's own name.
_SUFFIX = ".saving"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each local checkpoint beside its place and then puts it there in one step.

    A run that is killed while it writes leaves the checkpoint that was there before, whole. Lightning writes to the
    folder for temporary files, from where the checkpoint is copied if that is on another disk, and a kill while it is
    copied leaves a part of it. Remote checkpoints (s3:// and others) are written as Lightning does.

    What a killed run left behind is removed with the next save in its folder.

    `lit-ft` has this by default; a trainer made in Python takes ``plugins=[AtomicCheckpointIO()]``.
    """

    def __init__(self) -> None:
        self._made_at = time.time()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: What the trainer saves.
            path: Where it will be.
            storage_options: Lightning's plugins for checkpoints take none.

        Raises:
            TypeError: If there are storage options.
            UserError: If it cannot be written, as where the disk is full; the checkpoints that were there stay.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = _local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers(target.parent)
        # A name of its own, as two runs can write to one folder.
        part = target.parent / f".{uuid.uuid4().hex}{_SUFFIX}"
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
                f"{folder}: {target.name} cannot be written ({reason}); {format_intact_checkpoints(folder)}"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Reads a checkpoint, to the CPU, unless it is to be elsewhere.

        Args:
            path: Where it is.
            map_location: As of `torch.load`.
            weights_only: False lets it run code; otherwise it does not, also where Lightning would let it by default.

        Raises:
            FileNotFoundError: If there is none.
        """
        if not get_filesystem(path).exists(str(path)):
            raise FileNotFoundError(f"there is no checkpoint {path}")
        if map_location is None and _is_local_file_protocol(path):
            return torch_files.load(_local(path), weights_only=weights_only is not False)
        return _load(path, map_location or "cpu", weights_only is not False)

    def _remove_leftovers(self, folder: Path) -> None:
        """Removes what no run writes any more: a file that one still writes has changed since this run began."""
        for part in folder.glob(f".*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                if part.stat().st_mtime < self._made_at:
                    part.unlink()


def _local(path: str | Path) -> Path:
    """The path without ``file://``."""
    return Path(get_filesystem(path)._strip_protocol(str(path)))
