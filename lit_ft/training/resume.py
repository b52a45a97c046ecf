"""The run that a command goes on with: the one that it began before its job was restarted, or the newest like it."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

from filelock import BaseFileLock, Timeout
from lightning.pytorch.utilities import rank_zero_warn

from lit_ft.assets import lock_beside
from lit_ft.backbones.weights import torch_files
from lit_ft.console import format_path
from lit_ft.errors import UserError, refuse_unwritable
from lit_ft.runs import Run
from lit_ft.training.launch import find_job


def write_job(run: Run, command: str) -> None:
    """Writes into the folder of a run by which command it began, and of which job that was.

    Raises:
        UserError: If it cannot be written.
    """
    with refuse_unwritable(run.job):
        run.job.write_text(_describe(command), encoding="utf-8")


def find_run_of_job(folder: Path, command: str) -> Run | None:
    """The run in the folder of a name that this command has begun in this job, which was restarted."""
    own = [run for run in _find_runs(folder) if _read_job(run) == _describe(command)]
    return own[-1] if own else None


def find_run_to_resume(folder: Path, command: str) -> Run | None:
    """The newest run in the folder of a name that has a checkpoint to resume from; of those of this command, if any."""
    runs = [run for run in _find_runs(folder) if any(_find_checkpoints(run))]
    own = [run for run in runs if _read_job(run).partition("\n")[2] == _describe(command).partition("\n")[2]]
    return (own or runs)[-1] if runs else None


def find_intact_checkpoint(run: Run) -> str | None:
    """The newest checkpoint of a run from which it can be resumed; damaged ones are passed over, and told."""
    for path in _find_checkpoints(run):
        try:
            content = torch_files.load(str(path), mmap=True)
            with zipfile.ZipFile(path) as archive:  # a power cut can leave zeros, of which only the checksums tell
                is_damaged = archive.testzip() is not None
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile):
            is_damaged = True
        if is_damaged:
            rank_zero_warn(f"{format_path(path)}: damaged; passed over")
            continue
        if isinstance(content, dict) and content.get("optimizer_states"):  # else it is of weights alone
            return str(path)
    return None


def lock_run(run: Run) -> BaseFileLock | None:
    """Takes the lock of a run, which its process holds until its end; None where the file system has none.

    Raises:
        UserError: If another process has it.
    """
    lock = lock_beside(run.job)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{format_path(run.folder)}: this run is still going on; wait for it, or give `name`"
        ) from error
    except (OSError, NotImplementedError):
        return None
    return lock


def _describe(command: str) -> str:
    return f"{find_job() or ''}\n{command}\n"


def _read_job(run: Run) -> str:
    return run.job.read_text(encoding="utf-8") if run.job.is_file() else ""


def _find_runs(folder: Path) -> list[Run]:
    """The runs of a name, the newest last."""
    found = (
        [Run(Path(entry.path).resolve()) for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []
    )
    return sorted(found, key=_age)


def _age(run: Run) -> tuple[float, str]:
    times = [path.stat().st_mtime for path in (run.job, run.last) if path.is_file()]
    return max(times, default=0.0), run.folder.name


def _find_checkpoints(run: Run) -> list[Path]:
    """What may be a checkpoint to resume from, the newest first."""
    found = [path for path in run.checkpoints.glob("*.ckpt") if path != run.probe]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
