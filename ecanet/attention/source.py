"""The source of an attention module that a notebook or script defines, as a file that other processes load.

The file has the class or function, what of ``__main__`` it uses, imports and constants, and registers it.
"""

from __future__ import annotations
import __future__

import ast
import dis
import inspect
import linecache
import sys
import types
from collections.abc import Iterator
from typing import Any

from .registry import registered_factory

_FUTURE = __future__.annotations.compiler_flag


def source_to_take_along(spec: str) -> str | None:
    """Return a Python file that registers the module of a spec as ``__main__`` has defined it.

    None if ``__main__`` has not defined it, or it uses what no file can hold, such as a tensor that an
    earlier cell has made.
    """
    name = spec.split(":")[0].strip()
    factory = registered_factory(name)
    if factory.__module__ != "__main__":
        return None
    head: dict[str, None] = {}
    definitions: dict[str, str] = {}
    try:
        _collect(factory, head, definitions)
    except (ValueError, OSError, TypeError, SyntaxError):
        return None
    lines = [
        "# An attention module as a notebook or script has defined it, for the workers of this study.",
        "from __future__ import annotations",
        "from ecanet.attention.registry import register_attention",
        *head,
        *definitions.values(),
        f"register_attention({name!r})({factory.__name__})",
    ]
    text = "\n".join(lines) + "\n"
    compile(text, name, "exec")
    return text


def _collect(thing: Any, head: dict[str, None], definitions: dict[str, str]) -> None:
    """Add a class or function of ``__main__``, behind all that it uses.

    Raises:
        ValueError: it has no source, or uses what cannot be written down.
    """
    name = thing.__qualname__
    if name in definitions:
        return
    source = _definition(thing)
    definitions[name] = source
    values = vars(sys.modules["__main__"])
    for used in sorted(_globals(compile(source, name, "exec", _FUTURE, dont_inherit=True))):
        if used == name or used not in values or used.startswith("__"):
            continue
        value = values[used]
        if isinstance(value, types.ModuleType):
            head[f"import {value.__name__} as {used}"] = None
        elif getattr(value, "__module__", None) == "__main__" and hasattr(value, "__qualname__"):
            if value.__name__ != used:
                raise ValueError(used)
            _collect(value, head, definitions)
            definitions[name] = definitions.pop(name)  # behind it
        elif _importable(value):
            head[f"from {value.__module__} import {value.__qualname__} as {used}"] = None
        elif type(value) in (int, float, str, bool, bytes, type(None), tuple, list, dict):
            if ast.literal_eval(repr(value)) != value:  # ValueError: it holds something else
                raise ValueError(used)
            head[f"{used} = {value!r}"] = None
        else:
            raise ValueError(used)


def _importable(value: Any) -> bool:
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    name = getattr(value, "__qualname__", "")
    return module is not None and getattr(module, name, None) is value


def _globals(code: types.CodeType) -> Iterator[str]:
    """Yield the global names that code reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)


def _definition(thing: Any) -> str:
    """Return the source of a class or function, with its decorators.

    Raises:
        ValueError: it is not at hand.
    """
    # A class of a notebook has no file; its methods have that of their cell.
    parts = vars(thing).values() if isinstance(thing, type) else [thing]
    for part in parts:
        code = getattr(inspect.unwrap(getattr(part, "__func__", part)), "__code__", None)
        if code is None:
            continue
        lines = linecache.getlines(code.co_filename)
        for node in reversed(ast.parse("".join(lines)).body if lines else []):
            if getattr(node, "name", None) == thing.__qualname__:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])  # type: ignore[attr-defined]
                return "".join(lines[first - 1 : node.end_lineno])
    raise ValueError(f"the source of {thing.__qualname__} is not at hand")
