"""Where a study is: its folder, and the address of its database."""

from __future__ import annotations

import itertools
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

# Parameters that an address may have. Others would add hosts, passwords or settings that are not visible in
# it: a service file, options of the server, a plugin of SQLAlchemy.
_PARAMETERS = {
    "host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile", "gssencmode",
    "channel_binding", "require_auth", "target_session_attrs", "load_balance_hosts", "application_name",
}  # fmt: skip
# Characters of a folder's name: file systems allow 255 bytes, temporary names need some.
_LONGEST = 200


@dataclass(frozen=True)
class Location:
    """Where a study is: the folder of its runs, and the database of its queue."""

    folder: Path
    storage: str | None = None
    """Address of a database, without its password; None: ``study.db`` in the folder."""
    name: str = "study"
    """The study's name in its database."""
    password: str | None = field(default=None, repr=False)

    def url(self) -> URL:
        """Return the database's address for SQLAlchemy, with the password."""
        url = make_url(self.storage or "").set(drivername="postgresql+psycopg")
        return url.set(password=self.password) if self.password else url

    def flags(self) -> list[str]:
        """Return the arguments of ``ecanet worker`` that name this study, without the password."""
        if self.storage is None:
            return [str(self.folder)]
        return [str(self.folder), "--storage", self.storage, "--study", self.name]

    def secrets(self) -> dict[str, str]:
        """Return the environment variables that a worker needs besides :meth:`flags`."""
        return {"PGPASSWORD": self.password} if self.password else {}

    def __str__(self) -> str:
        return f"study {self.name} in {self.storage}" if self.storage else str(self.folder)


def locate(
    folder: str | Path | None, storage: str | None = None, name: str | None = None
) -> Location:
    """Return a study's location: the folder itself, or the database that its ``study.json`` names.

    A database that ``study.json`` names is used only if this user has given it as ``storage`` before on this
    machine, because opening it sends it a password.

    Args:
        folder: the study's folder; by default one with the study's name in the current folder.
        storage: address of the database, for a study that is not a file in its folder.
        name: the study's name in that database; by default the folder's.

    Raises:
        UserError: too little is given, the address is invalid, or ``study.json`` names a database that the
            user has not used.
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
    """Return the location that a folder's ``study.json`` holds; None if there is no such file.

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
    """Write a study's location into a ``study.json``."""
    assert location.storage is not None
    _remember(location.storage)
    write_json(file, {"storage": location.storage, "study": location.name})


def parse_address(text: str) -> tuple[str, str | None]:
    """Return the address of a database without its password, and the password.

    Raises:
        UserError: it is not one, or has a part that is not accepted. The message never repeats an address:
            in one that cannot be parsed, any part may be the password.
    """
    why = "not the address of a database: postgresql://user@host/database"
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
    query = itertools.chain(*url.normalized_query.values())
    values = [url.username or "", url.database or "", *query]
    printable = all(value.isprintable() and len(value) < 1000 for value in values)
    if not re.fullmatch(r"[\w.:%-]*", url.host or "") or not printable:
        raise UserError(f"--storage is {why}")
    for name in url.query:
        if name not in _PARAMETERS | {"password"}:
            shown = name if re.fullmatch(r"\w{1,30}", name) else "one"
            raise UserError(
                f"--storage has a parameter that is not accepted, {shown}: known are "
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
    """Return ``name`` if a study, and so its folder, can have it.

    Raises:
        UserError: it cannot.
    """
    if not _is_name(name) or not name.isprintable():
        raise UserError(
            f"a study cannot have the name {ascii(name)[:80]}: choose another with --study"
        )
    return name


def valid_run_name(name: str) -> str:
    """Return ``name`` if a run, and so its folder, can have it.

    Raises:
        UserError: it cannot, for instance because it leads to another folder.
    """
    if not _is_name(name) or not re.fullmatch(r"[A-Za-z0-9_=][A-Za-z0-9_.=-]*", name):
        raise UserError(f"a run cannot have the name {ascii(name)[:80]}")
    return name


def inside(folder: Path, *names: str) -> Path:
    """Return the path ``folder/names…`` of a study's subfolder that may be written to.

    Raises:
        UserError: part of it is a symbolic link, which might lead out of the study's folder.
    """
    path = folder
    for name in names:
        path /= name
        if path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link, and nothing is written through one: put a folder in its place"
            )
    return path


def regular_file(path: Path) -> bool:
    """Whether ``path`` is a regular file; False if there is nothing.

    Raises:
        UserError: it is something else, such as a link, device or pipe.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is not a regular file: put the database itself there")
    return True


def _is_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name) <= _LONGEST
        and name not in (".", "..")
        and not set("/\\") & set(name)
    )


def _databases_file() -> Path:
    return platformdirs.user_config_path("ecanet", appauthor=False) / "databases"


def _known_databases() -> list[str]:
    """Return the addresses that this user has given, without passwords."""
    with suppress(OSError, UnicodeDecodeError):
        return _databases_file().read_text().splitlines()
    return []


def _remember(address: str) -> None:
    """Record that the user has given this address, if the file can be written."""
    if address not in _known_databases():
        file = _databases_file()
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as lines:
                lines.write(f"{address}\n")
