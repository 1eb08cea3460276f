"""The library Ultralytics as ecanet runs it: without requests, downloads, news and loggers of its own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ecanet.errors import UserError
from ecanet.integrations.containment import logs_to, replaced

# What it reads when it is first imported, also in the processes that read images.
_VARIABLES = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
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
    """Let Ultralytics send nothing and run no code of files; have it log to ``output.txt``, or nowhere."""
    names = ("utils", "utils.events", "engine.trainer", "nn.tasks")
    utils, events, trainer, tasks = (require(f"ultralytics.{name}") for name in names)
    with ExitStack() as stack:
        stack.enter_context(logs_to(folder, utils.LOGGER))
        stack.enter_context(replaced(events.events, "enabled", False))
        stack.enter_context(replaced(utils, "VERBOSE", False))  # progress bars
        # Names in a YAML or a file of weights are looked up, not evaluated.
        stack.enter_context(replaced(tasks, "SAFE_LOAD", True))
        # It would try mixed precision on a network that it downloads.
        stack.enter_context(replaced(trainer, "check_amp", _is_on_gpu))
        yield


def _is_on_gpu(network: Any) -> bool:
    return next(network.parameters()).is_cuda
