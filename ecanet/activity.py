"""What this process is doing and how far it is: written by what takes long, read by whoever shows it.

Activities nest: reading the images, training, in it an epoch, in that its validation. Whatever shows them
(``ecanet.cli.live`` on a terminal, a notebook) reads :func:`activities` from a thread of its own, so that the
work never waits for the screen.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Activity:
    """Something that takes long."""

    what: str
    """As in "decoding images"."""
    total: float | None = None
    unit: str = ""
    """What :attr:`total` and :attr:`done` count: "images", "epochs", "bytes"."""
    done: float = 0.0
    detail: str = ""
    """What else is known, such as the loss."""
    studies: Sequence[Any] = ()
    """Studies that are worked on, of :class:`ecanet.experiments.study.study.Study`: their databases hold
    how far they are."""
    at_once: bool = False
    """Whether it is shown from its first moment on, and not only once it has lasted."""
    began: float = field(default_factory=time.monotonic)
    first: float = 0.0
    """What was done when it began: by an earlier process."""

    def seconds(self) -> float:
        """Return for how long it has lasted."""
        return time.monotonic() - self.began

    def seconds_left(self) -> float | None:
        """Return about how long it will last; None where that is not known yet."""
        made, seconds = self.done - self.first, self.seconds()
        if self.total is None or made <= 0 or seconds < 1:
            return None
        return max(0.0, seconds * (self.total - self.done) / made)


_stack: list[Activity] = []
_watchers: list[Callable[[], None]] = []


@contextmanager
def activity(
    what: str,
    total: float | None = None,
    unit: str = "",
    *,
    done: float = 0.0,
    studies: Sequence[Any] = (),
    at_once: bool = False,
) -> Iterator[Activity]:
    """Announce what the body does; it sets ``done`` and ``detail`` of what is yielded as it proceeds.

    Args:
        what: as in "decoding images".
        total: of the things it goes through, if known.
        unit: what is counted.
        done: what is done already.
        studies: those that are worked on.
        at_once: whether to show it from the first moment on.
    """
    found = Activity(what, total, unit, done, studies=studies, at_once=at_once, first=done)
    # Those of other threads, such as readers, would appear and vanish in between.
    shown = threading.current_thread() is threading.main_thread()
    if shown:
        _stack.append(found)
        _tell()
    try:
        yield found
    finally:
        if shown:
            _stack.remove(found)
            _tell()


def activities() -> list[Activity]:
    """Return what the process is doing, the innermost last."""
    return list(_stack)


@contextmanager
def watching(call: Callable[[], None]) -> Iterator[None]:
    """Call ``call`` whenever an activity has begun or ended, while the body runs."""
    _watchers.append(call)
    try:
        yield
    finally:
        _watchers.remove(call)


def _tell() -> None:
    for call in _watchers:
        call()


def _forget() -> None:
    _stack.clear()
    _watchers.clear()


# A forked reader of images shows nothing.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
