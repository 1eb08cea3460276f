"""Runs a command that trains a network, and reads what it reports."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from ecanet.errors import UserError, how_it_ended, one_line
from ecanet.integrations.containment import OUTPUT
from ecanet.integrations.reports import Report, read_rows
from ecanet.record import Row
from ecanet.training.device import worker_variables

_POLL = 0.2  # s between two looks at the command
_GRACE = 10.0  # s for which a command that is to end may save what it has
_GUARD = Path(__file__).with_name("guard.py")


def words(command: str, attention: str, seed: int, folder: Path) -> list[str]:
    """Return a command's words, split as a shell does, with the values of a run in their places.

    Raises:
        UserError: a quotation is not closed.
    """
    values = {"{attention}": attention, "{seed}": str(seed), "{out}": str(folder)}
    try:
        found = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--command cannot be read: {error}") from None
    for name, value in values.items():
        found = [word.replace(name, value) for word in found]
    # What is written as `python` should be the interpreter in use.
    if found and found[0] in ("python", "python3"):
        found[0] = sys.executable
    return found


def run_command(
    command: list[str], folder: Path, report: Report, *, directory: str, threads: int
) -> dict[str, Any]:
    """Run a command until it ends, and return the metrics that it has written.

    What it prints goes to ``output.txt``.

    Args:
        command: its words.
        folder: of the run, to which it writes ``metrics.json`` or ``metrics.csv``.
        report: called for each line of ``metrics.csv`` when it appears.
        directory: in which it runs.
        threads: of the CPU, for libraries that read OMP_NUM_THREADS.

    Raises:
        RuntimeError: it failed, with its last line.
        UserError: there is no such command, or it has written no metrics, or what is no JSON.
    """
    table, seen = folder / "metrics.csv", 0.0
    variables = worker_variables(threads) | {"PYTHONUNBUFFERED": "1"}
    # What ecanet keeps its own processes from, a script needs: the files beside it.
    variables.pop("PYTHONSAFEPATH", None)
    with (folder / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, str(_GUARD), *command],
            cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=variables,
        )  # fmt: skip
        try:
            while process.poll() is None:
                report.stop_if_asked()
                if (changed := _changed(table)) != seen:
                    seen = changed
                    _report_rows(read_rows(table, ended=False), report)
                time.sleep(_POLL)
        finally:
            _end(process)
    result = folder / "metrics.json"
    if process.returncode:
        result.unlink(missing_ok=True)  # which the next attempt may not write
        raise RuntimeError(f"the command {how_it_ended(process.returncode)}: {_last_line(folder)}")
    rows = read_rows(table)
    _report_rows(rows, report)
    if result.exists():
        try:
            return json.loads(result.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{result} is not JSON: {one_line(error)}") from None
    if rows:
        return {name: value for name, value in rows[-1].items() if name != "epoch"}
    raise UserError(
        f"the command has written neither {result} nor metrics.csv there: write its metrics "
        "into the folder that {out} stands for"
    )


def _report_rows(rows: list[Row], report: Report) -> None:
    for row in rows:
        report(int(row["epoch"]), **{name: value for name, value in row.items() if name != "epoch"})


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that is still running, with all processes that it has started."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _last_line(folder: Path) -> str:
    with (folder / OUTPUT).open(errors="replace") as output:
        lines = deque((line for line in output if line.strip()), maxlen=1)
    return one_line(lines[0]) if lines else "it printed nothing"
