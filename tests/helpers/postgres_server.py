"""A PostgreSQL server, started from the machine's own binaries."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path


class Postgres:
    """A server with a data folder and port of its own.

    Args:
        binaries: folder of ``initdb``, ``postgres`` and ``pg_isready``.
        folder: for its data; must be accessible to ``user``.
        user: who runs it, as root may not; None: the user who runs the tests.
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
        """Disconnect all clients and end."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None
