"""YAML from outside, recipes and sweep files: read within bounds, refused in one line.

YAML is small to write and endless to read: aliases of aliases double at each line, brackets nest until
the stack ends, ``/dev/zero`` has no end. So a text is walked through event by event, which takes no
memory, before anything is made of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ecanet.errors import UserError, one_line

MOST_BYTES = 2**20
MOST_DEPTH = 50
# Values, each counted as often as aliases repeat it.
MOST_VALUES = 50_000
# Of a number: no setting has more, and all fit a float.
_MOST_DIGITS = 40
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
# libyaml's parser is ten times as fast, where PyYAML was built with it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """PyYAML's safe loader, which takes no key twice and no dates: they would not be JSON."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                problem = f"{key.value!r} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return dict(super().construct_mapping(node, deep))


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for letter, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: str | Path) -> Any:
    """Return what a YAML file holds: dicts, lists, strings, numbers, booleans and None.

    Raises:
        UserError: it cannot be read, is no YAML, or is beyond the bounds; the line names the file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError("is no file that YAML can be read from")
            content = file.read(MOST_BYTES + 1)
        return load_yaml(content.decode("utf-8-sig"))
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UserError(f"{path} cannot be read: {reason}") from None


def load_yaml(text: str) -> Any:
    """Return what ``text`` holds as YAML.

    Raises:
        UserError: it is no YAML, or beyond the bounds.
    """
    try:
        check_bounds(text)
        return yaml.load(text, Loader=_Loader)
    # A tag at a value that it does not fit: PyYAML raises what int() or a dict raised.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"is no YAML: {_reason(error)}") from None


def check_bounds(text: str) -> None:
    """Refuse YAML that is larger, deeper or more often repeated than any file of settings.

    Raises:
        UserError: it is.
        yaml.YAMLError: it is no YAML.
    """
    if len(text) > MOST_BYTES:
        raise UserError(f"is over {MOST_BYTES >> 20} MB: no file of settings is as large")
    # How many values stand below each anchor; None while it is open.
    anchors: dict[str | None, int | None] = {}
    opened: list[tuple[str | None, int]] = []
    values = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            anchor, before = opened.pop()
            if anchor:
                anchors[anchor] = values - before
            continue
        if isinstance(event, yaml.AliasEvent):
            size = anchors.get(event.anchor, 0)
            if size is None:
                raise UserError(f"holds *{event.anchor}, which contains itself")
            values += size + 1
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            _check_value(event)
            values += 1
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, values))
            if event.anchor:
                anchors[event.anchor] = 0 if isinstance(event, yaml.ScalarEvent) else None
        if len(opened) > MOST_DEPTH:
            raise UserError(f"is nested more than {MOST_DEPTH} deep")
        if values > MOST_VALUES:
            raise UserError(f"holds more than {MOST_VALUES} values, aliases written out")


def _check_value(event: Any) -> None:
    if event.tag is not None and event.tag != "!" and event.tag not in _PLAIN_TAGS:
        raise UserError(f"holds the tag {event.tag}: leave it out")
    if not isinstance(event, yaml.ScalarEvent):
        return
    if "\0" in event.value:
        raise UserError("holds a NUL character")
    plain = event.implicit[0] or event.tag is not None
    if plain and len(event.value) > _MOST_DIGITS and event.value[:1] in "+-.0123456789":
        raise UserError(f"holds a number of {len(event.value)} digits, which no setting takes")


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return f"{error.problem}" + (f", line {mark.line + 1}" if mark else "")
    return one_line(error)
