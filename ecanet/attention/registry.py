"""Registry of attention modules, and the specs that build them, such as ``eca:kernel_size=9``.

A spec is a name and arguments separated by colons: ``NAME[:ARGUMENT=VALUE]...``. A value is read
as a Python literal (9, 0.5, True, None) if it is one, else as a string.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import re
import sys
import traceback
import types
import typing
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import nn

# Prefix of the names of Python modules made from plugin files.
PLUGIN_PREFIX = "ecanet_plugin_"

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., nn.Module]
    source: str
    """The file that registered it, or its module's name if there is no file (a notebook)."""
    home: str
    """The name of the Python module that registered it, which may not be the one that defines it."""


_entries: dict[str, _Entry] = {}
# Files that were written from what this process has registered itself: name, and the object.
_written: dict[str, tuple[str, Any]] = {}


@overload
def register_attention(name: Factory) -> Factory: ...
@overload
def register_attention(name: str | None = None) -> Callable[[Factory], Factory]: ...
def register_attention(name: Any = None) -> Any:
    """Register a class, or a function ``(channels, ...) -> nn.Module``, as an attention module.

    Without arguments, ``@register_attention`` uses the object's own name in snake_case (``MyGate`` becomes
    ``my_gate``); ``@register_attention("my_gate")`` sets a name. The object is returned unchanged.
    Its arguments after ``channels`` are those of the spec: their types are checked against annotations.
    One with an argument ``dims`` is for 1-D and 3-D maps as well, see :func:`create_attention`.

    Raises:
        TypeError: the object cannot be called with ``channels`` first.
        ValueError: the name has other characters than lower-case letters, digits and underscores, or is
            taken. The same object may be registered again from the same file (a reload, a notebook cell).
    """
    if name is None or isinstance(name, str):
        return lambda factory: _register(factory, name)
    return _register(name, None)


def _register(factory: Factory, name: str | None) -> Factory:
    if name is None:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", factory.__name__).lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"an attention module's name has lower-case letters, digits and _, got {name!r}"
        )
    takes_channels = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = next(iter(inspect.signature(factory).parameters.values()), None)
    if first is None or first.kind not in takes_channels:
        raise TypeError(f"attention module {name!r} must take channels as its first argument")
    # Two frames up is the caller of register_attention, or of the decorator that it returned.
    home = str(sys._getframe(2).f_globals.get("__name__", "__main__"))
    file = getattr(sys.modules.get(home), "__file__", None)
    entry = _Entry(factory, file or home, home)
    taken = _entries.get(name, entry)
    if taken.factory is not factory and (
        taken.source != entry.source or taken.factory.__qualname__ != factory.__qualname__
    ):
        raise ValueError(
            f"attention module {name!r} is already registered by {taken.source}: choose another name"
        )
    _entries[name] = entry
    return factory


def list_attention() -> list[str]:
    """Return the names of all registered attention modules, sorted."""
    return sorted(_entries)


def attention_home(spec: str) -> str:
    """Return the name of the Python module that registered the attention module of a spec.

    Raises:
        ValueError: there is no such module.
    """
    return _entry(spec.split(":")[0].strip()).home


def registered_factory(name: str) -> Callable[..., nn.Module]:
    """Return the class or function that is registered under a name.

    Raises:
        ValueError: there is no such module.
    """
    return _entry(name).factory


def written_from_here(path: Path, name: str) -> None:
    """Note that a plugin file holds what this process has registered as ``name``: it need not be loaded."""
    _written[str(path.resolve())] = name, _entries[name].factory


def attention_paper(spec: str) -> str | None:
    """Return what the docstring of a spec's module has behind ``Paper:``; None if there is none."""
    entry = _entries.get(spec.split(":")[0].strip())
    text = inspect.getdoc(entry.factory) if entry else None
    found = re.search(
        r"^Paper: (.+?)(?=\n[A-Z][a-z ]+:|\n\n|\Z)", text or "", re.DOTALL | re.MULTILINE
    )
    return " ".join(found[1].split()) if found else None


def registered_name(module: nn.Module) -> str | None:
    """Return the name under which a module's class is registered, or None."""
    return next((n for n, entry in _entries.items() if type(module) is entry.factory), None)


