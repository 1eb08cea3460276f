"""Fixtures of the tests of studies: a PostgreSQL, and quick garbage collections."""

from __future__ import annotations

import gc
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.postgres_server import Postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    binaries = next((place for place in places if (place / "postgres").exists()), None)
    if binaries is None:
        pytest.skip("needs PostgreSQL's initdb and postgres")
    user = None
    if os.geteuid() == 0:
        users = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in users else "nobody"
    folder = Path(tempfile.mkdtemp(prefix="ecanet-postgres-"))
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    server = Postgres(binaries, folder, user)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server: Postgres) -> Postgres:
    """Return a running PostgreSQL, whatever the test before did to it."""
    pytest.importorskip("psycopg")
    if postgres_server.process is None:
        postgres_server.start()
    return postgres_server


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """statsmodels collects garbage at each correction: a third of a second once torch is loaded."""
    gc.freeze()
    yield
    gc.unfreeze()
