"""Errors of a database that is away, restarting or busy, and calls that are retried until it answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError

from ecanet.errors import UserError, disk_is_full
from ecanet.signals import raise_pending

STORAGE_TIMEOUT = 300.0  # s without an answer of the database until a command gives up
NO_ANSWER = "the study's database cannot be reached; run the same command to resume when it is back"

Result = TypeVar("Result")


def retry_transient(call: Callable[[], Result], timeout: float = STORAGE_TIMEOUT) -> Result:
    """Call ``call`` until the database answers, with increasing pauses.

    ``call`` must be safe to repeat: a transaction whose commit was interrupted may have been committed.

    Args:
        call: the call.
        timeout: seconds after which no further attempt is made; 0: one attempt.

    Raises:
        UserError: the database has not answered for ``timeout`` seconds.
        Preempted, KeyboardInterrupt: a signal was received between two attempts.
    """
    started, pause = time.monotonic(), 0.1
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            if time.monotonic() - started + pause > timeout:
                raise UserError(f"{NO_ANSWER} ({first_line(database_error(error))})") from None
        raise_pending()
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def is_transient(error: Exception) -> bool:
    """Whether the error is one of a database that is away, restarting or busy."""
    found = database_error(error)
    return (
        isinstance(found, (OperationalError, InterfaceError, InternalError))
        or (found is not None and found.connection_invalidated)
    ) and not disk_is_full(found)


def database_error(error: BaseException) -> DBAPIError | None:
    """Return the database driver's error that caused ``error``, if there is one."""
    while not isinstance(error, DBAPIError):
        if error.__cause__ is None:
            return None
        error = error.__cause__
    return error


def first_line(error: DBAPIError | None) -> str:
    """Return the first line of the database driver's message, shortened."""
    message = str(error.orig).strip() if error else ""
    return message.splitlines()[0][:200] if message else type(error).__name__
