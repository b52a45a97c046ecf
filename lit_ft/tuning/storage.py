"""The place of a study: a file in its folder, or a database by its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import SQLAlchemyError

from lit_ft.errors import UserError
from lit_ft.tuning.space import TuneConfig

_PACKAGES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Of drivers of databases, those whose package has another name."""

STORAGE_ERRORS: tuple[type[Exception], ...] = (SQLAlchemyError, optuna.exceptions.OptunaError)
"""What is raised where a study cannot be read or written."""


def open_storage(config: TuneConfig, folder: Path) -> BaseStorage:
    """The storage of a study, made where there is none.

    Args:
        config: The search.
        folder: The folder of the study.
    """
    if config.storage is None:
        journal = str(folder / "journal.log")
        # The lock is no link to the file, which another machine may have at another place, and would take for ever.
        return JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal)))
    # A server may be restarted, or close what is not used for long, as while an epoch is trained.
    return RDBStorage(config.storage, engine_kwargs={"pool_pre_ping": True})


@contextmanager
def refuse_lost_storage(config: TuneConfig, *further: type[Exception], advice: str = "") -> Iterator[None]:
    """Raises `UserError` where a study cannot be read or written; without the URL, which may have a password.

    Args:
        config: The search.
        further: What else is raised over its storage.
        advice: What to do then, besides what is plain from the reason.
    """
    try:
        yield
    except (*STORAGE_ERRORS, *further) as error:
        if isinstance(error, optuna.exceptions.UpdateFinishedTrialError):
            raise UserError(
                "`tune.storage`: another process took up the trial of this one, as the file system of their folder "
                "shares no locks; give each machine a folder of its own, and all of them a database"
            ) from error
        where = f"the database of {config.storage.partition(':')[0]}" if config.storage else "the file of the study"
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            package = _PACKAGES.get(cause.name, cause.name)
            raise UserError(f"`tune.storage`: {where} needs {cause.name}; run: pip install {package}") from error
        cause = getattr(cause, "orig", None) or cause  # that of the driver
        reason = " ".join(str(cause).split("\n")[0].split())
        raise UserError(f"`tune.storage`: {where} cannot be used ({reason}){advice}") from error
