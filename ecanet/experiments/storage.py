"""Databases that hold studies: opened with patience, or refused in one line.

Who opens a database to read changes nothing in it, nor beside it; who opens it to write makes tables in it
only where a study is made, and never among those of another program.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.storages._rdb import models
from sqlalchemy.pool import NullPool

from ecanet.errors import UserError
from ecanet.experiments.location import Location, regular_file
from ecanet.experiments.queue import database_error, first_line
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
)
# What a file of SQLite's begins with, and the bytes soon behind it if it has a write-ahead log.
_SQLITE, _LOGGED = b"SQLite format 3\0", b"\x02\x02"

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
    found = opened.get_all_studies()
    opened.engine.dispose()
    return [study.study_name for study in found if "plan" in study.user_attrs]


def study_file(folder: Path) -> Path:
    """Return the file of the study in a folder.

    Raises:
        UserError: there is none, or it is a link, a device or a pipe.
    """
    file = folder / "study.db"
    if not regular_file(file):
        raise UserError(f"{folder} holds no study: give the folder that was --out of one")
    return file


def open_storage(where: Location | Path, mode: Mode) -> optuna.storages.RDBStorage | None:
    """Open a database that holds studies; None if it holds no tables of Optuna's, unless they are made.

    Args:
        where: location of a study in a database that answers at an address, or a file of SQLite's.
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
            if isinstance(where, Path) or found is None:
                raise
            said = redact(first_line(found))
            if not any(sign in said for sign in _PASSING) or time.monotonic() - started > OPENING:
                raise UserError(
                    f"{where.storage} does not answer ({said}): check the address, and that "
                    "the database runs"
                ) from None
        time.sleep(0.5)


def _open(where: Location | Path, mode: Mode) -> optuna.storages.RDBStorage | None:
    if isinstance(where, Path):
        url, options = f"sqlite:///{where.resolve()}", _sqlite_options(where, mode)
        # To look at another program's file must not even take up its log.
        looking = _reading(where, "immutable=1")
    else:
        url = where.url().render_as_string(hide_password=False)
        options, looking = postgres_options(20.0), postgres_options(20.0)
        for how in [looking, *([options] if mode == "read" else [])]:
            how["connect_args"]["options"] += " -c default_transaction_read_only=on"
    engine = sqlalchemy.create_engine(url, **looking, poolclass=NullPool)
    if _has_tables(engine, where if isinstance(where, Path) else where.storage):
        return _storage(url, options, skip_table_creation=True)
    return _storage(url, options) if mode == "create" else None


def _storage(url: str, options: dict[str, Any], **how: Any) -> optuna.storages.RDBStorage:
    # Optuna takes it for a template.
    template = url.replace("{", "{{").replace("}", "}}")
    return optuna.storages.RDBStorage(template, engine_kwargs=options, **how)


def _has_tables(engine: sqlalchemy.Engine, shown: Path | str | None) -> bool:
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


def _sqlite_options(file: Path, mode: Mode) -> dict[str, Any]:
    """Return what makes SQLAlchemy open a file of SQLite's."""
    if mode == "create":
        return {"connect_args": {"timeout": 60.0}}
    with file.open("rb") as opened:
        head = opened.read(len(_SQLITE) + 4)
    if not head.startswith(_SQLITE):
        raise UserError(f"{file} cannot be read as a study: it is no database")
    if mode == "write":
        return {"connect_args": {"timeout": 60.0}}
    # With a log, SQLite makes two files beside the database for whoever reads it. Where there are none,
    # nobody has it open, and it can be read as what nobody changes.
    still = head.endswith(_LOGGED) and not file.with_name(f"{file.name}-wal").exists()
    return _reading(file, "immutable=1" if still else "mode=ro")


def _reading(file: Path, how: str) -> dict[str, Any]:
    address = f"file:{quote(bytes(file.resolve()))}?{how}"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(address, uri=True, timeout=60.0, check_same_thread=False)

    return {"creator": connect}


def postgres_options(seconds: float) -> dict[str, Any]:
    """Return what makes a connection give up after so many seconds without an answer."""
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
