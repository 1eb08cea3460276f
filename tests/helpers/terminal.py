"""Commands on a terminal: what its screen shows, read as a person would."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte


class Terminal:
    """A process whose standard error, or all of its output, is a terminal of so many columns and lines.

    Args:
        arguments: of ``ecanet``, or with ``code`` of Python.
        columns: of the terminal.
        lines: of the terminal.
        cwd: folder in which the process starts.
        stdout: a file for its standard output, in place of the terminal.
        code: a program for ``python -c`` that runs in place of ``ecanet``.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        columns: int = 80,
        lines: int = 24,
        cwd: Path | None = None,
        stdout: Path | None = None,
        code: str | None = None,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self.stream = pyte.ByteStream(self.screen)
        self.text = b""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        command = ["-c", code] if code else ["-m", "ecanet"]
        file = stdout.open("w") if stdout else None
        hidden = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
        variables = {k: v for k, v in os.environ.items() if k not in hidden}
        self.process = subprocess.Popen(
            [sys.executable, *command, *map(str, arguments)],
            stdin=theirs,
            stdout=file or theirs,
            stderr=theirs,
            cwd=cwd,
            env=variables | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)
        if file:
            file.close()
        self.ours = ours

    def read(self, seconds: float = 0.1) -> bool:
        """Take in what is printed within so many seconds; return False once the process has ended."""
        ready, _, _ = select.select([self.ours], [], [], seconds)
        if ready:
            try:
                found = os.read(self.ours, 65536)
            except OSError:
                found = b""
            if not found:
                return False
            self.text += found
            self.stream.feed(found)
        return True

    def rows(self) -> list[str]:
        """Return the screen's lines, without those that are empty at its end."""
        shown = [line.rstrip() for line in self.screen.display]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    def wait_for(self, condition: Callable[[list[str]], bool], seconds: float = 120.0) -> list[str]:
        """Return the screen once it meets a condition; fail if the process ends before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            going_on = self.read()
            if condition(self.rows()):
                return self.rows()
            assert going_on, "the process has ended:\n" + "\n".join(self.rows())
        raise AssertionError("the screen does not show it:\n" + "\n".join(self.rows()))

    def end(self, seconds: float = 300.0) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + seconds
        while self.read() and time.monotonic() < deadline:
            pass
        os.close(self.ours)
        return self.process.wait(30)
