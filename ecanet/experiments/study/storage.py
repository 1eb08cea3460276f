"""Databases that hold studies: opened with retries, or refused in one line.

Opening a database to read changes nothing in it or beside it. Tables are created only where a study is
created, and never among those of another program.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
import urllib.parse
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.storages._rdb import models

from ecanet.errors import UserError
from ecanet.experiments.study.location import Location, regular_file
from ecanet.experiments.study.retry import database_error, first_line
from ecanet.inputs import no_study
from ecanet.redaction import redact

OPEN_TIMEOUT = 10.0  # s for which opening a database is retried
# Messages of PostgreSQL or its driver while it restarts, or while another process creates the tables.
_TRANSIENT = (
    "refused",
    "the database system is",
    "terminating connection",
    "closed the connection",
    "already exists",
    "duplicate key",
)
# The first bytes of an SQLite file in write-ahead log mode.
_WAL_HEADER = re.compile(rb"SQLite format 3\0..\x02\x02", re.DOTALL)
# Device and inode of the files that this process has opened to write.
_opened_to_write: set[tuple[int, int] | None] = set()
# The version of its tables, which Optuna writes last.
_VERSION = "alembic_version"
_TABLES = {*models.BaseModel.metadata.tables, _VERSION}

Mode = Literal["read", "write", "create"]

optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_names(location: Location) -> list[str]:
    """Return the names of the studies in the database of ``location``.

    Raises:
        UserError: it does not answer, or belongs to another program.
    """
    opened = open_storage(location, "read")
    if opened is None:
        return []
    studies, attributes = models.StudyModel, models.StudyUserAttributeModel
    # Optuna would read everything stored of every study, and fail if it could not read one.
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

    A file that is deleted or moved while it is open can still be written, and the results would be lost. So
    each use of a connection checks that the file is where it was.
    """

    def __init__(self, path: Path, mode: Mode) -> None:
        self.path, self.mode = path.resolve(), mode
        self.identity = self._identity()
        if mode != "read":
            _opened_to_write.add(self.identity)

    def engine_options(self, seconds: float) -> dict[str, Any]:
        """Return SQLAlchemy's engine options that, with the address ``sqlite://``, open the file.

        Args:
            seconds: for which a connection waits for another's lock.

        Raises:
            UserError: the file has a write-ahead log that cannot be read, as its folder is read-only.
        """
        if self.mode != "read":
            return self.options("mode=rw", seconds)
        log, shared = (self.path.with_name(f"{self.path.name}-{end}") for end in ("wal", "shm"))
        if log.exists() and not shared.exists() and not os.access(self.path.parent, os.W_OK):
            raise UserError(
                f"{self.path.parent} is not writable, so {log.name} beside {self.path.name} "
                f"cannot be read: copy the folder to a writable place, and read the copy"
            )
        return self.options("immutable=1" if self._is_still() else "mode=ro", seconds)

    def check(self, *_: object) -> None:
        """Check that the file is where it was.

        Raises:
            UserError: it is not.
        """
        if self._identity() != self.identity:
            raise UserError(
                f"{self.path} was moved, deleted or replaced while this command worked on it: "
                f"run the command again with the folder's present path"
            )

    def _is_still(self) -> bool:
        """Whether the file can be read as immutable: its mode is write-ahead log, and no process has it open.

        Otherwise SQLite would create the two files of the log for a reader. Closing a file frees all locks
        that this process holds on it, so a file that SQLite has open in this process is not opened here.
        """
        if self.identity in _opened_to_write:
            return False
        with self.path.open("rb") as opened:
            logged = _WAL_HEADER.match(opened.read(20))
        return bool(logged) and not self.path.with_name(f"{self.path.name}-wal").exists()

    def options(self, parameters: str, seconds: float) -> dict[str, Any]:
        """Return the engine options that open the file with these URI parameters of SQLite's."""
        # The path may contain any character; in an address, SQLAlchemy or Optuna would interpret some.
        quoted = urllib.parse.quote(os.fsencode(self.path))

        def connect() -> sqlite3.Connection:
            self.check()
            return sqlite3.connect(
                f"file:{quoted}?{parameters}", uri=True, timeout=seconds, check_same_thread=False
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
        raise no_study(folder)
    return DatabaseFile(file, mode)


def make_study_file(file: Path, folder: Path) -> None:
    """Create the empty database file of a study that will be in ``folder``."""
    # SQLite would make it writable by its owner alone, whatever the umask.
    file.touch()
    if _is_local(folder):
        # A commit then waits for the disk once, not four or five times.
        with closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA journal_mode = WAL")


def _is_local(folder: Path) -> bool:
    """Whether only this machine can open files in ``folder``, as SQLite's write-ahead log requires."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return False
    lines = mounts.read_text(errors="surrogateescape").splitlines()
    kinds = {point: kind for _, point, kind, *_ in map(str.split, lines)}
    folder = folder.resolve()
    nearest = next(str(p) for p in [folder, *folder.parents] if str(p) in kinds)
    return kinds[nearest] in ("ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs")


def open_storage(where: Location | DatabaseFile, mode: Mode) -> optuna.storages.RDBStorage | None:
    """Open a database that holds studies; return None if it has no tables of Optuna's.

    Args:
        where: location of a study in a database server, or a study's file.
        mode: ``read``: change nothing in the database or beside it; ``write``: create no tables; ``create``:
            create the tables if there are none.

    Raises:
        UserError: it does not answer, belongs to another program, or its driver is not installed.
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
            message, late = redact(first_line(found)), time.monotonic() - started > OPEN_TIMEOUT
            if late or not any(sign in message for sign in _TRANSIENT):
                raise UserError(
                    f"{where.storage} cannot be reached ({message}): check the address, and that "
                    f"the database is running"
                ) from None
        time.sleep(0.5)


def _open(where: Location | DatabaseFile, mode: Mode) -> optuna.storages.RDBStorage | None:
    url, options = "sqlite://", engine_options(where)
    if isinstance(where, DatabaseFile):
        shown, inspection = str(where.path), where.options("immutable=1", 0.0)
    else:
        url = where.url().render_as_string(hide_password=False)
        shown, inspection = str(where.storage), engine_options(where)
        for how in [inspection, *([options] if mode == "read" else [])]:
            how["connect_args"]["options"] += " -c default_transaction_read_only=on"
    engine = sqlalchemy.create_engine(url, **inspection)
    try:
        there = _has_tables(engine, shown)
    finally:
        engine.dispose()
    if not there and mode != "create":
        return None
    # Optuna treats the address as a template.
    template = url.replace("{", "{{").replace("}", "}}")
    return optuna.storages.RDBStorage(template, options, skip_table_creation=there)


def _has_tables(engine: sqlalchemy.Engine, shown: str) -> bool:
    """Whether a database has all of Optuna's tables; not while another process is creating them.

    Raises:
        UserError: it has some of them, which belong to another program, or to another version of Optuna.
    """
    with engine.connect() as connection:
        there = set(sqlalchemy.inspect(connection).get_table_names()) & _TABLES
        if there < _TABLES - {_VERSION} and there:
            raise UserError(
                f"{shown} cannot be read as a study: it is another program's database, or "
                f"another Optuna version's"
            )
        rows = [
            connection.execute(sqlalchemy.text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in ("version_info", _VERSION)
            if _VERSION in there
        ]
    return bool(rows) and all(rows)


def engine_options(where: Location | DatabaseFile, seconds: float | None = None) -> dict[str, Any]:
    """Return SQLAlchemy's engine options; with them, it gives up after ``seconds`` without an answer."""
    if isinstance(where, DatabaseFile):
        return where.engine_options(60.0 if seconds is None else seconds)
    seconds = 20.0 if seconds is None else seconds
    arguments = {
        "connect_timeout": max(2, round(seconds / 2)),
        "keepalives_idle": max(1, round(seconds / 2)),
        "keepalives_interval": max(1, round(seconds / 6)),
        "keepalives_count": 3,
        "tcp_user_timeout": round(1000 * seconds),
        # Heartbeats are compared with the database's clock, in whatever zone a client has. A client that is
        # disconnected in the middle of a transaction must not keep its locks.
        "options": "-c timezone=utc "
        f"-c idle_in_transaction_session_timeout={round(1000 * seconds)}",
    }
    return {"connect_args": arguments, "pool_pre_ping": True}
