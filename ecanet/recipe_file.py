"""Recipes, packaged or of the user's own, and settings made of names and values as recipes have them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ecanet.aliases import SETTINGS
from ecanet.config import (
    AnySettings,
    ClassificationSettings,
    DetectionSettings,
    StudySettings,
    SweepSettings,
    TrainerSettings,
    YoloSettings,
    replaced,
)
from ecanet.errors import UserError, did_you_mean, prefixed, shown
from ecanet.plugins import check_trust
from ecanet.yaml_file import read_yaml

_RECIPES = Path(__file__).resolve().parent / "recipes"
# Settings that no recipe may have.
_YOURS = {"database", "study"}
# How images are kept. Any other value of storage is the address of a study's database.
STORAGE = ("auto", "memory", "stream")
# Settings that name programs.
PROGRAMS = ("trainer", "command", "network")
# Whose names a recipe may have: which of them it is for is known only where it is used.
_IN_RECIPES = (
    StudySettings,
    SweepSettings,
    ClassificationSettings,
    DetectionSettings,
    TrainerSettings,
    YoloSettings,
)


def recipes() -> dict[str, str]:
    """Return the packaged recipes: name (``smoke/digits``) to the first line of its header."""
    return {
        str(path.relative_to(_RECIPES).with_suffix("")): path.read_text()
        .split("\n")[0]
        .lstrip("# ")
        for path in sorted(_RECIPES.rglob("*.yaml"))
    }


def recipe_path(name: str) -> str:
    """Return the path of a packaged recipe, or of a file.

    Raises:
        UserError: there is neither.
    """
    if name in recipes():
        return str(_RECIPES / f"{name}.yaml")
    if os.path.isfile(name):
        return name
    raise UserError(f"no recipe or file {name!r}.{did_you_mean(name, recipes())}")


def read_recipe(path: str) -> dict[Any, Any]:
    """Return what a recipe holds, without the check that its names are settings.

    Raises:
        UserError: it cannot be read, holds no settings, or names what only the user may decide.
    """
    content = read_yaml(path)
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: a recipe holds settings, such as epochs: 30")
    for name, value in (content or {}).items():
        if name in _YOURS or (name == "storage" and value not in STORAGE):
            raise UserError(
                f"{path}: a recipe cannot say where a study is, as its database is sent a password: "
                f"give --{name} yourself"
            )
        if name == "skip_corrupt":
            raise UserError(f"{path}: {name} is now corrupt: {'skip' if value else 'refuse'}")
    return content or {}


def recipe(name: str | os.PathLike[str], *, trust_plugins: bool = False, **changes: Any) -> Any:
    """Return the settings of a recipe, as keywords for :func:`ecanet.compare` and :func:`ecanet.train`.

    Example::

        study = ecanet.compare("demo", **ecanet.recipe("smoke/digits", epochs=4))

    Args:
        name: of a packaged recipe (``ecanet list recipes`` prints them), or the path of a YAML file.
        trust_plugins: whether the recipe may name plugins and trainers, which are programs, that
            ``changes`` does not name.
        changes: settings that take the place of the recipe's; ``lr=0.01`` or ``optimizer={"lr": 0.01}``.

    Returns:
        A dict of settings; groups such as ``optimizer`` are dicts in it.

    Raises:
        UserError: there is no such recipe, it cannot be read or trusted, or a name is no setting.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise UserError(f"a recipe is given by its name or file, not as {shown(name)}")
    path = recipe_path(str(os.fspath(name)))
    values = read_recipe(path)
    if "parameters" not in values:  # of a sweep file, ecanet.sweep checks the keys
        with prefixed(f"{path}: "):
            _check_names(values)
        _check_names(changes)
    if not trust_plugins:
        check_trust(values.get("plugin") or [], changes.get("plugin") or [], "the recipe")
        for flag in PROGRAMS:
            if program := values.get(flag):
                check_trust([program], [changes.get(flag) or ""], "the recipe", flag)
    for key, value in changes.items():
        key = _setting(key, values)
        group, dot, leaf = key.partition(".")
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            values[key] = values[key] | dict(value)
        elif dot and isinstance(values.get(group), dict):
            values[group] = values[group] | {leaf: value}
        else:
            values[key] = value
    return values


