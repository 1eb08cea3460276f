"""Databases that hold studies: opened with patience, or refused in one line.

Who opens a database to read changes nothing in it, nor beside it; who opens it to write makes tables in it
only where a study is made, and never among those of another program.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
import urllib.parse
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.storages._rdb import models

from ecanet.errors import UserError
from ecanet.experiments.study.location import Location, regular_file
from ecanet.experiments.study.queue import database_error, first_line
from ecanet.redaction import redact

# Seconds for which a database may be away when it is opened, and what it or its driver says when it
# restarts, or when another process makes its tables at the same time.
OPENING = 10.0
_PASSING = (
    "refused",
    "the database system is",
    "terminating connection",
    "closed the connection",
    "already exists",
    "duplicate key",
)
# What a file of SQLite's with a write-ahead log begins with.
_LOGGED = re.compile(rb"SQLite format 3\0..\x02\x02", re.DOTALL)
# Files that this process has opened to write, as the system knows them.
_opened_to_write: set[tuple[int, int] | None] = set()
# The version of its tables, which Optuna notes last.
_VERSION = "alembic_version"
_TABLES = {*models.BaseModel.metadata.tables, _VERSION}

Mode = Literal["read", "write", "create"]

optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_names(location: Location) -> list[str]:
    """Return the names of the studies in the database of ``location``.

    Raises:
        UserError: it does not answer, or is another program's.
    """
    opened = open_storage(location, "read")
    if opened is None:
        return []
    studies, attributes = models.StudyModel, models.StudyUserAttributeModel
    # Not by Optuna, which reads all that is stored of every study, and fails if it cannot read one.
    query = (
        sqlalchemy.select(studies.study_name)
        .join(attributes, attributes.study_id == studies.study_id)
        .where(attributes.key == "plan")
        .order_by(studies.study_id)
    )
    with opened.engine.connect() as connection:
        found = list(connection.execute(query).scalars())
    opened.engine.dispose()
    return found


class DatabaseFile:
    """The file of a study's database, as it was when the study was opened.

    A file that is deleted or moved while it is open can still be written: what came out of the runs would
    go nowhere. So each use of a connection looks whether the file is where it was.
    """

    def __init__(self, path: Path, mode: Mode) -> None:
        self.path, self.mode = path.resolve(), mode
        self.identity = self._identity()
        if mode != "read":
            _opened_to_write.add(self.identity)

    def engine_options(self, seconds: float) -> dict[str, Any]:
        """Return what makes an engine of SQLAlchemy use the file, beside the address ``sqlite://``.

        Args:
            seconds: for which a connection waits for the lock of another.

        Raises:
            UserError: the file has a log that can be read only where its folder can be written.
        """
        if self.mode != "read":
            return self._options("mode=rw", seconds)
        log, shared = (self.path.with_name(f"{self.path.name}-{end}") for end in ("wal", "shm"))
        if log.exists() and not shared.exists() and not os.access(self.path.parent, os.W_OK):
            raise UserError(
                f"{self.path.parent} cannot be written, and so {log.name} beside {self.path.name} cannot "
                "be read: copy the folder to where you can write, and read the copy"
            )
        return self._options("immutable=1" if self._is_still() else "mode=ro", seconds)

    def looking_options(self) -> dict[str, Any]:
        """Return the same for a look at what kind of file it is, which does not even take up its log."""
        return self._options("immutable=1", 0.0)

    def check(self, *_: object) -> None:
        """Look whether the file is where it was.

        Raises:
            UserError: it is not.
        """
        if self._identity() != self.identity:
            raise UserError(
                f"{self.path} was moved, deleted or replaced while this command worked on it: start "
                "the command again on the folder where the study is now"
            )

    def _is_still(self) -> bool:
        """Whether the file can be read as what nobody changes: it has a log, which nobody has open.

        Else SQLite would make the two files of the log for whoever reads it. To close a file frees all locks
        that this process has on it, so one that SQLite has open for us is not looked into.
        """
        if self.identity in _opened_to_write:
            return False
        with self.path.open("rb") as opened:
            logged = _LOGGED.match(opened.read(20))
        return bool(logged) and not self.path.with_name(f"{self.path.name}-wal").exists()

    def _options(self, how: str, seconds: float) -> dict[str, Any]:
        # The path may hold any letter; in an address some would have a meaning, for SQLAlchemy or Optuna.
        quoted = urllib.parse.quote(os.fsencode(self.path))

        def connect() -> sqlite3.Connection:
            self.check()
            return sqlite3.connect(
                f"file:{quoted}?{how}", uri=True, timeout=seconds, check_same_thread=False
            )

        return {
            "creator": connect,
            "poolclass": sqlalchemy.pool.QueuePool,
            "pool_events": [(self.check, "checkout")],
        }

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def study_file(folder: Path, mode: Mode) -> DatabaseFile:
    """Return the file of the study in a folder.

    Raises:
        UserError: there is none, or it is a link, a device or a pipe.
    """
    file = folder / "study.db"
    if not regular_file(file):
        raise UserError(f"{folder} holds no study: give the folder that was --out of one")
    return DatabaseFile(file, mode)


def open_storage(where: Location | DatabaseFile, mode: Mode) -> optuna.storages.RDBStorage | None:
    """Open a database that holds studies; None if it holds no tables of Optuna's, unless they are made.

    Args:
        where: location of a study in a database that answers at an address, or its file.
        mode: ``read``: nothing is changed, in the database or beside it. ``write``: only what is there.
            ``create``: with tables, if it has none.

    Raises:
        UserError: it does not answer, is another program's, or its driver is not installed.
    """
    started = time.monotonic()
    while True:
        try:
            return _open(where, mode)
        except ImportError:
            raise UserError("PostgreSQL needs a driver: pip install 'ecanet[postgres]'") from None
        except Exception as error:
            found = database_error(error)
            if isinstance(where, DatabaseFile) or found is None:
                raise
            said = redact(first_line(found))
            if not any(sign in said for sign in _PASSING) or time.monotonic() - started > OPENING:
                raise UserError(
                    f"{where.storage} does not answer ({said}): check the address, and that "
                    "the database runs"
                ) from None
        time.sleep(0.5)


def _open(where: Location | DatabaseFile, mode: Mode) -> optuna.storages.RDBStorage | None:
    url, options = "sqlite://", engine_options(where)
    if isinstance(where, DatabaseFile):
        shown, looking = str(where.path), where.looking_options()
    else:
        url = where.url().render_as_string(hide_password=False)
        shown, looking = str(where.storage), engine_options(where)
        for how in [looking, *([options] if mode == "read" else [])]:
            how["connect_args"]["options"] += " -c default_transaction_read_only=on"
    engine = sqlalchemy.create_engine(url, **looking)
    try:
        there = _has_tables(engine, shown)
    finally:
        engine.dispose()
    if not there and mode != "create":
        return None
    # Optuna takes the address for a template.
    template = url.replace("{", "{{").replace("}", "}}")
    return optuna.storages.RDBStorage(template, options, skip_table_creation=there)


def _has_tables(engine: sqlalchemy.Engine, shown: str) -> bool:
    """Whether a database has Optuna's tables, whole; not if another process is making them just now.

    Raises:
        UserError: it has some of them, which are another program's, or another version's.
    """
    with engine.connect() as connection:
        there = set(sqlalchemy.inspect(connection).get_table_names()) & _TABLES
        if there < _TABLES - {_VERSION} and there:
            raise UserError(
                f"{shown} cannot be read as a study: it is a database of another program, or of "
                "another version of Optuna"
            )
        rows = [
            connection.execute(sqlalchemy.text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in ("version_info", _VERSION)
            if _VERSION in there
        ]
    return bool(rows) and all(rows)


def engine_options(where: Location | DatabaseFile, seconds: float | None = None) -> dict[str, Any]:
    """Return what makes an engine of SQLAlchemy give up after so many seconds without an answer."""
    if isinstance(where, DatabaseFile):
        return where.engine_options(60.0 if seconds is None else seconds)
    seconds = 20.0 if seconds is None else seconds
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
