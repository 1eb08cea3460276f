"""The library LibreYOLO as ecanet runs it: without a word on the terminal."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ecanet.errors import UserError
from ecanet.integrations.containment import logs_to, replaced

# Where it shows progress.
_BARS = ("training.trainer", "validation.base", "models.dfine.trainer")


def require(module: str = "libreyolo") -> Any:
    """Return the package or one of its modules, imported.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this needs LibreYOLO ({error}): pip install 'ecanet[libreyolo]'"
        ) from None


@contextmanager
def contained(folder: Path | None = None) -> Iterator[None]:
    """Let LibreYOLO log to ``output.txt`` in a folder, or nowhere."""
    require()
    logger = logging.getLogger("libreyolo")
    with ExitStack() as stack:
        stack.enter_context(logs_to(folder, logger))
        for name in _BARS:
            module = require(f"libreyolo.{name}")
            quiet = functools.partial(module.tqdm, disable=True)
            stack.enter_context(replaced(module, "tqdm", quiet))
        yield
