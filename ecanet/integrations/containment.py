"""Keeps what another library writes and changes to the time and place of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OUTPUT = "output.txt"
"""Name of the file in a run's folder with what its trainer prints or logs."""


@contextmanager
def logs_to(folder: Path | None, logger: logging.Logger) -> Iterator[None]:
    """Let a logger write what it says of a run to ``output.txt`` in a folder, or nowhere."""
    handler = logging.FileHandler(folder / OUTPUT, encoding="utf-8") if folder else None
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with (
            replaced(logger, "handlers", [handler or logging.NullHandler()]),
            replaced(logger, "propagate", False),
        ):
            yield
    finally:
        logger.setLevel(level)
        if handler:
            handler.close()


@contextmanager
def replaced(of: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value inside ``with``."""
    before = getattr(of, name)
    setattr(of, name, value)
    try:
        yield
    finally:
        setattr(of, name, before)
