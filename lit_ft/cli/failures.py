"""Failures of a command: a user error, a checkpoint that cannot be used, a full disk, an interrupt."""

from __future__ import annotations

import signal
import textwrap
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_ft.cli.messages import Complaint, explain, pick_line
from lit_ft.cli.process import quiet_libraries
from lit_ft.compat import parsing_settings
from lit_ft.console import format_path
from lit_ft.data.loading.workers import explain_lost_worker
from lit_ft.errors import LibraryError, UserError, find_full_disk, find_user_error, is_from_user_code, iterate_causes
from lit_ft.runs import Run, format_intact_checkpoints
from lit_ft.training.launch import explain_lost_process
from lit_ft.training.signals import Interrupted


@contextmanager
def quiet_command() -> Iterator[None]:
    """Quiets libraries, and raises the user error behind what they raise, if there is one."""
    quiet_libraries()
    # Else a config or a checkpoint could have any class called, below a dict of options that may have any value.
    with parsing_settings(instantiate_subclass_spec_in_any=False):
        try:
            yield
        except ArgumentError as error:
            if is_from_user_code(error):
                raise
            raise explain(Complaint(str(error))) from error
        except Exception as error:
            if (user_error := find_user_error(error)) is not None:
                _raise_again(user_error, error)
            if lost := explain_lost_worker(error):
                raise UserError(lost) from error
            raise


@contextmanager
def raise_user_errors(
    packages: Collection[str] = (), before_training: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Turns what libraries raise over bad options into a user error, as long as nothing was trained.

    What was raised in the user's own code, or passed through it, stays as it is, with its traceback. Lightning raises a
    `MisconfigurationException` over options alone, be it after an epoch.

    Args:
        packages: Installed packages of the user's own.
        before_training: Whether nothing was trained yet.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError, TypeError, ImportError, MisconfigurationException) as error:
        if (user_error := find_user_error(error)) is not None:
            _raise_again(user_error, error)
        is_over_options = isinstance(error, MisconfigurationException) or before_training()
        if is_from_user_code(error, packages) or not is_over_options:
            raise
        raise LibraryError(pick_line(str(error)) or type(error).__name__) from error


def _raise_again(user_error: UserError, error: Exception) -> NoReturn:
    """Raises a user error that was found behind an exception, with all that it came of.

    It is made anew, as ``raise user_error from error`` would replace what the user error came of by that exception.
    """
    if user_error is error:
        raise user_error
    raise type(user_error)(*user_error.args) from error


def explain_failure(error: Exception, checkpoint: str | None, run: Run, trainer: Any) -> UserError | None:
    """The user error that a failure of the trainer comes to, if it is none of lit_ft or of the user's code.

    Args:
        error: What was raised.
        checkpoint: The checkpoint that is resumed or evaluated.
        run: The run.
        trainer: Its trainer.
    """
    if find_user_error(error) is None and (lost := explain_lost_worker(error)):
        return UserError(lost)
    if find_user_error(error) or is_from_user_code(error):
        return None
    if lost := explain_lost_process(error, trainer):
        return UserError(f"{lost}{_how_to_resume(run)}")
    if full := find_full_disk(error):
        resume = _how_to_resume(run) if run.whole is not None else ""
        left = f"make room{resume}" if resume else format_intact_checkpoints(run.checkpoints, full)
        return UserError(f"{format_path(run.folder)}: cannot be written to ({full.strerror}); {left}")
    if checkpoint is None or not is_from_restoring_checkpoint(error):
        return None
    fault = str(error)
    if not isinstance(error, MisconfigurationException):
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
        fault = f"it is damaged or of another program ({reason})"
    return LibraryError(f"`ckpt_path`: {checkpoint} cannot be used: {fault}")


def locate_failure(error: UserError, run: Run, trainer: Any) -> UserError:
    """A user error with the rank of this process, where there are several, and with how to resume, if it is to be.

    Args:
        error: What was raised.
        run: The run.
        trainer: Its trainer.
    """
    says_how = ".ckpt" in error.args[0] or _TO_RESUME in error.args[0]
    is_to_resume = trainer.global_step > 0 and not says_how
    line = f"{format_rank(trainer)}{error.args[0]}{_how_to_resume(run) if is_to_resume else ''}"
    located = type(error)(line, *error.args[1:])
    located.has_trained = trainer.global_step > 0
    return located


def interruption(error: BaseException, describe: Callable[[int], str]) -> Interrupted:
    """The end of a run that a signal or a person has ended.

    Args:
        error: What it came to.
        describe: Gives the line of a signal, with how to resume.
    """
    found = next((cause for cause in iterate_causes(error) if isinstance(cause, Interrupted)), None)
    found = found or Interrupted(signal.SIGINT)
    if found.message is not None:
        return found
    return Interrupted(found.number, describe(found.number), found.code)


def describe_interruption(number: int, run: Run | None, rank: str) -> str:
    """The line with which a command ends that a signal has interrupted; of a fit, with how to resume its run."""
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    how = "" if run is None else _how_to_resume(run) or " before its first checkpoint; the same command begins anew"
    return f"{rank}interrupted{by}{how}"


def format_rank(trainer: Any) -> str:
    """The rank of this process, where there are several."""
    return f"rank {trainer.global_rank}: " if trainer.world_size > 1 else ""


_TO_RESUME = "; to resume: the same command with"


def _how_to_resume(run: Run) -> str:
    if run.whole is not None:
        return f"{_TO_RESUME} --resume {quote(str(format_path(run.whole.folder)))}"
    last = run.last
    return f"{_TO_RESUME} --ckpt_path {quote(str(format_path(last)))}" if last.is_file() else ""


def is_from_restoring_checkpoint(error: BaseException) -> bool:
    """Whether an exception was raised as Lightning restored the content of a checkpoint."""
    frames = [frame for cause in iterate_causes(error) for frame in traceback.extract_tb(cause.__traceback__)]
    places = [(Path(frame.filename).name, frame.name.lstrip("_")) for frame in frames]
    return any(file == "checkpoint_connector.py" and name.startswith("restore") for file, name in places)
