"""The library Ultralytics as ecanet runs it: without requests, downloads, news and loggers of its own."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ecanet.errors import UserError

OUTPUT = "output.txt"
"""Name of the file in a run's folder with what Ultralytics logs."""

# What it reads when it is first imported.
_VARIABLES = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",
}


def require(module: str = "ultralytics") -> Any:
    """Return the package or one of its modules, imported.

    Raises:
        UserError: it is not installed.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this needs Ultralytics, which is licensed under the AGPL-3.0 ({error}): "
            "pip install 'ecanet[ultralytics]'"
        ) from None


@contextmanager
def contained(folder: Path | None = None) -> Iterator[None]:
    """Let Ultralytics send nothing, and log to ``output.txt`` in a folder, or nowhere."""
    names = ("utils", "utils.events", "engine.trainer")
    utils, events, trainer = (require(f"ultralytics.{name}") for name in names)
    logger = utils.LOGGER
    handler = logging.FileHandler(folder / OUTPUT, encoding="utf-8") if folder else None
    with ExitStack() as stack:
        if handler:
            stack.callback(handler.close)
        stack.enter_context(_replaced(logger, "handlers", [handler or logging.NullHandler()]))
        stack.enter_context(_replaced(events.events, "enabled", False))
        stack.enter_context(_replaced(utils, "VERBOSE", False))  # progress bars
        # It would try mixed precision on a network that it downloads.
        stack.enter_context(_replaced(trainer, "check_amp", _is_on_gpu))
        yield


def _is_on_gpu(network: Any) -> bool:
    return next(network.parameters()).is_cuda


@contextmanager
def _replaced(of: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(of, name)
    setattr(of, name, value)
    try:
        yield
    finally:
        setattr(of, name, before)