def parse_attention(spec: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of a spec, such as ``("eca", {"kernel_size": 9})``.

    Name, argument names and types are checked here; values are checked when the module is built.

    Raises:
        ValueError: the spec is malformed, the module unknown (the message suggests similar names), or an
            argument unknown or of a wrong type (the message lists the module's arguments).
    """
    name, *texts = (part.strip() for part in spec.split(":"))
    _entry(name)
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"{spec!r} is not an attention spec: write NAME:ARGUMENT=VALUE, not {text!r}"
            )
        if key in arguments:
            raise ValueError(f"{spec!r} gives {key} twice")
        if key == "dims":
            raise ValueError(f"{spec!r} gives dims, which follows from the network: leave it out")
        arguments[key] = _literal(value)
    _check_arguments(name, arguments)
    return name, arguments


def create_attention(spec: str, channels: int, dims: int = 2, **arguments: Any) -> nn.Module:
    """Build the attention module of a spec for feature maps of ``channels`` channels.

    ``create_attention("eca:kernel_size=9", 64)`` is ``create_attention("eca", 64, kernel_size=9)``.

    Args:
        spec: name and arguments.
        channels: C.
        dims: axes of space: 2 for (N, C, H, W), 1 for (N, C, L), 3 for (N, C, D, H, W).
        arguments: further arguments of the module.

    Raises:
        ValueError: the spec or an argument is invalid, see :func:`parse_attention`, or the module is not
            for maps with ``dims`` axes.
        TypeError: the registered object does not build an ``nn.Module``.
    """
    name, given = parse_attention(spec)
    if dims != 2 and not _takes_dims(name):
        raise ValueError(
            f"attention module {name!r} is defined by the height and width of 2-D maps, as it has no "
            f"argument dims: for dims={dims!r} there are {', '.join(filter(_takes_dims, list_attention()))}"
        )
    if twice := given.keys() & arguments.keys():
        raise ValueError(f"{', '.join(sorted(twice))} given both in {spec!r} and separately")
    _check_arguments(name, arguments)
    if dims != 2:
        arguments["dims"] = dims
    try:
        module = _entry(name).factory(channels, **given, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"attention module {name!r}: {error}; {_takes(name)}") from error
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"attention module {name!r} built a {type(module).__name__}, not an nn.Module"
        )
    return module


def load_plugin(path: str | Path) -> list[str]:
    """Import a Python file that registers attention modules (or anything else), and return their names.

    Loading a file again replaces what it registered before. If it fails, nothing remains registered.

    Raises:
        ValueError: there is no such file, or importing it raised; the message is one line with the file,
            the line number and the exception.
    """
    global _entries
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"no plugin file {path}")
    name, factory = _written.get(str(path), ("", None))
    if name in _entries and _entries[name].factory is factory:
        return [name]
    module_name = _plugin_name(path)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"plugin {path} is not a Python file: its name must end in .py")
    before, module_before = _entries, sys.modules.get(module_name)
    _entries = {name: entry for name, entry in before.items() if entry.source != str(path)}
    others = set(_entries)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        # Compiled anew: Python takes cached bytecode for that of a file of the same size that was edited
        # within the same second.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BaseException as error:
        _entries = before
        del sys.modules[module_name]
        if module_before is not None:
            sys.modules[module_name] = module_before
        if not isinstance(error, (Exception, SystemExit)):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"plugin {path}, line {_line(error, path)}: {what}") from error
    return sorted(set(_entries) - others)


def plugin_module(path: str | Path) -> types.ModuleType:
    """Return the module that :func:`load_plugin` has made of a file.

    Raises:
        KeyError: the file was not loaded.
    """
    return sys.modules[_plugin_name(Path(path).resolve())]


def _plugin_name(path: Path) -> str:
    # The path is part of the name, so that two files plugin.py can coexist, and pickles of their classes
    # can be loaded in another process.
    return f"{PLUGIN_PREFIX}{path.stem}_{zlib.crc32(str(path).encode()):08x}"


def _line(error: BaseException, path: Path) -> int | str:
    """Return the line of ``path`` at which ``error`` was raised."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or "?"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return (lines and lines[-1]) or "?"


def _entry(name: str) -> _Entry:
    if name not in _entries:
        near = difflib.get_close_matches(name, _entries, n=3, cutoff=0.6)
        hint = (
            f"Did you mean {', '.join(near)}?" if near else f"Known: {', '.join(sorted(_entries))}."
        )
        raise ValueError(f"unknown attention module {name!r}. {hint}")
    return _entries[name]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return a module's parameters after ``channels`` and but for ``dims``: those of a spec."""
    _, *others = inspect.signature(_entries[name].factory).parameters.items()
    return {key: parameter for key, parameter in others if key != "dims"}


def _takes_dims(name: str) -> bool:
    return "dims" in inspect.signature(_entries[name].factory).parameters


def _takes(name: str) -> str:
    shown = [str(p.replace(annotation=inspect.Parameter.empty)) for p in _parameters(name).values()]
    return f"{name} takes {', '.join(shown) or 'no arguments'}"


def _check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Refuse arguments that the module does not have, or whose type differs from the annotation."""
    parameters = _parameters(name)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return  # checked by whatever they are passed on to
    factory = _entries[name].factory
    try:
        hints = typing.get_type_hints(
            factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
        )
    except Exception:  # unresolvable annotations in a user's code are no reason to stop
        hints = {}
    for key, value in arguments.items():
        if key not in parameters:
            raise ValueError(f"attention module {name!r} has no argument {key!r}; {_takes(name)}")
        if key in hints and not _fits(value, hints[key]):
            raise ValueError(
                f"attention module {name!r}: {key} must be {_shown(hints[key])},"
                f" got {value!r}; {_takes(name)}"
            )


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` has the type ``hint``; anything fits a hint that is not a plain type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    return True


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        # Python 3.10 calls int | None Optional[int].
        return " | ".join(map(_shown, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
