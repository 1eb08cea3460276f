"""Signals that end a run, kept away from the middle of what a worker says to its storage.

An exception out of a signal handler may come between any two steps of a database's driver, and leave a
connection of which nobody knows any more what it is doing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_put_off: list[Callable[[], None]] = []
_talking = False


def interrupt(action: Callable[[], None]) -> None:
    """Do ``action``, which may raise, for a signal handler: now, or when the storage has answered."""
    if _talking:
        _put_off.append(action)
    else:
        action()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off what signals ask for to the end of the block."""
    global _talking
    # Handlers run in the main thread alone.
    if _talking or threading.current_thread() is not threading.main_thread():
        yield
        return
    _talking = True
    try:
        yield
    finally:
        _talking = False
        while _put_off:
            _put_off.pop(0)()
