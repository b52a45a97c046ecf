"""Folders of cached features in a run, and their removal."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import lightning as L

from lit_ft.runs import Run


def node_folder(trainer: L.Trainer, run: Run) -> Path:
    """This node's folder; each node has its own, as nodes may share a file system.

    In a shared folder, a node could remove the folder that another one has just made.
    """
    return run.features(trainer.node_rank if trainer.num_nodes > 1 else None)


def remove_strays(trainer: L.Trainer, run: Run) -> None:
    """Removes the folders that a run left when it ran on another number of nodes."""
    nodes = trainer.num_nodes
    own = {run.features(node) for node in range(nodes)} if nodes > 1 else {run.features()}
    for folder in (run.features(), *run.folder.glob(run.features("[0-9]*").name)):
        if folder not in own:
            remove_files(trainer, folder)


def remove_files(trainer: L.Trainer, folder: Path, names: str = "phase*-*-*", but: str | None = None) -> None:
    """Removes files of cached features, finished or not, and the folder if it is then empty; one process a machine.

    Args:
        trainer: The trainer, which knows the processes.
        folder: The folder, which may have other files as well.
        names: Pattern of the files to remove.
        but: Beginning of the names of files to keep; ``None`` keeps none.
    """
    if trainer.local_rank != 0:
        return
    for file in folder.glob(f"{names}.bin*"):
        if but is None or not file.name.startswith(but):
            with suppress(OSError):  # another machine was first, or it is in use, on Windows
                file.unlink()
    with suppress(OSError):  # there is none, or it has other files
        folder.rmdir()
