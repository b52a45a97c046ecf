"""Folders of cached features in a run, and their removal."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import lightning as L

_FOLDER, _NODE_FOLDER = "features", "features-node{}"


def node_folder(trainer: L.Trainer) -> str:
    """The name of this node's folder; each node has its own, as nodes may share a file system.

    In a shared folder, a node could remove the folder that another one has just made.
    """
    return _NODE_FOLDER.format(trainer.node_rank) if trainer.num_nodes > 1 else _FOLDER


def remove_strays(trainer: L.Trainer, run: Path) -> None:
    """Removes the folders that a run left when it ran on another number of nodes."""
    nodes = trainer.num_nodes
    own = {_NODE_FOLDER.format(node) for node in range(nodes)} if nodes > 1 else {_FOLDER}
    for folder in (run / _FOLDER, *run.glob(_NODE_FOLDER.format("[0-9]*"))):
        if folder.name not in own:
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