def settings_class(values: Mapping[str, Any]) -> type[AnySettings]:
    """Return which settings the names are of: a detector's, those of your own trainer, or a classifier's."""
    if values.get("trainer") or values.get("command"):
        return TrainerSettings
    return DetectionSettings if values.get("detector") else ClassificationSettings


def with_settings(
    values: Mapping[str, Any], *bases: Any, skip: Set[str] = frozenset()
) -> list[Any]:
    """Return dataclasses of settings with other values.

    Args:
        values: settings by name, groups as dicts or dotted. The names of W&B's sweeps and of the command
            line, such as ``lr``, are understood.
        bases: dataclasses of settings, or their classes. What several of them have is the first's.
        skip: names that are no settings here.

    Raises:
        UserError: a name is unknown, or a value not allowed.
    """
    for base in bases:
        if not is_dataclass(base):
            raise UserError(
                f"settings are an object such as ClassificationSettings(epochs=8), not {shown(base)}: "
                "give names and values as keywords"
            )
    known, groups = _known(bases, skip)
    found: list[dict[str, Any]] = [{} for _ in bases]
    for key, item in _checked(values, known, groups):
        found[known[key]][key] = _plain(item)
    return [_made(base, own) for base, own in zip(bases, found, strict=True)]


def _known(
    bases: Iterable[Any], skip: Set[str] = frozenset()
) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Return the dotted names of settings with the index of the base that has each, and the groups' names."""
    known: dict[str, int] = {}
    groups: dict[str, set[str]] = {}
    for index, base in enumerate(bases):
        for field in fields(base):
            if field.name not in skip:
                known.setdefault(field.name, index)
        for group, cls in _groups(base).items():
            groups[group] = groups.get(group, set()) | {leaf.name for leaf in fields(cls)}
            known |= {f"{group}.{leaf}": index for leaf in groups[group]}
    return known, groups


def _checked(
    values: Mapping[str, Any], known: Mapping[str, Any], groups: Mapping[str, Set[str]]
) -> Iterator[tuple[str, Any]]:
    """Yield each setting's own dotted name and its value.

    Raises:
        UserError: a name is unknown, or a value is a group's where a setting's belongs, or the reverse.
    """
    for given, value in values.items():
        name = _setting(given, known)
        if name in groups and isinstance(value, Mapping):
            inner = {f"{name}.{leaf}": item for leaf, item in value.items()}
        elif name in groups and isinstance(value, str) and "name" in groups[name]:
            inner = {f"{name}.name": value.lower()}
        else:
            inner = {name: value}
        for key, item in inner.items():
            if key not in known:
                short = [other for other, own in SETTINGS.items() if own in known]
                hint = did_you_mean(str(key), [*known, *short], listed=known)
                raise UserError(f"unknown setting {key}.{hint}")
            if isinstance(item, Mapping):
                raise UserError(f"{key} takes a value, and no settings below it")
            if key in groups and not is_dataclass(item):
                takes = ", ".join(sorted(groups[key]))
                raise UserError(f"{key} takes settings of its own, as a dict: {takes}")
            yield key, item


def _check_names(values: Mapping[str, Any]) -> None:
    """Refuse names that no recipe has.

    Raises:
        UserError: similar ones are suggested.
    """
    for _ in _checked(values, *_known(_IN_RECIPES)):
        pass


def _setting(name: str, known: Mapping[str, Any]) -> str:
    """Return a setting's own name."""
    return name if name in known else SETTINGS.get(name, name)


def _plain(value: Any) -> Any:
    """Return a value as YAML has it: no paths, no tuples."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _made(base: Any, values: Mapping[str, Any]) -> Any:
    if not isinstance(base, type):
        return replaced(base, values) if values else base
    groups = {name: cls() for name, cls in _groups(base).items()}
    plain = {name: value for name, value in values.items() if "." not in name}
    for name, value in values.items():
        group, dot, leaf = name.partition(".")
        if dot:
            groups[group] = replace(groups[group], **{leaf: value})
    return base(**groups | plain)


def _groups(base: Any) -> dict[str, Any]:
    """Return the groups among a dataclass's settings, and their classes."""
    made: dict[str, Any] = {field.name: field.default_factory for field in fields(base)}
    return {name: cls for name, cls in made.items() if is_dataclass(cls)}
