"""Flags as the dataclasses of settings describe them: names, types, defaults and docstrings.

Needs neither jsonargparse nor torch, so that help, completion and hints are instant.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ecanet.typed import field_types

# What a value is, where its type alone does not say it.
_VALUES = {
    **dict.fromkeys(["attention", "model", "project", "study", "split", "eval_split"], "NAME"),
    **dict.fromkeys(["weights", "backbone_weights", "plugin", "pilot", "checkpoints"], "FILE"),
    **dict.fromkeys(["trainer", "network"], "FILE:FUNCTION"),
    "checkpoints": "RUN", "classes": "CLASS", "columns": "NAME=COLUMN", "command": "COMMAND",
    "data": "DATA", "database": "URL", "device": "DEVICE", "file": "FILE", "group_by": "PATTERN",
    "images": "IMAGES", "kernel_sizes": "SIZES", "metric": "METRIC", "pilot": "STUDY",
    "places": "PLACES", "recipe": "RECIPE", "set": "NAME=VALUE", "source": "SOURCE",
    "storage": "URL",
}  # fmt: skip
_WORDS = {"File": "FILE", "Folder": "FOLDER", "YAML": "FILE"}
_NUMBERS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}
# Longest list of choices that stands behind a flag.
_CHOICES = 44


@dataclass(frozen=True)
class Flag:
    """A flag: one field of a dataclass of settings."""

    name: str
    """Dotted, with underscores: ``optimizer.weight_decay``."""
    hint: Any
    """The type."""
    default: Any
    home: str
    """The class that declares it."""
    text: str
    """Its docstring."""

    @property
    def spelled(self) -> str:
        return spelled(self.name)

    @property
    def options(self) -> list[Any]:
        """The types that a value, or an item of a list, may have; words are themselves."""
        return _options(self.hint)

    @property
    def is_list(self) -> bool:
        first = typing.get_args(self.hint)[0] if _is_union(self.hint) else self.hint
        return typing.get_origin(first) is list

    @property
    def is_switch(self) -> bool:
        return self.options == [bool]

    @property
    def words(self) -> list[str]:
        """The words that it takes, if there are any."""
        return [option for option in self.options if isinstance(option, str)]

    @property
    def value(self) -> str:
        """What stands for its value in help: ``N|auto``, ``NAME,...``; "" for a switch."""
        if self.is_switch:
            return ""
        leaf = self.name.rpartition(".")[2]
        first = self.text.partition(" ")[0]
        if leaf in _VALUES and not self.words:
            kinds = [_VALUES[leaf]]
        elif self.options == [str] and first in _WORDS:
            kinds = [_WORDS[first]]
        else:
            kinds = [
                o if isinstance(o, str) else _NUMBERS[o] for o in self.options if o is not bool
            ]
            if len("|".join(kinds)) > _CHOICES:
                kinds = ["NAME"]
        return "|".join(kinds) + (",..." if self.is_list else "")


def spelled(name: str) -> str:
    """Return the flag of a setting: ``--batch-size`` of ``batch_size``."""
    return f"--{name.replace('_', '-')}"


def flags_of(*settings: type[Any], skip: Set[str] = frozenset()) -> dict[str, Flag]:
    """Return the flags of dataclasses, by name.

    If several have the same name, the first one counts, with the first text that is not empty.
    """
    found: dict[str, Flag] = {}
    seen = set(skip)
    for cls in settings:
        for name, hint in field_types(cast(Any, cls)).items():
            if name not in seen:
                seen.add(name)
                found |= {flag.name: flag for flag in _flags(cls, name, hint)}
            elif name in found and not found[name].text:
                found[name] = dataclasses.replace(found[name], text=_text(cls, name))
    return found


def _flags(cls: type[Any], name: str, hint: Any) -> list[Flag]:
    if dataclasses.is_dataclass(hint):
        inner = flags_of(cast(Any, hint)).values()
        return [dataclasses.replace(flag, name=f"{name}.{flag.name}") for flag in inner]
    # The first that declared it: another default or text does not move a flag in the help.
    home = next(c for c in reversed(cls.__mro__) if name in inspect.get_annotations(c))
    return [Flag(name, hint, default_of(cls, name), home.__name__, _text(cls, name))]


def _text(cls: type[Any], name: str) -> str:
    return next((t for c in cls.__mro__ if (t := _docstrings(c).get(name))), "")


def default_of(cls: type[Any], name: str) -> Any:
    """Return the default of a dataclass's field."""
    field: Any = next(field for field in dataclasses.fields(cls) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _options(hint: Any) -> list[Any]:
    if _is_union(hint) or typing.get_origin(hint) is list:
        inner = [option for part in typing.get_args(hint) for option in _options(part)]
        return list(dict.fromkeys(inner))
    if typing.get_origin(hint) is Literal:
        return [one if isinstance(one, str) else str(one) for one in typing.get_args(hint)]
    return [] if hint is types.NoneType else [hint]


def _docstrings(cls: type[Any]) -> dict[str, str]:
    """Return the docstring below each field that a class itself declares."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return _file_docstrings(file).get(cls.__name__, {}) if file and cls is not object else {}


@functools.cache
def _file_docstrings(file: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            texts = found.setdefault(node.name, {})
            for field, below in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(below, ast.Expr)
                    and isinstance(below.value, ast.Constant)
                ):
                    texts[field.target.id] = " ".join(str(below.value.value).split())
    return found
