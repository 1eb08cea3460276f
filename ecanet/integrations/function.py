"""Functions in Python files of the user's own, named FILE:FUNCTION."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ecanet.attention import load_plugin, plugin_module
from ecanet.errors import UserError, did_you_mean


def file_of(where: str) -> Path:
    """Return the file in ``FILE:FUNCTION``."""
    return Path(where.rpartition(":")[0]).expanduser().resolve()


def load_function(where: str, takes: tuple[str, ...]) -> Callable[..., Any]:
    """Import a Python file, and return a function of it.

    As for a script, the files beside it can be imported, but not in place of installed packages.

    Args:
        where: ``FILE:FUNCTION``.
        takes: names of the arguments that it will be called with.

    Raises:
        UserError: the file cannot be imported, or has no function that takes these arguments.
    """
    file, name = file_of(where), where.rpartition(":")[2]
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        load_plugin(file)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    module = plugin_module(file)
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UserError(f"{file} has no function {name}.{did_you_mean(name, own) if own else ''}")
    try:
        inspect.signature(function).bind(**dict.fromkeys(takes))
    except TypeError as error:
        wanted = ", ".join(takes)
        raise UserError(f"{file}: write def {name}({wanted}), as {error}") from None
    except ValueError:  # it has no signature
        pass
    return function
