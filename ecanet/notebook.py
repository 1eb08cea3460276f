"""Where code runs: in a notebook, whose output is updated in place, or in a script, which prints lines."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ecanet.errors import visible
from ecanet.redaction import redact


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which shows HTML."""
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def live_html(html: str) -> Callable[[str], None]:
    """Show HTML below the cell, and return what replaces it; any thread may call that."""
    from IPython.display import HTML, display

    handle: Any = display(HTML(html), display_id=True)
    return lambda html: handle.update(HTML(html))


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(redact(record.getMessage()))


@contextmanager
def printed_lines() -> Iterator[None]:
    """Print what ecanet logs on standard error, unless the program has set up logging itself."""
    log = logging.getLogger("ecanet")
    if log.hasHandlers():
        yield
        return
    level, handler = log.level, logging.StreamHandler()
    handler.setFormatter(_Line())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
