"""Where a study is: its folder, and the address of its database."""

from __future__ import annotations

import json
import re
import shlex
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ecanet.errors import UserError
from ecanet.files import write_json

# Parameters of an address. Others would bring in hosts, passwords or settings that nobody sees: a service
# file, options of the server, a plugin of SQLAlchemy's.
_PARAMETERS = {
    "host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile", "gssencmode",
    "channel_binding", "require_auth", "target_session_attrs", "load_balance_hosts", "application_name",
}  # fmt: skip
_LONGEST = 200
"""Letters of a name that becomes a folder's: file systems take 255 bytes, temporary files some of them."""


@dataclass(frozen=True)
class Location:
    """Where a study is: the folder of its runs, and the database of its queue."""

    folder: Path
    storage: str | None = None
    """Address of a database, without its password; None: ``study.db`` in the folder."""
    name: str = "study"
    """The study's name in the database."""
    password: str | None = field(default=None, repr=False)

    def url(self) -> URL:
        """Return the database's address as SQLAlchemy takes it, with the password."""
        url = make_url(self.storage or "").set(drivername="postgresql+psycopg")
        return url.set(password=self.password) if self.password else url

    def flags(self) -> list[str]:
        """Return what to give to ``ecanet worker``, beside the password."""
        if self.storage is None:
            return [str(self.folder)]
        return [str(self.folder), "--storage", self.storage, "--study", self.name]

    def secrets(self) -> dict[str, str]:
        """Return the environment that a worker needs beside :meth:`flags`."""
        return {"PGPASSWORD": self.password} if self.password else {}

    def __str__(self) -> str:
        return f"study {self.name} in {self.storage}" if self.storage else str(self.folder)


def locate(
    folder: str | Path | None, storage: str | None = None, name: str | None = None
) -> Location:
    """Return where the study of a folder is: in the folder, or where ``study.json`` says.

    A database that ``study.json`` names is taken only if it was given as ``storage`` before, by this user
    on this machine: whoever opens it sends it a password.

    Args:
        folder: of the study; by default one of the study's name, here.
        storage: address of a database, for a study that has none of its own.
        name: of the study in that database; by default the folder's.

    Raises:
        UserError: too little is given, the address is none, or the folder names a database that the user
            has not.
    """
    if storage is None:
        if name is not None:
            raise UserError("--study names a study in a database: say which one with --storage")
        if folder is None:
            raise UserError("which study? Give its folder, or --storage and --study")
        found = read_pointer(Path(folder))
        if found is None:
            return Location(Path(folder))
        if found.storage not in _known_databases():
            flags = shlex.join(found.flags()[1:])
            raise UserError(
                f"{Path(folder) / 'study.json'} names a database that was not used here before: "
                f"if you trust it, give {flags}"
            )
        return found
    if folder is None and name is None:
        raise UserError("which study? Name it with --study; `ecanet study list` shows them")
    address, password = parse_address(storage)
    name = valid_study_name(name or Path(folder or "").resolve().name)
    _remember(address)
    return Location(Path(folder or name), address, name, password)


def read_pointer(folder: Path) -> Location | None:
    """Return where the ``study.json`` of a folder says that its study is; None without one.

    Raises:
        UserError: it cannot be read.
    """
    pointer = folder / "study.json"
    if not pointer.is_file():
        return None
    try:
        with pointer.open("rb") as file:
            found = json.loads(file.read(1 << 16))
        address, password = parse_address(found["storage"])
        return Location(folder, address, valid_study_name(found["study"]), password)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        raise UserError(f"{pointer} cannot be read: give --storage and --study") from None


def write_pointer(location: Location, file: Path) -> None:
    """Write into a ``study.json`` where the database of a study is."""
    assert location.storage is not None
    _remember(location.storage)
    write_json(file, {"storage": location.storage, "study": location.name})


def parse_address(text: str) -> tuple[str, str | None]:
    """Return the address of a database without its password, and the password.

    Raises:
        UserError: it is none, or one with a part that is not taken. The line never repeats the address:
            where it cannot be read, nobody knows which part of it is the password.
    """
    why = "no address of a database: postgresql://user@host/database"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError, TypeError, AttributeError):
        raise UserError(f"--storage is {why}") from None
    if url.get_backend_name() != "postgresql":
        raise UserError(
            f"--storage {url.get_backend_name()}://…: only postgresql://… can be shared by machines; "
            "without --storage the study is a file in its folder"
        )
    parts = [url.host or "", url.database or "", *url.query]
    if any("@" in part for part in parts):
        raise UserError(f"--storage is {why}. In a password, write @ as %40 and / as %2F")
    if not re.fullmatch(r"[\w.:%-]*", url.host or "") or not all(map(_is_shown, _values(url))):
        raise UserError(f"--storage is {why}")
    for name in url.query:
        if name not in _PARAMETERS | {"password"}:
            shown = name if re.fullmatch(r"\w{1,30}", name) else "one"
            raise UserError(
                f"--storage has a parameter that is not taken, {shown}: known are "
                f"{', '.join(sorted(_PARAMETERS))}"
            )
    given = url.query.get("password", url.password)
    password = given[-1] if isinstance(given, tuple) else given
    plain = URL.create(
        "postgresql", url.username, None, url.host, url.port, url.database,
        {name: value for name, value in url.query.items() if name != "password"},
    )  # fmt: skip
    return plain.render_as_string(), str(password) if password else None


def valid_study_name(name: str) -> str:
    """Return ``name`` if it can be a study's, and so its folder's.

    Raises:
        UserError: it cannot.
    """
    if not _is_name(name) or not name.isprintable():
        raise UserError(
            f"a study cannot have the name {ascii(name)[:80]}: choose another with --study"
        )
    return name


def valid_run_name(name: str) -> str:
    """Return ``name`` if it can be a run's, and so its folder's.

    Raises:
        UserError: it cannot, as it leads to another folder, for one.
    """
    if not _is_name(name) or not re.fullmatch(r"[A-Za-z0-9_=][A-Za-z0-9_.=-]*", name):
        raise UserError(f"a run cannot have the name {ascii(name)[:80]}")
    return name


def inside(folder: Path, *names: str) -> Path:
    """Return the path of a folder of the study's that may be written to: no link leads out of it.

    Raises:
        UserError: one does.
    """
    path = folder
    for name in names:
        path = path / name
        if path.is_symlink():
            raise UserError(
                f"{path} is a link, and nothing is written through it: put a folder in its place"
            )
    return path


def regular_file(path: Path) -> bool:
    """Whether ``path`` is a file and nothing else: no link, device or pipe.

    Raises:
        UserError: it is something else.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is no regular file: put the database itself there")
    return True


def _is_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name) <= _LONGEST
        and name not in (".", "..")
        and not set("/\\") & set(name)
    )


def _values(url: URL) -> list[str]:
    values = [url.username or "", url.database or ""]
    for value in url.query.values():
        values += [value] if isinstance(value, str) else value
    return values


def _is_shown(value: str) -> bool:
    return value.isprintable() and len(value) < 1000


def _databases_file() -> Path:
    return platformdirs.user_config_path("ecanet", appauthor=False) / "databases"


def _known_databases() -> list[str]:
    """Return the addresses that this user has given, without passwords."""
    with suppress(OSError, UnicodeDecodeError):
        return _databases_file().read_text().splitlines()
    return []


def _remember(address: str) -> None:
    """Note that the user has given this address; where that cannot be kept, it is to be given again."""
    if address not in _known_databases():
        file = _databases_file()
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as lines:
                lines.write(f"{address}\n")
