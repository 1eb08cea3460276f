"""Where commands print: names and error texts from elsewhere are shown, and never obeyed.

A file, a class or a study can be called anything, an escape sequence that rewrites the screen too.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from ecanet.errors import visible
from ecanet.redaction import redact

_MOST = 4000


def say(line: str) -> None:
    """Print a line of news on standard error, unless ``--quiet``; standard output is kept for results."""
    if logging.getLogger("ecanet").isEnabledFor(logging.INFO):
        warn(line)


def warn(line: str) -> None:
    """Print a line on standard error."""
    print(visible(redact(line)), file=sys.stderr, flush=True)


def show(result: object) -> None:
    """Print a result, of one line or several, to standard output."""
    print(visible(redact(str(result)), keep="\n"), flush=True)


def fail(line: str) -> None:
    """Print in one line why a command stopped; with ``--verbose``, where, after an exception."""
    if sys.exc_info()[1] and logging.getLogger("ecanet").isEnabledFor(logging.DEBUG):
        _show_defect(*sys.exc_info())
    line = " ".join(line.split())
    if len(line) > _MOST:
        line = f"{line[: _MOST // 2]} … {line[-_MOST // 2 :]}"
    warn(f"ecanet: {line}")


def console() -> Any:
    """Return rich's console for results; a name with brackets is no markup to it."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class Visible(Console):
        def render_str(self, text: str, **how: Any) -> Text:  # the cells of tables
            return super().render_str(visible(text), **how)

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else visible(text, keep="\n"), style, control)

    found = Visible(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not found.is_terminal:
        # A file or a pipe has no width that lines must fit.
        found.width = 200
    return found


class _Terminal(logging.Handler):
    """Prints what the package logs, a line each: on standard error, or standard output for a parent."""

    to_stdout = False

    def emit(self, record: logging.LogRecord) -> None:
        (show if self.to_stdout else warn)(record.getMessage())


_TERMINAL = _Terminal()


def log_to_stdout() -> None:
    """Print log lines on standard output, which a parent process forwards."""
    _TERMINAL.to_stdout = True


def shows_to_parent() -> bool:
    """Whether a parent process forwards the log lines of this one."""
    return _TERMINAL.to_stdout


def prepare(level: int = logging.INFO) -> None:
    """Show log lines, what the terminal's encoding cannot hold as an escape, and defects in the same way.

    Args:
        level: of the log lines that are shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _show_defect
    log = logging.getLogger("ecanet")
    log.setLevel(level)
    _TERMINAL.to_stdout = False
    if _TERMINAL not in log.handlers:
        log.addHandler(_TERMINAL)


def _show_defect(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(visible(redact(text), keep="\n"), end="", file=sys.stderr)
