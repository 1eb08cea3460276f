"""Databases that hold studies: opened with patience, or refused in one line."""

from __future__ import annotations

import time
from typing import Any

import optuna

from ecanet.errors import UserError
from ecanet.experiments.database_file import DatabaseFile
from ecanet.experiments.location import checked_address, without_password
from ecanet.experiments.queue import database_error, first_line

# Seconds for which a database may be away when it is opened, and what it or its driver says when it
# restarts, or when another process makes its tables at the same time.
OPENING = 10.0
_PASSING = (
    "refused",
    "the database system is",
    "terminating connection",
    "closed the connection",
    "already exists",
)

optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_names(storage: str) -> list[str]:
    """Return the names of the studies in a database.

    Raises:
        UserError: it does not answer.
    """
    opened = open_storage(checked_address(storage))
    names = [study.study_name for study in opened.get_all_studies() if "plan" in study.user_attrs]
    opened.engine.dispose()
    return names


def open_storage(where: str | DatabaseFile) -> optuna.storages.RDBStorage:
    """Open a database, of an address or in a file, with tables for studies if it has none.

    Raises:
        UserError: it does not answer, or its driver is not installed.
    """
    url = "sqlite://" if isinstance(where, DatabaseFile) else where
    postgres = url.startswith("postgresql")
    how = engine_options(where, 20.0 if postgres else 60.0)
    started = time.monotonic()
    while True:
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=how)
        except ImportError:
            raise UserError("PostgreSQL needs a driver: pip install 'ecanet[postgres]'") from None
        except Exception as error:
            found = database_error(error)
            if not postgres or found is None:
                raise
            said = first_line(found)
            if not any(sign in said for sign in _PASSING) or time.monotonic() - started > OPENING:
                raise UserError(
                    f"{without_password(url)} does not answer ({said}): check the address, and that "
                    "the database runs"
                ) from None
        time.sleep(0.5)


def engine_options(where: str | DatabaseFile, seconds: float) -> dict[str, Any]:
    """Return what makes an engine of SQLAlchemy give up after so many seconds without an answer."""
    if isinstance(where, DatabaseFile):
        return where.engine_options(seconds)
    arguments = {
        "connect_timeout": max(2, round(seconds / 2)),
        "keepalives_idle": max(1, round(seconds / 2)),
        "keepalives_interval": max(1, round(seconds / 6)),
        "keepalives_count": 3,
        "tcp_user_timeout": round(1000 * seconds),
        # Heartbeats are compared with the database's clock, whatever zone a client sets. And who is cut
        # off in the middle of a transaction must not keep its locks.
        "options": "-c timezone=utc "
        f"-c idle_in_transaction_session_timeout={round(1000 * seconds)}",
    }
    return {"connect_args": arguments, "pool_pre_ping": True}
