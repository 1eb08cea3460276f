"""Dataclasses made of plain values from elsewhere, a database's for one: of the right types, or refused."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from typing import Any, TypeVar

from ecanet.errors import UserError

_Made = TypeVar("_Made")
# Numbers beyond these are no settings, and texts neither; both end up in loops and file names.
_LARGEST, _LONGEST = 2**63, 10_000


def typed(cls: type[_Made], values: Any) -> _Made:
    """Return ``cls`` made of a mapping of its fields, those of other dataclasses as mappings too.

    Raises:
        UserError: a field is missing or unknown, or its value does not fit its type.
    """
    return _fitting(cls, values, "")


def _fitting(hint: Any, value: Any, name: str) -> Any:
    """Return ``value`` as of the type ``hint``; no text is taken for a number, no number for a text."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _made(hint, value, name)
    if origin in (typing.Union, types.UnionType):
        for option in options:
            try:
                return _fitting(option, value, name)
            except UserError:
                continue
    elif origin is typing.Literal:
        if isinstance(value, (str, int)) and value in options:
            return value
    elif origin is list:
        if isinstance(value, list):
            return [_fitting(options[0], item, name) for item in value]
    elif origin is dict:
        if isinstance(value, dict):
            return {str(key): _fitting(options[1], item, name) for key, item in value.items()}
    elif hint is float:
        if type(value) in (int, float) and math.isfinite(value):
            return value
    elif type(value) is hint and (
        (hint is int and abs(value) < _LARGEST)
        or (hint is str and len(value) < _LONGEST)
        or hint in (bool, types.NoneType)
    ):
        return value
    raise UserError(f"{name} cannot be {value!r:.80}")


def _made(cls: Any, values: Any, name: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{name or cls.__name__} cannot be {values!r:.80}")
    hints = field_types(cls)
    prefix = f"{name}." if name else ""
    for key in values:
        if key not in hints:
            raise UserError(f"{prefix}{key!r:.80} is unknown")
    for field in dataclasses.fields(cls):
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and field.name not in values:
            raise UserError(f"{prefix}{field.name} is missing")
    return cls(**{k: _fitting(hints[k], v, f"{prefix}{k}") for k, v in values.items()})


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """Return the type of each field of a dataclass, by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
