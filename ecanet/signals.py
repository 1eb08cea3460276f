"""SIGTERM and Ctrl-C: noted when they come, obeyed where nothing is half done.

An exception out of a signal handler may come anywhere: inside a destructor, where Python prints and
forgets it, or between two steps of a database's driver, whose connection is then good for nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ecanet.errors import Preempted

# Seconds within which a second Ctrl-C counts as the first: launchers pass on what the terminal has
# already sent to the whole group.
_ECHO = 1.0

_listening = False
_asked, _since = 0, 0.0
_obeyed = False


@contextmanager
def noted() -> Iterator[None]:
    """Note SIGTERM and Ctrl-C for as long as the block lasts; :func:`obey` acts on them.

    What came too late to be obeyed inside is obeyed at the block's end. Blocks may be nested; only
    the main thread can listen, in others a block does nothing.

    Raises:
        Preempted: SIGTERM came.
        KeyboardInterrupt: Ctrl-C came. Pressed again, it is raised at once, wherever the program is.
    """
    global _listening, _asked, _obeyed
    if _listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, _note) for number in numbers}
    _listening, _asked, _obeyed = True, 0, False
    try:
        yield
        obey()
    finally:
        _listening, _asked = False, 0
        for number, handler in before.items():
            signal.signal(number, handler)


def asked() -> int:
    """Return the signal that has come and was not obeyed yet, or 0."""
    return 0 if _obeyed else _asked


def obey(number: int | None = None) -> None:
    """Stop, once, if a signal asks for it: to be called where the program may stop.

    Args:
        number: the signal; by default the one that has come, if this is the main thread.

    Raises:
        Preempted: for SIGTERM.
        KeyboardInterrupt: for SIGINT.
    """
    global _obeyed
    if number is None:
        number = asked() if threading.current_thread() is threading.main_thread() else 0
    if not number:
        return
    _obeyed = True
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Preempted


def stop_without(parent: int, number: int, seconds: float) -> None:
    """Watch from a thread that the ``parent`` lives; end this process once it does not.

    A process whose parent was killed must not go on in a folder that others may take.

    Args:
        number: the signal that asks this process to stop.
        seconds: that it has for it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), number)
        time.sleep(seconds)
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def _note(number: int, frame: object) -> None:
    global _asked, _since
    now = time.monotonic()
    if not _asked:
        _asked, _since = number, now
    elif number == signal.SIGINT and now - _since > _ECHO:
        raise KeyboardInterrupt
