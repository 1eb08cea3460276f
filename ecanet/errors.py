"""Errors that a user can fix (shown as one line, exit code 2), and helpers to word them."""

from __future__ import annotations

import difflib
import errno
import re
import reprlib
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxlong, _REPR.maxlist = 3, 80, 40, 8

# Names that one line lists; timm alone has over a thousand models.
_MOST_KNOWN = 200

# Control characters, lone surrogates (bytes of a name that are no UTF-8), and what turns the direction of
# writing round or breaks a line: U+061C, U+200E, U+200F, U+2028 to U+202E, U+2066 to U+2069.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class UserError(Exception):
    """Unusable input. The message is one line that says how to fix it."""


class Diverged(UserError):
    """Loss or gradients of a run stay not finite. The other runs of a study can go on."""


class Preempted(Exception):
    """The run received SIGTERM and saved its state before it stopped; it can be resumed."""


class ProcessLost(RuntimeError):
    """One of the processes of a run failed or was killed."""


def at_least(low: int, **settings: int | None) -> None:
    """Refuse settings below ``low``; None means not given.

    Raises:
        UserError: names the flag and the values it takes.
    """
    for name, value in settings.items():
        if value is not None and value < low:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {value}: give a whole number from {low}")


def first_of(names: Sequence[str], count: int, separator: str = ", ") -> str:
    """Return the first ``count`` of ``names``, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return separator.join(names[:count]) + more


def one_line(error: object, most: int | None = 200) -> str:
    """Return the text of an error, or any other, on one line of at most ``most`` characters."""
    return " ".join(str(error).split())[:most]


def capitalized(text: str) -> str:
    """Return text with its first letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


def uncapitalized(text: str) -> str:
    """Return text with its first letter in lower case, the rest as it is."""
    return text[:1].lower() + text[1:]


def counted(count: int, noun: str) -> str:
    """Return ``1 run`` or ``1,200 runs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format a duration, in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    """Return a share of 1 in percent, such as ``95 %`` and ``99.9 %``."""
    return f"{100 * share:.4g} %"


def listed(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def shown(value: object) -> str:
    """Return ``repr`` of a value that is refused, cut to a bounded length."""
    return _REPR.repr(value)


def visible(text: object, keep: str = "") -> str:
    r"""Return ``text`` with what steers a terminal written out: ``\x1b``, ``\n``, ``\u202e``.

    Args:
        text: anything that has a string.
        keep: characters that stay as they are.
    """
    return _UNSEEN.sub(lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], str(text))


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Turn whatever is raised inside ``with`` into a UserError that begins with ``what``.

    For code that can raise anything, such as attention modules of the user's own. A UserError passes
    unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {type(error).__name__}: {one_line(error)}") from error


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put ``prefix``, such as a file's name, before the message of a UserError raised inside ``with``."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return those of ``known`` that ``name`` may be a misspelling of, the closest first.

    With less in common, short names resemble anything: half the letters of ``foo`` are in ``coord``.
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def did_you_mean(
    name: str, known: Iterable[str], count: int = 3, *, listed: Iterable[str] | None = None
) -> str:
    """Return ``" Did you mean a, b?"`` with the closest of ``known``, or what is known if none is close.

    Args:
        listed: what is then listed in place of ``known``; nothing where it is empty.
    """
    known = sorted(set(known))
    if near := nearest(name, known, count):
        return f" Did you mean {', '.join(near)}?"
    shown_names = known if listed is None else sorted(listed)
    return f" Known: {first_of(shown_names, _MOST_KNOWN)}." if shown_names else ""


def disk_is_full(error: BaseException) -> bool:
    """Whether the error, raised by the operating system or SQLite, means that the disk is full."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "disk is full" in str(error)


def reader_was_lost(error: BaseException) -> bool:
    """Whether the error, which torch may raise anywhere, means that a DataLoader worker has died."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def how_it_ended(code: int) -> str:
    """Describe how a process ended, from its exit code, which is minus the signal that killed it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    # The kernel sends SIGKILL when memory runs out.
    return f"was killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
