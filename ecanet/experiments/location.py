"""Where a study is: its folder, and the address of its database."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ecanet.errors import UserError


@dataclass(frozen=True)
class Location:
    """Where a study is: the folder of its runs, and the database of its queue."""

    folder: Path
    storage: str | None = None
    """Address of a database; None: ``study.db`` in the folder."""
    name: str = "study"
    """The study's name in the database."""

    def flags(self) -> list[str]:
        """Return what to give to ``ecanet worker``, beside the password."""
        if self.storage is None:
            return [str(self.folder)]
        return [
            str(self.folder),
            "--storage",
            without_password(self.storage),
            "--study",
            self.name,
        ]

    def secrets(self) -> dict[str, str]:
        """Return the environment that a worker needs beside :meth:`flags`."""
        password = make_url(self.storage).password if self.storage else None
        return {"PGPASSWORD": password} if password else {}

    def __str__(self) -> str:
        if self.storage is None:
            return str(self.folder)
        return f"study {self.name} in {without_password(self.storage)}"


def locate(
    folder: str | Path | None, storage: str | None = None, name: str | None = None
) -> Location:
    """Return where the study of a folder is: in the folder, or where ``study.json`` says.

    Args:
        folder: of the study; by default one of the study's name, here.
        storage: address of a database, for a study that has none of its own.
        name: of the study in that database; by default the folder's.

    Raises:
        UserError: too little is given, or the address is none.
    """
    if storage is None:
        if name is not None:
            raise UserError("--study names a study in a database: say which one with --storage")
        if folder is None:
            raise UserError("which study? Give its folder, or --storage and --study")
        pointer = Path(folder) / "study.json"
        if not pointer.is_file():
            return Location(Path(folder))
        try:
            found = json.loads(pointer.read_text())
            return Location(Path(folder), checked_address(found["storage"]), found["study"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{pointer} cannot be read: give --storage and --study") from None
    if folder is None and name is None:
        raise UserError("which study? Name it with --study; `ecanet study list` shows them")
    name = name or Path(folder or "").resolve().name
    return Location(Path(folder or name), checked_address(storage), name)


def checked_address(url: str) -> str:
    """Return the address with the driver we install."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UserError(
            f"--storage {url} is no address of a database: postgresql://user@host/database"
        ) from None
    if parsed.get_backend_name() != "postgresql":
        raise UserError(
            f"--storage {without_password(url)}: only postgresql://… can be shared by machines; "
            "without --storage the study is a file in its folder"
        )
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def without_password(url: str) -> str:
    """Return the address as it may be shown and kept; libpq knows PGPASSWORD and ~/.pgpass."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1@", url).replace("+psycopg", "")
