"""Where code runs: in a notebook, whose output is updated in place, or in a script, which prints lines."""

from __future__ import annotations

import html
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ecanet.errors import visible
from ecanet.redaction import redact

_MOST_LINES = 20  # in a notebook


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which shows HTML."""
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def live_html(content: str) -> Callable[[str], None]:
    """Show HTML below the cell, and return what replaces it; any thread may call that."""
    from IPython.display import HTML, display

    handle: Any = display(HTML(content), display_id=True)
    return lambda content: handle.update(HTML(content))


class _Lines(logging.Handler):
    """Shows the latest log lines: below a notebook's cell, in place, or on standard error."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.latest: deque[str] = deque(maxlen=_MOST_LINES)
        self.update = live_html("") if in_notebook() else None

    def emit(self, record: logging.LogRecord) -> None:
        line = visible(redact(record.getMessage()))
        if self.update is None:
            print(line, file=sys.stderr, flush=True)
            return
        self.latest.append(line)
        self.update(f"<pre>{html.escape(chr(10).join(self.latest))}</pre>")


@contextmanager
def shown_lines() -> Iterator[None]:
    """Show what ecanet logs while the body runs, unless the program has set up logging itself."""
    log = logging.getLogger("ecanet")
    if log.hasHandlers():
        yield
        return
    level, handler = log.level, _Lines()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
