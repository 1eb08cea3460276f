"""Thousands of broken files through the real commands: what must never happen, whatever they hold.

``python tests/fuzzing.py --files 20000`` changes good files at random (bits, cuts, headers, numbers, types,
nesting, keys), gives each to a command in a forked process, and watches for tracebacks, crashes, files
written elsewhere, requests, programs started, more than 1 GB of memory and more than ten seconds. A case
that fails is run again by itself, and its folder is kept: ``--replay FOLDER`` runs it once more.

The same seed and number give the same file. The kinds of files are in ``fuzz_kinds.py``; their commands
end in milliseconds, so that a child runs a batch of them before it is replaced.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import io
import json
import math
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_kinds import CALLS, KINDS
from helpers import isolated

BATCH = 50
MOST_SECONDS = 10.0
MOST_MEMORY = 2**30
"""Bytes that a case may add to those of the imports."""
_ADDRESS_SPACE = 3 * 2**30


@dataclass
class Outcome:
    """What became of a case."""

    kind: str
    number: int
    fault: str = ""
    """Why it failed; empty: it was refused or done as it should."""
    what: str = "done"
    """done, refused, or failed."""
    where: str = ""
    """The innermost line of ecanet in the traceback, or the last line of the output."""
    seconds: float = 0.0
    memory: int = 0


@dataclass
class _Child:
    pid: int
    pipe: int
    slot: int
    batch: list[tuple[int, int]]
    alone: bool
    text: bytes = b""
    since: float = field(default_factory=time.monotonic)


class Fuzzer:
    """Gives the cases of all kinds to forked children, and keeps those that fail.

    Args:
        out: folder for the corpus, the children's work and ``failures/``.
        seed: of the cases.
        names: of the kinds; all by default.
    """

    def __init__(self, out: Path, seed: int = 0, names: list[str] | None = None) -> None:
        self.out, self.seed = out.resolve(), seed
        (self.out / "work").mkdir(parents=True, exist_ok=True)
        chosen = [kind for kind in KINDS if not names or kind.name in names]
        self.kinds = [kind(self.out / "corpus" / kind.name) for kind in chosen]
        self.outcomes: list[Outcome] = []
        self.again: list[tuple[int, int]] = []

    def run(self, files: int, seconds: float = math.inf, jobs: int = 1) -> list[Outcome]:
        """Run so many files, or as many as the time allows, and return what became of them."""
        began = time.monotonic()
        batches = self._batches(files)
        children: dict[int, _Child] = {}
        free = list(range(jobs))
        while True:
            while free:
                if self.again:
                    child = self._start([self.again.pop()], free.pop(), alone=True)
                elif time.monotonic() - began < seconds and (batch := next(batches, None)):
                    child = self._start(batch, free.pop(), alone=False)
                else:
                    break
                children[child.pipe] = child
            if not children:
                return self.outcomes
            ready, _, _ = select.select(list(children), [], [], 0.2)
            for pipe in list(children):
                child = children[pipe]
                if pipe in ready:
                    more = os.read(pipe, 1 << 20)
                    self._take(child, more)
                    if more:
                        continue
                elif time.monotonic() - child.since <= MOST_SECONDS:
                    continue
                free.append(child.slot)
                del children[pipe]
                self._end(child, batches)

    def _batches(self, files: int) -> Iterator[list[tuple[int, int]]]:
        made = [0] * len(self.kinds)
        while sum(made) < files:
            for kind in range(len(self.kinds)):
                count = min(BATCH, files - sum(made))
                if count:
                    yield [(kind, made[kind] + i) for i in range(count)]
                made[kind] += count

    def _start(self, batch: list[tuple[int, int]], slot: int, alone: bool) -> _Child:
        ours, theirs = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            try:
                self._work(batch, slot, theirs)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(0)
        os.close(theirs)
        return _Child(pid, ours, slot, list(batch), alone)

    def _take(self, child: _Child, text: bytes) -> None:
        *lines, child.text = (child.text + text).split(b"\n")
        for line in lines:
            child.since = time.monotonic()
            told = json.loads(line)
            child.batch.pop(0)
            self._judge(child, Outcome(**told))

    def _judge(self, child: _Child, outcome: Outcome) -> None:
        if outcome.fault and not child.alone:
            # By itself: what came before it in its batch may have had a part in it.
            kind = next(i for i, k in enumerate(self.kinds) if k.name == outcome.kind)
            self.again.append((kind, outcome.number))
            return
        self.outcomes.append(outcome)
        place = self._place(child.slot, outcome)
        if outcome.fault:
            keep = self.out / "failures" / place.name
            shutil.rmtree(keep, ignore_errors=True)
            keep.parent.mkdir(exist_ok=True)
            place.rename(keep)
            (keep / "fault.txt").write_text(f"{outcome.fault}\n{outcome.where}\n")

    def _place(self, slot: int, outcome: Outcome) -> Path:
        return self.out / "work" / str(slot) / f"{outcome.kind}-{outcome.number}"

    def _end(self, child: _Child, batches: Iterator[list[tuple[int, int]]]) -> None:
        """Bury a child that has ended or hangs; the rest of its batch is run by another."""
        late = time.monotonic() - child.since > MOST_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        os.close(child.pipe)
        if not child.batch:
            return
        kind, number = child.batch.pop(0)
        fault = f"more than {MOST_SECONDS:.0f} s" if late else f"the process ended: {status}"
        name, seconds = self.kinds[kind].name, MOST_SECONDS * late
        self._judge(child, Outcome(name, number, fault, "failed", seconds=seconds))
        self.again += child.batch

    def _work(self, batch: list[tuple[int, int]], slot: int, pipe: int) -> None:
        os.setsid()
        root = self.out / "work" / str(slot)
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        watch = _Watch(root)
        for kind, number in batch:
            one = Outcome(self.kinds[kind].name, number)
            place = self._place(slot, one)
            place.mkdir()
            os.environ["ECANET_CACHE"] = str(place / "cache")
            rng = random.Random(f"{self.seed} {one.kind} {number}")
            try:
                command = self.kinds[kind].write(rng, place)
                (place / "command.json").write_text(json.dumps(command))
            except Exception:  # what the kind calls has another name by now
                one.what, one.fault = "failed", "cannot be made"
                one.where = _innermost(traceback.format_exc())
            else:
                watch.judge(one, place, command)
            os.write(pipe, json.dumps(vars(one)).encode() + b"\n")
            os.chdir(root)
            if not one.fault:
                shutil.rmtree(place, ignore_errors=True)


class _Watch:
    """What a child uses to run commands and see what they do; made once in it."""

    def __init__(self, root: Path) -> None:
        self.files = {name: root / f"{name}.txt" for name in ("out", "err", "events")}
        # Compiled into the user's cache at first use, which is no harm: before there is another home.
        importlib.import_module("ecanet.attention.cpu_kernels").available()
        os.environ.update(HOME=str(root), TMPDIR=str(root), TORCH_HOME=str(root), HF_HOME=str(root))
        self.root = root
        self.handles = {
            name: os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            for name, file in self.files.items()
        }
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(self.handles["out"], 1)
        os.dup2(self.handles["err"], 2)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), line_buffering=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESS_SPACE,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        isolated._audit(self.handles["events"])

    def judge(self, one: Outcome, place: Path, command: list[str]) -> None:
        """Run the command in ``place``, and say in ``one`` what was wrong with that."""
        os.chdir(place)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        for handle in self.handles.values():
            os.ftruncate(handle, 0)
        before = _memory("VmRSS")
        began = time.monotonic()
        code, text = _run(command)
        one.seconds = time.monotonic() - began
        one.memory = max(0, _memory("VmHWM") - before)
        err = self.files["err"].read_text(errors="replace")
        lines = err.strip().splitlines() or [""]
        one.what = {0: "done", 2: "refused"}.get(code, "failed")
        one.where = lines[-1][:300]
        one.fault = self._fault(one, place, code, text, err)
        if text:
            one.where = _innermost(text)
        if one.fault:
            one.what = "failed"
            (place / "err.txt").write_text(err + text, errors="backslashreplace")

    def _fault(self, one: Outcome, place: Path, code: int, text: str, err: str) -> str:
        if text:
            return "traceback"
        # 1: `ecanet predict` has named files that it could not read, and predicted the others.
        if code not in (0, 2) and not (code == 1 and " could not be read; " in err):
            return f"exit code {code}"
        if "Traceback (most" in err:
            return "traceback in the output"
        if code == 2 and not err.strip().splitlines()[-1:]:
            return "exit code 2 without a word"
        if re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", err):
            return "control characters in the output"
        if one.memory > MOST_MEMORY:
            return f"{one.memory >> 20} MB"
        for event in self.files["events"].read_text(errors="replace").splitlines():
            kind, value = json.loads(event)
            inside = value.startswith((str(place), "/dev/", str(self.root)))
            # git and uname: which commit and machine this is. fc-list: matplotlib lists the fonts once.
            if kind == "started" and value in ("git", "uname", "fc-list"):
                continue
            if kind != "wrote" or not inside:
                return f"{kind} {value[:200]}"
        return ""


def _run(command: list[str]) -> tuple[int, str]:
    """Run one command in this process; return its exit code and, of a defect, the traceback."""
    from ecanet.cli.main import main
    from ecanet.cli.output import fail
    from ecanet.errors import UserError

    variables = dict(os.environ)
    try:
        while command and "=" in command[0]:
            name, _, value = command[0].partition("=")
            os.environ[name] = value
            command = command[1:]
        if command and command[0] == "call":
            CALLS[command[1]]()
            return 0, ""
        main(command)
    except SystemExit as end:
        return int(end.code or 0), ""
    except UserError as error:
        fail(str(error))
        return 2, ""
    except BaseException:
        return 1, traceback.format_exc()
    finally:
        os.environ.clear()
        os.environ.update(variables)


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _innermost(text: str) -> str:
    """Return ``models/weights.py:31 load_weights KeyError: …`` of a traceback."""
    frames = re.findall(r'File "[^"]*/ecanet/([^"]+)", line (\d+), in (\w+)', text)
    place = "{}:{} {}".format(*frames[-1]) if frames else "?"
    return f"{place} {text.strip().splitlines()[-1][:200]}"


def summary(outcomes: list[Outcome]) -> str:
    """Return a table of outcomes by kind, and the failures by the place in ecanet they come from."""
    lines = [
        f"{'kind':12} {'files':>6} {'done':>6} {'refused':>8} {'failed':>7} {'ms':>6} {'MB':>6}"
    ]
    kinds = collections.defaultdict(list)
    for one in outcomes:
        kinds[one.kind].append(one)
    for kind, found in kinds.items():
        counts = collections.Counter(one.what for one in found)
        milliseconds = 1000 * sum(one.seconds for one in found) / len(found)
        lines.append(
            f"{kind:12} {len(found):6} {counts['done']:6} {counts['refused']:8} "
            f"{counts['failed']:7} {milliseconds:6.0f} {max(one.memory for one in found) >> 20:6}"
        )
    failures = collections.defaultdict(list)
    for one in outcomes:
        if one.fault:
            fault = re.sub(r"\d+ MB", "memory", one.fault)[:80]
            where = re.sub(r"\d{2,}|'[^']*'", "…", one.where)[:110]
            failures[one.kind, fault, where].append(one)
    for (kind, fault, where), found in sorted(failures.items(), key=lambda item: -len(item[1])):
        kept = f"failures/{kind}-{found[0].number}"
        lines.append(f"{len(found):5} x {kind}: {fault}: {where} ({kept})")
    return "\n".join(lines)


def replay(folder: Path) -> None:
    """Run a kept case once more, in this process; what it prints is printed."""
    command = json.loads((folder / "command.json").read_text())
    print("ecanet", *command, flush=True)
    os.environ["ECANET_CACHE"] = str(folder.resolve() / "cache")
    os.chdir(folder)
    code, text = _run(command)
    print(f"exit code {code}", text, sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=[kind.name for kind in KINDS])
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--replay", type=Path)
    flags = parser.parse_args()
    if flags.replay:
        replay(flags.replay)
        return 0
    import torch

    torch.set_num_threads(1)
    for name in isolated.PRELOAD:
        importlib.import_module(name)
    began = time.monotonic()
    fuzzer = Fuzzer(flags.out, flags.seed, flags.kinds)
    outcomes = fuzzer.run(flags.files, flags.seconds, flags.jobs)
    print(summary(outcomes))
    failed = sum(bool(one.fault) for one in outcomes)
    print(f"{len(outcomes)} files, {failed} failures, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
