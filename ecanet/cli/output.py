"""Where commands print: names and error texts from elsewhere are shown, and never obeyed.

A file, a class or a study can be called anything, an escape sequence that rewrites the screen too.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from ecanet.errors import UserError, visible
from ecanet.redaction import redact

_MOST = 4000


def say(line: str) -> None:
    """Print a line of news on standard error, unless ``--quiet``; standard output is kept for results."""
    if logging.getLogger("ecanet").isEnabledFor(logging.INFO):
        warn(line)


def warn(line: str) -> None:
    """Print a line on standard error; a terminal gets it broken at words, but for a command to copy."""
    line = visible(redact(line))
    if sys.stderr.isatty() and not line.startswith("next: "):
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    print(line, file=sys.stderr, flush=True)


def show(text: object) -> None:
    """Print a result, of one line or several, on standard output; not where ``--json`` prints it."""
    if not _JSON.alone:
        print(visible(redact(str(text)), keep="\n"), flush=True)


class _Json:
    """What ``--json`` does with the results of a command."""

    wanted = False
    file: Path | None = None
    """Where they are written; None for standard output."""

    @property
    def alone(self) -> bool:
        """Whether standard output is for JSON alone."""
        return self.wanted and self.file is None


_JSON = _Json()


def json_to(file: str | None) -> None:
    """Make :func:`result` print JSON on standard output (None), or write it to a file.

    Raises:
        UserError: the file cannot be written.
    """
    _JSON.wanted, _JSON.file = True, Path(file).expanduser() if file else None
    if _JSON.file and _JSON.file.is_dir():
        raise UserError(f"--json {file} is a folder: give a file")
    if _JSON.file and not _JSON.file.absolute().parent.is_dir():
        raise UserError(f"--json {file}: its folder does not exist")


def wants_json() -> bool:
    """Whether ``--json`` is given: results that take memory are gathered only then."""
    return _JSON.wanted


def result(content: Any) -> None:
    """Give the results of a command as JSON, if ``--json`` is given; NaN and infinity become null."""
    if not _JSON.wanted:
        return
    from ecanet.files import write_json

    if _JSON.file:
        write_json(_JSON.file, _plain(content))
    else:
        print(json.dumps(_plain(content), indent=2, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: tuples as lists, paths as text, what is not finite as None."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


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

    found = Visible(file=sys.stdout, highlight=False, markup=False, emoji=False, quiet=_JSON.alone)
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
    _JSON.wanted, _JSON.file = False, None
    if _TERMINAL not in log.handlers:
        log.addHandler(_TERMINAL)


def _show_defect(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(visible(redact(text), keep="\n"), end="", file=sys.stderr)
