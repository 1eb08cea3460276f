"""A real PostgreSQL for the tests of studies on it, started from the machine's own binaries."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Postgres:
    """A server of its own in a folder of its own; a study in it never meets another test's.

    Args:
        folder: for its data; must be reachable by ``user``.
        user: who runs it, as root may not; None: who runs the tests.
    """

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self.binaries, self.folder, self.user = binaries, folder, user
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [binaries / "initdb", "-D", folder / "data", "-U", "ecanet", "--auth=trust", "-N"],
            check=True,
            capture_output=True,
            user=user,
            cwd=folder,
        )
        with (folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.0.0.0/8 trust\n")

    def url(self, host: str = "127.0.0.1") -> str:
        return f"postgresql://ecanet@{host}:{self.port}/postgres"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                self.binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port),
                "-c", "listen_addresses=*", "-c", f"unix_socket_directories={self.folder}",
            ],
            stderr=(self.folder / "log").open("ab"),
            user=self.user,
            cwd=self.folder,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            ready = [self.binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)]
            if subprocess.run(ready, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise TimeoutError((self.folder / "log").read_text()[-2000:])

    def stop(self) -> None:
        """Cut off all who are connected, and end."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None


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
