"""Deferred SIGTERM and SIGINT: recorded by the handler, raised at safe points.

An exception raised in a signal handler may surface anywhere: inside a destructor, where Python prints and
drops it, or in the middle of a database driver's call, whose connection is then unusable.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ecanet.errors import Preempted

# Launchers forward the Ctrl-C that the terminal has already sent to the whole process group: within this
# many seconds a second one counts as the first.
_ECHO_SECONDS = 1.0

_active = False
_received = 0
_received_at = 0.0
_raised = False


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Record SIGTERM and SIGINT for the duration of the block; :func:`raise_pending` raises them.

    A signal that is still pending at the end of the block is raised there. Blocks may be nested. Only the
    main thread can handle signals; in other threads the block does nothing.

    Raises:
        Preempted: SIGTERM was received.
        KeyboardInterrupt: SIGINT was received. A second Ctrl-C is raised immediately.
    """
    global _active, _received, _raised
    if _active or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, _record) for number in numbers}
    _active, _received, _raised = True, 0, False
    try:
        yield
        raise_pending()
    finally:
        _active, _received = False, 0
        for number, handler in before.items():
            signal.signal(number, handler)


def pending() -> int:
    """Return the signal that was received and not raised yet, or 0."""
    return 0 if _raised else _received


def raise_pending(number: int | None = None) -> None:
    """Raise the pending signal, once; to be called where the program may stop.

    Args:
        number: the signal; by default the pending one, if this is the main thread.

    Raises:
        Preempted: for SIGTERM.
        KeyboardInterrupt: for SIGINT.
    """
    global _raised
    if number is None:
        number = pending() if threading.current_thread() is threading.main_thread() else 0
    if not number:
        return
    _raised = True
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Preempted


def exit_with_parent(parent: int, number: int, seconds: float) -> None:
    """Start a thread that ends this process when its ``parent`` has ended.

    An orphan must not keep training in a folder that another process may claim.

    Args:
        parent: process ID.
        number: the signal that this process then sends itself.
        seconds: after which it exits regardless.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), number)
        time.sleep(seconds)
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def _record(number: int, frame: object) -> None:
    global _received, _received_at
    now = time.monotonic()
    if not _received:
        _received, _received_at = number, now
    elif number == signal.SIGINT and now - _received_at > _ECHO_SECONDS:
        raise KeyboardInterrupt
