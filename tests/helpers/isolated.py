"""Run commands of ecanet as processes of their own that record what they touch.

A server imports everything once and forks for each command, so that a command costs milliseconds and not
the seconds of its imports. The process records, by Python's audit events, which files it opened for
writing, removed or renamed, which addresses it contacted and which programs it started. Native code is
not audited: what libpq contacts is seen by a listening socket only.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a command may allocate beyond the imports before the system refuses it: it protects the machine
# that runs the tests. The tests themselves compare `Result.memory`.
_ADDRESS_SPACE = 6 * 2**30
PRELOAD = (
    "torchvision", "timm", "sklearn.datasets", "safetensors.torch", "pandas", "optuna",
    "ecanet.cli.main", "ecanet.cli.options", "ecanet.cli.compare", "ecanet.cli.train",
    "ecanet.cli.evaluate", "ecanet.cli.convert", "ecanet.cli.worker", "ecanet.cli.study",
    "ecanet.models", "ecanet.experiments.compare", "ecanet.experiments.sweep",
    "ecanet.detection.task", "ecanet.detection.predict.predict", "ecanet.training.classification",
)  # fmt: skip


@dataclass
class Result:
    """What one command did."""

    code: int
    """Exit code; negative: the signal that ended it, -9 also when it ran out of time."""
    out: str
    err: str
    seconds: float
    memory: int
    """Peak resident bytes, the imports included."""
    wrote: list[str]
    """Absolute paths that were opened for writing, made, removed or renamed."""
    contacted: list[str]
    """Hosts that were looked up or connected to."""
    started: list[str]
    """Programs that were started."""

    def wrote_outside(self, *folders: Path) -> list[str]:
        """Return what was written elsewhere than in ``folders``, devices left out."""
        inside = [str(folder.resolve()) for folder in folders]
        return [
            path
            for path in self.wrote
            if not path.startswith("/dev/")
            and not any(path == folder or path.startswith(folder + "/") for folder in inside)
        ]

    def is_one_line(self) -> bool:
        """Whether the command refused its input as it should: one line, code 2, no traceback."""
        last = self.err.strip().rpartition("\n")[2]
        return self.code == 2 and last.startswith("ecanet") and "Traceback" not in self.err


class Isolated:
    """Start the server; a context manager."""

    def __init__(self) -> None:
        here = Path(__file__).resolve()
        path = [str(here.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._server = subprocess.Popen(
            [sys.executable, str(here)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(path),
                # What a command imports first would be compiled into the source tree: not its own writing.
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        # Processes that the tests have forked may hold its input open.
        self._server.terminate()
        self._server.wait()

    def run(
        self,
        *arguments: object,
        folder: Path,
        env: dict[str, str] | None = None,
        timeout: float = 120,
    ) -> Result:
        """Run ``ecanet ARGUMENTS`` in ``folder``, without standard input.

        Args:
            arguments: of the command, turned into strings.
            folder: the working directory; HOME, TMPDIR and the cache are in its sibling
                ``FOLDER.home``.
            env: variables on top of the test's.
            timeout: seconds after which the command is killed.
        """
        return self._ask({"argv": [str(a) for a in arguments]}, folder, env, timeout)

    def call(
        self, code: str, folder: Path, timeout: float = 120, env: dict[str, str] | None = None
    ) -> Result:
        """Run a piece of Python in the same way; what raises ends with code 1 and a traceback."""
        return self._ask({"python": code}, folder, env, timeout)

    def _ask(
        self, what: dict[str, Any], folder: Path, env: dict[str, str] | None, timeout: float
    ) -> Result:
        home = folder.with_name(folder.name + ".home")
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        variables = {
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            "ECANET_CACHE": str(home / "cache"),
            "TORCH_HOME": str(home / "torch"),
            "HF_HOME": str(home / "huggingface"),
            **(env or {}),
        }
        request = {**what, "folder": str(folder), "env": variables, "timeout": timeout}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Result(**json.loads(self._server.stdout.readline()))


def _serve() -> None:
    """Answer one request a line on standard output."""
    for name in PRELOAD:
        importlib.import_module(name)
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        os.write(answers, (json.dumps(_forked(request)) + "\n").encode())


def _forked(request: dict[str, Any]) -> dict[str, Any]:
    home = Path(request["env"]["HOME"])
    files = {name: home / f"{name}.txt" for name in ("out", "err", "events")}
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            _child(request, files)
        finally:
            os._exit(70)
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > request["timeout"]:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)
    seconds = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError):  # whatever the command started ends with it
        os.killpg(pid, signal.SIGKILL)
    events: dict[str, list[str]] = {"wrote": [], "contacted": [], "started": []}
    for event in files["events"].read_text(errors="replace").splitlines():
        kind, value = json.loads(event)
        if value not in events[kind]:
            events[kind].append(value)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": files["out"].read_text(errors="replace"),
        "err": files["err"].read_text(errors="replace"),
        "seconds": seconds,
        "memory": usage.ru_maxrss * 1024,
        **events,
    }


def _child(request: dict[str, Any], files: dict[str, Path]) -> None:
    os.setsid()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    events = os.open(files["events"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for number, name in ((0, os.devnull), (1, files["out"]), (2, files["err"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        handle = os.open(name, flags, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), line_buffering=True)
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), line_buffering=True, errors="backslashreplace"
    )
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _audit(events)
    code = 1
    try:
        if "python" in request:
            exec(compile(request["python"], "<call>", "exec"), {"__name__": "__main__"})
            code = 0
        else:
            from ecanet.cli.main import main

            main(request["argv"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _audit(log: int) -> None:
    def note(kind: str, value: object) -> None:
        os.write(log, (json.dumps([kind, os.fsdecode(value)]) + "\n").encode())  # type: ignore[arg-type]

    def path(value: Any) -> str:
        # An open file has been noted when it was opened.
        return (
            f"/dev/fd/{value}" if isinstance(value, int) else os.path.realpath(os.fsdecode(value))
        )

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            name, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if flags else 0
            if isinstance(name, (str, bytes, os.PathLike)) and (
                writes or any(letter in (mode or "") for letter in "wax+")
            ):
                note("wrote", path(name))
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.truncate"):
            note("wrote", path(arguments[0]))
        elif event in ("os.rename", "os.link", "shutil.move", "shutil.copyfile"):
            note("wrote", path(arguments[1]))
        elif event == "sqlite3.connect":
            note("wrote", f"sqlite:{os.fsdecode(arguments[0])}")
        elif event == "socket.connect":
            note("contacted", str(arguments[1]))
        elif event == "socket.getaddrinfo":
            note("contacted", str(arguments[0]))
        elif event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system"):
            note("started", str(arguments[0]))

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve()
