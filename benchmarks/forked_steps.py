"""Steps that share a few minutes of a machine: each in a process of its own, recorded at once, resumable.

A step that fails, hangs or leaves the device unusable ends by itself; what it had found until then is kept,
and the others go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Found = dict[str, Any]

# Seconds of the budget that are kept for the tables.
_GRACE = 2.0


class NotHere(Exception):
    """A step cannot be run here, for a reason that is no fault of it."""


@dataclass
class Here:
    """What a step knows of the others."""

    deadline: float
    """Of time.monotonic(), when the step is stopped."""
    budget_ends: float
    """Of time.monotonic(), when the time of all steps is over."""
    found: dict[str, Found] = field(default_factory=dict)
    """What each earlier step has found."""

    def left(self) -> float:
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Step:
    """One measurement."""

    name: str
    function: Callable[[Here], Iterator[Found]]
    """Yields what it finds as it finds it; later values of a key replace earlier ones."""
    limit: float
    """Seconds after which it is stopped."""
    needs: float
    """Seconds without which it is not begun."""
    prediction: str = ""
    """What was expected of it before it was run."""


@dataclass
class Result:
    """How a step ended, a line of the record."""

    step: str
    ended: str
    """ok, failed, stopped (at its limit) or skipped."""
    seconds: float = 0.0
    found: Found = field(default_factory=dict)
    why: str = ""
    """Of an end that is not ok."""
    prediction: str = ""


def read_record(path: Path) -> dict[str, Result]:
    """Return the last result of each step; a line that a kill has cut short is no line."""
    results: dict[str, Result] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                result = Result(**json.loads(line))
                results[result.step] = result
    return results


def append(path: Path, result: Result) -> None:
    """Add a line to the record, and have it on the disk."""
    line = json.dumps(vars(result), default=float) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # a line that a kill has cut short
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def run_steps(
    steps: list[Step],
    record: Path,
    *,
    ends: float,
    done: Mapping[str, Result] | None = None,
) -> dict[str, Result]:
    """Run the steps in their order and append each to ``record``.

    Args:
        steps: to run.
        record: the file.
        ends: of time.monotonic(), when the time of all is over. A step that no longer fits is skipped.
        done: results of an earlier call; steps that ended well there are not run again.

    Returns:
        The results of all steps, those of ``done`` among them.
    """
    results = dict(done or {})
    for step in steps:
        if step.name in results and results[step.name].ended == "ok":
            print(f"{step.name}: done before", flush=True)
            continue
        left = ends - time.monotonic() - _GRACE
        if left < step.needs:
            why = f"needs {step.needs:.0f} s, {max(left, 0):.0f} s are left"
            result = Result(step.name, "skipped", why=why, prediction=step.prediction)
        else:
            found = {name: one.found for name, one in results.items()}
            limit = min(step.limit, left)
            result = run_step(step, Here(time.monotonic() + limit, ends, found))
        append(record, result)
        # An earlier try may have found something before it was stopped.
        if result.ended != "skipped" or step.name not in results:
            results[step.name] = result
        why = f": {result.why.splitlines()[-1]}" if result.why else ""
        print(f"{step.name}: {result.ended} in {result.seconds:.1f} s{why}", flush=True)
    return results


def run_step(step: Step, here: Here) -> Result:
    """Run a step in a process of its own, and stop it with all that it has started at its deadline."""
    result, began = Result(step.name, "failed", prediction=step.prediction), time.monotonic()
    child = Child(lambda: step.function(here), own_group=True)
    try:
        for message in child.messages(here.deadline):
            if "found" in message:
                result.found.update(message["found"])
            else:
                result.ended, result.why = message["ended"], message.get("why", "")
        if child.timed_out:
            result.ended = "stopped"
            result.why = f"stopped after {time.monotonic() - began:.0f} s"
    finally:
        died = child.end()
    if result.ended == "failed" and not result.why:
        result.why = died
    result.seconds = round(time.monotonic() - began, 1)
    return result


class Child:
    """A fork of this process that yields what it finds through a pipe.

    Args:
        function: what it runs.
        own_group: make it the leader of a process group, which :meth:`end` kills.
    """

    def __init__(self, function: Callable[[], Iterator[Found]], *, own_group: bool) -> None:
        read, write = os.pipe()
        sys.stdout.flush()
        self.own_group, self.timed_out, self.file = (
            own_group,
            False,
            os.fdopen(read, "rb", buffering=0),
        )
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            if own_group:
                os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _run(function, write)
        os.close(write)

    def messages(self, deadline: float) -> Iterator[Any]:
        """Yield what the process sends, until its last message, its death or the deadline."""
        text = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.file], [], [], left)[0]:
                self.timed_out = True
                return
            part = self.file.read(1 << 16)
            if not part:
                return
            *lines, text = (text + part).split(b"\n")
            for line in lines:
                message = json.loads(line)
                yield message
                if "ended" in message:
                    return

    def end(self) -> str:
        """End the process, if it has not, and return how it ended."""
        self.file.close()
        # One that has sent its last message is about to exit; what it started may not be.
        try:
            (os.killpg if self.own_group else os.kill)(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # killed before it had its group
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return f"died of signal {-status}" if status < 0 else f"died with code {status}"


def _run(function: Callable[[], Iterator[Found]], write: int) -> None:
    """Send what ``function`` finds and how it ended, and leave without the parent's cleanup."""
    code = 1
    try:
        with os.fdopen(write, "w") as file:

            def send(**message: Any) -> None:
                file.write(json.dumps(message, default=float) + "\n")
                file.flush()

            try:
                last = {"ended": "ok"}
                for found in function():
                    send(found=found)
            except NotHere as reason:
                last = {"ended": "skipped", "why": str(reason)}
            except BaseException as error:
                traceback.print_exc()
                where = "".join(traceback.format_exception(error)[-4:])[-1500:]
                last = {"ended": "failed", "why": where}
            # First: whoever reads the last message kills what is left of the step.
            sys.stdout.flush()
            sys.stderr.flush()
            send(**last)
        code = 0
    finally:
        os._exit(code)


def side_by_side(
    functions: Mapping[str, Callable[[], Found]], here: Here, at_once: int
) -> Iterator[tuple[str, Found]]:
    """Run functions in forks of a step's process, ``at_once`` at a time, and yield what each has returned.

    One that fails yields its error, under ``error``; the step's limit stops them all. To be called before the
    step touches the device.
    """
    waiting = list(functions.items())
    running: dict[str, Child] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, function = waiting.pop(0)
                running[name] = Child(_once(function), own_group=False)
            ready, _, _ = select.select(
                [c.file for c in running.values()], [], [], max(0.0, here.left())
            )
            if not ready:
                return
            for name, child in list(running.items()):
                if child.file in ready:
                    found: Found = {}
                    for message in child.messages(here.deadline):
                        found |= message.get("found", {})
                        if message.get("why"):
                            found["error"] = message["why"].strip().splitlines()[-1]
                    died = running.pop(name).end()
                    yield name, found or {"error": died}
    finally:
        for child in running.values():
            child.end()


def _once(function: Callable[[], Found]) -> Callable[[], Iterator[Found]]:
    return lambda: iter([function()])
