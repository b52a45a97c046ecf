"""The run that a command goes on with: the one of its restarted job, or the newest of its name."""

from __future__ import annotations

import errno
import math
import os
import pickle
import zipfile
from pathlib import Path

from filelock import BaseFileLock, Timeout

from lit_ft.assets import lock_beside
from lit_ft.backbones.weights import torch_files
from lit_ft.console import format_path
from lit_ft.errors import UserError, refuse_unwritable
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run
from lit_ft.training.launch import find_job, is_array

RESTART_SECONDS = 120.0
"""How long a restarted job waits for the end of the process before: file systems let go of a lock that late."""

_BETWEEN = ": "
_NOT_NOW = {getattr(errno, name) for name in ("EACCES", "EPERM", "ESTALE") if hasattr(errno, name)}


def write_job(run: Run, command: str) -> None:
    """Adds to the folder of a run the command that trains it, and of which job that is.

    Raises:
        UserError: If it cannot be written.
    """
    if (line := _describe(command)) not in _read_jobs(run):
        with refuse_unwritable(run.job), run.job.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def find_run_of_job(folder: Path, command: str) -> Run | None:
    """The run in the folder of a name that this command trained in this job, which was restarted."""
    own = [run for run in _find_runs(folder) if _describe(command) in _read_jobs(run)]
    return own[-1] if own else None


def find_run_to_resume(folder: Path, command: str, has_folds: bool = False) -> Run | None:
    """The newest run in the folder of a name that has a checkpoint to resume from; of those of this command, if any.

    A task of an array takes none of another command, which is that of another task.

    Args:
        folder: The folder.
        command: The command.
        has_folds: Whether a cross-validation is looked for, of which each fold has checkpoints of its own.
    """
    runs = [run for run in _find_runs(folder) if (run.has_folds() if has_folds else any(_find_checkpoints(run)))]
    own = [run for run in runs if command in (line.partition(_BETWEEN)[2] for line in _read_jobs(run))]
    if is_array():
        runs = own
    return (own or runs)[-1] if runs else None


def find_intact_checkpoint(run: Run) -> str | None:
    """The checkpoint of most steps from which a run can be resumed; damaged ones are passed over, and told.

    Raises:
        UserError: If one cannot be read that may be intact: a run that starts afresh would replace it.
    """
    found = {path: _read_steps(path) for path in _find_checkpoints(run)}
    for path in sorted(found, key=lambda path: (found[path], path == run.last), reverse=True):
        if found[path] == math.inf or _is_damaged(path):
            rank_zero_warn(f"{format_path(path)}: damaged; passed over")
        elif found[path] >= 0:
            return str(path)
    return None


def _read_steps(path: Path) -> float:
    """The steps of a checkpoint: more than any where it cannot be read, less than any where it has weights alone."""
    try:
        content = torch_files.load(str(path), mmap=True)
    except OSError as error:
        if error.errno in _NOT_NOW:
            raise UserError(f"{format_path(path)}: cannot be read ({error.strerror}); let it be read") from error
        return math.inf
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError):
        return math.inf
    is_whole = isinstance(content, dict) and content.get("optimizer_states")
    return int(content.get("global_step", 0)) if is_whole else -1


def _is_damaged(path: Path) -> bool:
    """Whether a file is not as it was written: a power cut can leave zeros, of which only the checksums tell."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except (OSError, zipfile.BadZipFile):
        return True


def lock_run(run: Run, seconds: float = 0) -> BaseFileLock | None:
    """Takes the lock of a run, which its process holds until its end; None where the file system has none.

    Args:
        run: The run.
        seconds: How long to wait for the one that has it.

    Raises:
        UserError: If another process has it.
    """
    lock = lock_beside(run.job)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise UserError(
            f"{format_path(run.folder)}: this run is still going on; wait for it, or give `name`"
        ) from error
    except (OSError, NotImplementedError):
        return None
    return lock


def _describe(command: str) -> str:
    return f"{find_job() or 'by hand'}{_BETWEEN}{command}"


def _read_jobs(run: Run) -> list[str]:
    return run.job.read_text(encoding="utf-8", errors="replace").splitlines() if run.job.is_file() else []


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
    """What may be a checkpoint to resume from."""
    return sorted(path for path in run.checkpoints.glob("*.ckpt") if path != run.probe)
