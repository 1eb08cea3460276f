"""The file of a study's database: found under any name, and missed when it goes."""

from __future__ import annotations

import os
import sqlite3
import urllib.parse
from pathlib import Path
from typing import Any

from sqlalchemy.pool import QueuePool

from ecanet.errors import UserError


class DatabaseFile:
    """The file of a study's database, as it was when the study was opened.

    A file that is deleted or moved while it is open can still be written: what came out of the runs would
    go nowhere. So each use of a connection looks whether the file is where it was.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.identity = self._identity()

    def engine_options(self, seconds: float) -> dict[str, Any]:
        """Return what makes an engine of SQLAlchemy use the file, beside the address ``sqlite://``.

        The path may hold any letter; in an address some would have a meaning, for SQLAlchemy or Optuna.

        Args:
            seconds: for which a connection waits for the lock of another.
        """
        quoted = urllib.parse.quote(os.fsencode(self.path))

        def connect() -> sqlite3.Connection:
            self.check()
            return sqlite3.connect(
                f"file:{quoted}?mode=rw", uri=True, timeout=seconds, check_same_thread=False
            )

        return {
            "creator": connect,
            "poolclass": QueuePool,
            "pool_events": [(self.check, "checkout")],
        }

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

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino
