"""What a command shows while it works: a view that is redrawn on a terminal, lines everywhere else."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ecanet.activity import Activity, activities, watching
from ecanet.cli.output import shows_to_parent
from ecanet.errors import UserError, duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ecanet.experiments.study.progress import StudyProgress
    from ecanet.experiments.study.study import Study

log = logging.getLogger(__name__)

SILENCE = 60.0  # s without a line after which one says how far the command is, without a terminal
_REDRAW = 0.5  # s between two views
_READ = 2.0  # s between two readings of a study's database
_STALE = 15.0  # s without an answer of the database from which on the view says so
_LASTING = 1.0  # s for which an activity lasts before it is shown
_ANNOUNCED = 10.0  # s for which one lasts before it gets its line, without a terminal

# Held while the screen is drawn: a process that is forked meanwhile, such as a reader of images, would find
# rich's own locks taken for ever.
_DRAWING = threading.RLock()


@contextmanager
def shown() -> Iterator[None]:
    """Show what takes long while the body runs."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    with ExitStack() as stack:
        display: list[_Display] = []

        def changed() -> None:
            # The first of a run's processes speaks for all, and a worker's parent for its workers.
            quiet = not logging.getLogger("ecanet").isEnabledFor(logging.INFO)
            if not display and not quiet and not shows_to_parent():
                display.append(_Display())
                stack.enter_context(display[0])
            if display and not activities():
                display[0].clear()

        if rank != "0":
            yield
            return
        with watching(changed):
            yield


class _Display:
    """Shows the activities of this process from a thread, until it is closed."""

    def __init__(self) -> None:
        from rich.console import Console

        self.screen = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.is_live = self.screen.is_terminal and not self.screen.is_dumb_terminal
        self.closed = threading.Event()
        self.studies = _Studies()
        self.last_line = _LastLine()
        self.announced: list[Activity] = []
        self.live: Any = None

    def __enter__(self) -> _Display:
        if self.is_live:
            _guard_forks()
        else:
            logging.getLogger("ecanet").addHandler(self.last_line)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.thread.join()
        self.clear()
        self.studies.close()
        logging.getLogger("ecanet").removeHandler(self.last_line)

    def clear(self) -> None:
        """Remove the view from the screen: what is printed next is a result."""
        with _DRAWING:
            if self.live is not None:
                self.live.stop()
                self.live = None

    def _run(self) -> None:
        while not self.closed.wait(_REDRAW):
            self._draw() if self.is_live else self._write_line()

    def _draw(self) -> None:
        from rich.console import Group
        from rich.live import Live

        stack = [one for one in activities() if one.at_once or one.seconds() >= _LASTING]
        if not stack:
            return
        width, height = self.screen.size
        lines = self._lines(stack, width, height - 1)
        with _DRAWING:
            if not activities():
                return
            if self.live is None:
                # Standard output is for results.
                self.live = Live(
                    console=self.screen, auto_refresh=False, transient=True, redirect_stdout=False
                )
                self.live.start()
            self.live.update(Group(*lines), refresh=True)

    def _lines(self, stack: Sequence[Activity], width: int, height: int) -> list[RenderableType]:
        from ecanet.cli.progress import activity_view, study_view

        # Before a study's runs, and while its report is written, nothing else is to be seen.
        lines = activity_view([one for one in stack if not one.studies], width)[-height:]
        working = next((one for one in stack if one.studies), None)
        found = self.studies.read(working.studies) if working else None
        if working is None or found is None:
            return lines
        names = _names(working.studies)
        if found.age() > _STALE:
            text = f"the study's database has not answered for {duration(found.age())}"
            lines = [_cut(text, width), *lines]
        if lines:
            lines = ["", *lines]
        room = height - len(lines)
        return [*study_view(found.now, names, width=width, height=room, bar=True), *lines]

    def _write_line(self) -> None:
        from ecanet.cli.progress import activity_line, study_line

        stack = activities()
        if not stack:
            return
        innermost = stack[-1]
        silent = time.monotonic() - self.last_line.at >= SILENCE
        new = innermost.seconds() >= _ANNOUNCED and not innermost.at_once
        if not silent and (not new or innermost in self.announced):
            return
        if new:
            self.announced.append(innermost)
        working = next((one for one in stack if one.studies), None)
        if working is None:
            line = activity_line(stack)
            # What the command itself has just logged is announced.
            if silent or line != self.last_line.text:
                log.info("%s", line)
            return
        found = self.studies.read(working.studies)
        own = [one for one in stack if not one.studies and one.unit != "epochs"]
        parts = [study_line(found.now)] if found is not None else []
        if line := "; ".join([*parts, *([activity_line(own)] if own else [])]):
            log.info("%s", line)


def _cut(text: str, width: int) -> RenderableType:
    from rich.text import Text

    line = Text(text, style="yellow")
    line.truncate(width, overflow="ellipsis")
    return line


def _names(studies: Sequence[Study]) -> list[str]:
    return [study.folder.name for study in studies] if len(studies) > 1 else []


class _Reading:
    """What a study's database said, and when."""

    def __init__(self, now: list[StudyProgress]) -> None:
        self.now, self.at = now, time.monotonic()

    def age(self) -> float:
        return time.monotonic() - self.at


class _Studies:
    """Reads how far studies are, in a thread of its own: a database that does not answer stops no view."""

    def __init__(self) -> None:
        self.wanted: Sequence[Study] = ()
        self.found: _Reading | None = None
        self.closed, self.asked = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def read(self, studies: Sequence[Study]) -> _Reading | None:
        """Return the last reading of these studies; None if there is none yet."""
        if self.wanted is not studies:
            self.wanted, self.found = studies, None
            self.asked.set()
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()
        return self.found

    def close(self) -> None:
        self.closed.set()
        self.asked.set()
        if self.thread is not None:
            # One that waits for its database is left behind.
            self.thread.join(timeout=1.0)

    def _run(self) -> None:
        from ecanet.experiments.study.progress import progress
        from ecanet.experiments.study.study import load_study

        while not self.closed.is_set():
            self.asked.clear()
            wanted = self.wanted
            # What is wrong with a study is reported by who works on it.
            with suppress(UserError):
                now = []
                for study in wanted:
                    # Connections are not shared by threads.
                    own = load_study(study.location, "read")
                    now.append(progress(own))
                    own.queue.engine.dispose()
                if wanted is self.wanted:
                    self.found = _Reading(now)
            self.asked.wait(_READ)


class _LastLine(logging.Handler):
    """Knows which line was logged last, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.at, self.text = time.monotonic(), ""

    def emit(self, record: logging.LogRecord) -> None:
        self.at, self.text = time.monotonic(), record.getMessage()


_forks_are_guarded = False


def _guard_forks() -> None:
    """Let no process be forked while the screen is drawn, and let none that is draw."""
    global _forks_are_guarded
    if _forks_are_guarded or not hasattr(os, "register_at_fork"):
        return
    _forks_are_guarded = True

    def in_child() -> None:
        sys.stderr = sys.__stderr__
        _DRAWING.release()

    os.register_at_fork(
        before=_DRAWING.acquire, after_in_parent=_DRAWING.release, after_in_child=in_child
    )
