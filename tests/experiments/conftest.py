"""Fixtures of the tests of studies: a PostgreSQL, and quick garbage collections."""

from __future__ import annotations

import gc
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


CHROMIUM = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM)
        except sync_api.Error as error:
            pytest.skip(f"needs Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """statsmodels collects garbage at each correction: a third of a second once torch is loaded."""
    gc.freeze()
    yield
    gc.unfreeze()
