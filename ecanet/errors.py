"""What the user can put right: shown as one line, exit code 2."""

from __future__ import annotations

import difflib
import errno
import signal
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Input that cannot be used. The message is one line and says what to do about it."""


class Preempted(Exception):
    """SIGTERM came, and the run was saved before it stopped: it can be started again as it was."""


class ProcessLost(RuntimeError):
    """One of a run's processes failed, or was killed."""


def at_least(low: int, **settings: int | None) -> None:
    """Refuse settings below ``low``, in the words of their flags; None is none.

    Raises:
        UserError: one line that names the flag and what it takes.
    """
    for name, value in settings.items():
        if value is not None and value < low:
            raise UserError(f"--{name} {value}: give a whole number from {low}")


def first_of(names: Sequence[str], count: int) -> str:
    """Return the first ``count`` of ``names``, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return ``" Did you mean a, b?"`` with the nearest of ``known``, or all of them if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if near:
        return f" Did you mean {', '.join(near)}?"
    return f" Known: {', '.join(known)}."


def disk_is_full(error: BaseException) -> bool:
    """Whether the error, raised by the system or by SQLite, means that a write found no space."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "disk is full" in str(error)


def reader_was_lost(error: BaseException) -> bool:
    """Whether the error, which torch may raise anywhere, means that a DataLoader's process has ended."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def how_it_ended(code: int) -> str:
    """Return in words how a process ended, given its exit code, or minus the signal that ended it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    # The system kills so when memory runs out.
    return f"was killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
