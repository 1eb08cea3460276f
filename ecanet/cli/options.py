"""Dataclasses of settings as flags, recipes as their defaults, and errors of one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings

from ecanet.aliases import FLAGS
from ecanet.errors import UserError, did_you_mean, prefixed
from ecanet.plugins import check_trust
from ecanet.recipe_file import PROGRAMS, STORAGE, read_recipe, recipe_path
from ecanet.yaml_file import check_bounds, load_yaml

_Settings = TypeVar("_Settings")

# Settings whose value is a name, whatever YAML makes of it.
_PATHS = {"out", "data", "weights", "backbone_weights"}
_NULLS = {"null", "Null", "NULL", "~"}
# Settings of earlier versions.
_RENAMED = {"skip_corrupt": "--corrupt skip", "corrupt replace": "--corrupt skip"}

set_parsing_settings(docstring_parse_attribute_docstrings=True)
_load_value = get_loader("yaml")


def _load_bounded(text: str) -> Any:
    """Read the value of a flag as jsonargparse does; what is beyond bounds stays the text it is."""
    try:
        check_bounds(text)
    except UserError as error:
        raise yaml.YAMLError(str(error)) from None
    return _load_value(text)


set_loader("yaml", _load_bounded, exceptions=(yaml.YAMLError,))


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which study: ``folder``, ``--storage`` and ``--study``."""
    parser.add_argument(
        "folder", nargs="?", metavar="STUDY", help="folder that was --out of a compare or a sweep"
    )
    parser.add_argument("--storage", help="postgresql://… of a study whose folder does not name it")
    parser.add_argument(
        "--study", metavar="NAME", help="its name in that database; by default the folder's"
    )


_TRUSTS = "trust_plugins"
TRUST = "run also plugins, which are programs, that {} names and this command does not"


@dataclasses.dataclass
class StudyCommand:
    """Where a study goes and how it is worked."""

    out: str = "study"
    """Folder of the study. The same command again resumes it."""
    database: str | None = None
    """postgresql://user@host/database that holds the study, so that workers on several machines can join;
    by default it is a file in the folder. --storage takes it too."""
    study: str | None = None
    """Name of the study in that database; by default the folder's."""
    dry_run: bool = False
    """Show what would run, how long it takes and how much memory, and write nothing."""
    jobs: int | None = None
    """Runs that train at the same time on this machine; by default as many per GPU as it has time for, or one
    per CPU core, as memory allows."""


class SettingsParser:
    """A parser whose flags are the fields of dataclasses, for one command.

    On top of jsonargparse's spelling it takes ``--skip-corrupt`` for ``--skip_corrupt true``,
    ``a,b`` for ``[a, b]``, ``--optimizer=Adam`` for ``--optimizer.name=adam``, and the name of a
    packaged recipe for its path.

    Args:
        prog: the command, ``ecanet compare``.
        description: what it does.
        settings: dataclasses whose fields are the flags; of a name that two of them have, the first's.
        positional: the field that arguments without a flag are for: one, or all of them for a list.
        short: other spellings of flags, beside those of :data:`ecanet.aliases.FLAGS` that fit.
        skip: fields that are no flags here.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        *settings: type[Any],
        positional: str | None = None,
        short: Mapping[str, str] | None = None,
        skip: Set[str] = frozenset(),
    ) -> None:
        self.positional = positional
        self.parser = ArgumentParser(
            prog=prog, description=description, exit_on_error=False, allow_abbrev=False
        )
        self.parser.add_argument(
            "--recipe",
            action="config",
            help="YAML file of these settings, or a name from `ecanet list recipes`; "
            "flags behind it override it.",
        )
        known = set(skip)
        for cls in settings:
            own = {field.name for field in dataclasses.fields(cls)}
            self.parser.add_class_arguments(cls, skip=known & own)
            known |= own
        types = {f.name: str(f.type) for cls in reversed(settings) for f in dataclasses.fields(cls)}
        self.switches = {name for name, hint in types.items() if hint in ("bool", "bool | None")}
        self.lists = {name for name, hint in types.items() if hint.startswith("list[")}
        self.lists |= {
            f"{group.name}.{inner.name}"
            for cls in settings
            for group in dataclasses.fields(cls)
            if dataclasses.is_dataclass(group.default_factory)
            for inner in dataclasses.fields(group.default_factory)  # type: ignore[arg-type]
            if str(inner.type).startswith("list[")
        }
        if "plugin" in types:
            self.switches.add(_TRUSTS)
            self.parser.add_argument(
                f"--{_TRUSTS}", type=bool, default=False,
                help=TRUST.format("a recipe or a study") + ".",
            )  # fmt: skip
        names = self._names()
        self.short = {flag: name for flag, name in FLAGS.items() if name in names}
        self.short |= short or {}
        self.groups: dict[str, set[str]] = {}
        for name in names:
            group, dot, leaf = name.partition(".")
            if dot:
                self.groups.setdefault(group, set()).add(leaf)
        self.named = {group for group, leaves in self.groups.items() if "name" in leaves}

    def parse(self, arguments: Sequence[str]) -> Any:
        """Return a namespace of flags, nested groups as their dataclasses.

        Raises:
            UserError: a flag or a value is wrong, or a recipe names a plugin that no flag does; the
                message is one line.
        """
        spelled = self.spelled_out(arguments)
        for argument in spelled:
            name, _, value = argument.removeprefix("--").partition("=")
            if name == "recipe" and value:
                self._check_recipe(value)
            elif name in self.groups:
                self._check_group(f"--{name}", name, _loaded(name, value))
        try:
            found = self.parser.instantiate(self.parser.parse_args(spelled))
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise UserError(self._one_line(str(error))) from None
        trusting = f"--{_TRUSTS}=true" in spelled
        if found.get(_TRUSTS) and not trusting:
            raise UserError("a recipe cannot say what is trusted: give --trust-plugins yourself")
        named = [_loaded("plugin", a[9:]) for a in spelled if a.startswith("--plugin=[")]
        trusted = None if trusting else [file for files in named for file in files]
        check_trust(found.get("plugin") or [], trusted, "the recipe")
        for flag in PROGRAMS:
            own = [a.partition("=")[2] for a in spelled if a.startswith(f"--{flag}=")]
            if program := found.get(flag):
                check_trust([program], None if trusting else own, "the recipe", flag)
        return found

    def spelled_out(self, arguments: Sequence[str]) -> list[str]:
        """Return the arguments as jsonargparse takes them: ``--name=value``, names in full.

        Raises:
            UserError: a recipe is named that is neither packaged nor a file.
        """
        known = self._names()
        spelled: list[str] = []
        several: list[str] = []
        rest = list(arguments)
        while rest:
            argument = rest.pop(0)
            if self.positional in self.lists and not argument.startswith("-"):
                several.append(argument)  # as it is: a file's name may hold a comma
                continue
            if self.positional and not argument.startswith("-"):
                argument = f"--{self.positional}={argument}"
            flag, equals, value = argument.partition("=")
            flag = f"--{self.short[flag]}" if flag in self.short else flag
            if not flag.startswith("--"):
                spelled.append(argument)
                continue
            name = flag[2:].replace("-", "_")
            has_value = bool(equals)
            if not has_value and rest and self._is_value(name, rest[0]):
                value, has_value = rest.pop(0), True
            if name in self.switches and not has_value:
                value, has_value = "true", True
            if name == "storage" and "database" in known and value not in STORAGE:
                if "://" not in value:  # not repeated: it may hold a password
                    raise UserError(
                        "--storage takes auto, memory or stream, or postgresql://user@host/database"
                    )
                name = "database"
            for old in (name, f"{name} {value}"):
                if old in _RENAMED:
                    raise UserError(f"--{old} is now {_RENAMED[old]}")
            if name == "compile" and not has_value:
                value, has_value = "on", True
            if name in self.lists and has_value and not value.startswith("["):
                value = json.dumps([item.strip() for item in value.split(",") if item.strip()])
            if name in self.named and re.fullmatch(r"\w+", value):
                name, value = f"{name}.name", value.lower()
            if name == "recipe" and has_value:
                value = recipe_path(value)
            if name in _PATHS and value in _NULLS:
                value = f"./{value}"  # a file or folder of this name, and not no value
            spelled += [f"--{name}={value}"] if has_value else [f"--{name}"]
        return [*spelled, f"--{self.positional}={json.dumps(several)}"] if several else spelled

    def _is_value(self, name: str, argument: str) -> bool:
        """Whether ``argument`` belongs to the flag before it."""
        if name == "help" or argument.startswith("--") or argument in self.short:
            return False
        # Where arguments stand without a flag, a switch takes none but true and false.
        return not (self.positional and name in self.switches) or argument in ("true", "false")

    def _check_recipe(self, path: str) -> None:
        """Refuse a recipe that holds other things than settings, before jsonargparse sees it.

        It takes a text in place of a group of settings for a class, and imports its module, or for a
        file, and reads it: a recipe from elsewhere would run what it likes.
        """
        known = [name for name in self._names() if name != "recipe"]
        for name, value in read_recipe(path).items():
            if name in self.groups:
                self._check_group(f"{path}: {name}", name, value)
            elif name in PROGRAMS and name not in known:
                if value is not None:
                    raise UserError(
                        f"{path}: {name} is a program that would be run: give --{name} yourself"
                    )
            elif name not in known:
                own = self.short.get(f"--{name}")
                hint = f" Write {own}." if own else did_you_mean(str(name), known)
                raise UserError(f"{path}: unknown setting {name}.{hint}")
            elif isinstance(value, dict):
                raise UserError(f"{path}: {name} takes a value, and no settings below it")

    def _check_group(self, where: str, group: str, value: Any) -> None:
        takes = self.groups[group]
        if not isinstance(value, dict):
            raise UserError(f"{where} takes settings of its own: {', '.join(sorted(takes))}")
        for name, inner in value.items():
            if name not in takes:
                raise UserError(
                    f"{where}: unknown setting {group}.{name}.{did_you_mean(str(name), takes)}"
                )
            if isinstance(inner, dict):
                raise UserError(f"{where}: {name} takes a value, and no settings below it")

    def _one_line(self, message: str) -> str:
        line = " ".join(message.split())
        line = re.sub(r'Parser key "([^"]*)":', r"--\1:", line)
        line = re.sub(r"Expected an? <class '(\w+)'>\.", r"expected \1,", line)
        line = re.sub(r"Expected an? typing\.Literal\[(.*?)\]\.", r"expected one of \1,", line)
        line = line.replace("Got value:", "got")
        several = r"(--[\w.]+): Does not validate .*?Subtypes: \[(.*?)\] .*Given value: (.*)"
        if union := re.search(several, line):
            types = re.sub(r"<class '(\w+)'>|typing\.Literal\[(.*?)\]", r"\1\2", union[2])
            types = types.replace("NoneType", "null")
            line = f"{union[1]}: expected {types.replace(', ', ' or ')}, got {union[3]}"
        flag = r"unrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)'(?! was)"
        if unknown := re.search(flag, line):
            name = unknown[1] or unknown[2]
            line = f"unknown setting {name}.{did_you_mean(name, self._names())}"
        return f"{line} (see {self.parser.prog} --help)"

    def _names(self) -> list[str]:
        return [action.dest for action in self.parser._actions if action.dest != "help"]


def _loaded(name: str, value: str) -> Any:
    with prefixed(f"--{name} "):
        return load_yaml(value)


def pick(cls: type[_Settings], namespace: Any, **given: Any) -> _Settings:
    """Make the dataclass ``cls`` of those flags that are its fields, but for those that are ``given``.

    Raises:
        UserError: a number is out of its range, or a text empty.
    """
    found = {f.name: namespace[f.name] for f in dataclasses.fields(cls) if f.name not in given}  # type: ignore[arg-type]
    return cls(**found, **given)
