"""Dataclasses of settings as flags, recipes as their defaults, and errors of one line."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, NoReturn, TypeVar, cast

import yaml

from ecanet.aliases import FLAGS
from ecanet.cli.flags import Flag, default_of, flags_of
from ecanet.cli.flags import spelled as spelled_flag
from ecanet.cli.help import WIDTH, command_help
from ecanet.config import Architecture, ProfileSettings
from ecanet.errors import UserError, did_you_mean, first_of, listed, nearest, prefixed
from ecanet.names import check_names
from ecanet.plugins import check_trust
from ecanet.recipe_file import PROGRAMS, STORAGE, read_recipe, recipe_path
from ecanet.typed import field_types
from ecanet.yaml_file import check_bounds, load_yaml

_Settings = TypeVar("_Settings")

# Lists that grow with each flag, as files of programs and names of models do elsewhere.
_JOINED = {"plugin", "set", "model"}
# Settings whose value is a name, whatever YAML makes of it.
_PATHS = {"out", "data", "weights", "backbone_weights"}
_NULLS = {"null", "Null", "NULL", "~"}
# Settings of earlier versions.
_RENAMED = {"skip_corrupt": "--corrupt skip", "corrupt replace": "--corrupt skip"}

_PRINT = "print_config"
_SWITCHES = ("true", "false", "null")
_COMPILE = ("auto", "on", "off")


@functools.cache
def _jsonargparse() -> Any:
    """Return jsonargparse, set up to read the values of flags within the bounds of YAML from elsewhere."""
    import jsonargparse

    load = jsonargparse.get_loader("yaml")

    def load_bounded(text: str) -> Any:
        try:
            check_bounds(text)
        except UserError as error:  # what is beyond bounds stays the text it is
            raise yaml.YAMLError(str(error)) from None
        return load(text)

    jsonargparse.set_loader("yaml", load_bounded, exceptions=(yaml.YAMLError,))
    return jsonargparse


class _Formatter(argparse.HelpFormatter):
    """Fits every screen; paragraphs with indented lines keep their breaks."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=WIDTH)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.split("\n\n")
        return "\n\n".join(p if "\n  " in p else fill(p, width, indent) for p in paragraphs)


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like all others, and whose help fits the screen."""

    def __init__(self, prog: str, **options: Any) -> None:
        options["description"] = inspect.cleandoc(options.get("description") or "")
        super().__init__(prog, formatter_class=_Formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which study: ``folder``, ``--storage`` and ``--study``."""
    parser.add_argument(
        "folder", nargs="?", metavar="STUDY", help="folder of the study: --out of compare or sweep"
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="database, postgresql://…, if the study's folder does not name it",
    )
    parser.add_argument(
        "--study",
        metavar="NAME",
        help="name of the study in that database; by default the folder's",
    )


_TRUSTS = "trust_plugins"
TRUST = "also run plugins, which are programs, that only {} names"
_TRUST = Flag(_TRUSTS, bool, False, "", f"{TRUST.format('a recipe or a study').capitalize()}.")
_RECIPE = Flag(
    "recipe", str, None, "",
    "YAML file of settings, or a name from `ecanet list recipes`. Flags after it override it.",
)  # fmt: skip


@dataclasses.dataclass
class StudyCommand:
    """Where a study is written and how it runs."""

    out: str = "study"
    """Folder of the study. Running the same command again resumes it."""
    database: str | None = None
    """Database for the study, postgresql://user@host/database, so that workers on several machines can join.
    By default it is a file in the folder. --storage takes it, too."""
    study: str | None = None
    """Name of the study in that database; by default the folder's."""
    dry_run: bool = False
    """Estimate time and memory and exit, without training or writing anything."""
    jobs: int | None = None
    """Number of runs to train at the same time on this machine. By default as many as keep each GPU busy, or
    one per CPU core, if memory suffices."""


class SettingsParser:
    """A parser whose flags are the fields of dataclasses, for one command.

    On top of jsonargparse's spelling it takes hyphens, ``--pretrained`` for ``--pretrained true`` and
    ``--no-channels-last`` for ``false``, lists as ``a,b``, ``a b`` or ``[a, b]``, ``--optimizer=Adam`` for
    ``--optimizer.name=adam``, and the name of a packaged recipe for its path. A list of words ends at the
    next flag, or with the first word if that holds a comma.

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
        self.prog, self.description, self.positional = prog, description, positional
        self.settings, self.skip = settings, skip
        self.flags = {"recipe": _RECIPE, **flags_of(*settings, skip=skip)}
        if "plugin" in self.flags:
            self.flags[_TRUSTS] = _TRUST
        self.short = {flag: name for flag, name in FLAGS.items() if name in self.flags}
        self.short |= short or {}
        self.groups: dict[str, set[str]] = {}
        for name in self.flags:
            group, dot, leaf = name.partition(".")
            if dot:
                self.groups.setdefault(group, set()).add(leaf)
        self.named = {group for group, leaves in self.groups.items() if "name" in leaves}
        self._greedy = ""

    @functools.cached_property
    def parser(self) -> Any:
        """jsonargparse's parser, which is made when there is something to parse."""
        jsonargparse = _jsonargparse()
        parser = jsonargparse.ArgumentParser(
            prog=self.prog, exit_on_error=False, allow_abbrev=False, add_help=False
        )
        parser.add_argument("--recipe", action="config")
        known = set(self.skip)
        for cls in self.settings:
            for name, hint in field_types(cast(Any, cls)).items():
                if name in known:
                    continue
                known.add(name)
                if dataclasses.is_dataclass(hint):
                    parser.add_class_arguments(hint, name)
                else:
                    parser.add_argument(f"--{name}", type=hint, default=default_of(cls, name))
        if _TRUSTS in self.flags:
            parser.add_argument(f"--{_TRUSTS}", type=bool, default=False)
        return parser

    def parse(self, arguments: Sequence[str]) -> Any:
        """Return a namespace of flags, nested groups as their dataclasses; or print the help and exit.

        Raises:
            UserError: a flag or a value is wrong, or a recipe names a plugin that no flag does; the
                message is one line.
        """
        if {"-h", "--help"} & set(arguments):
            print(command_help(self))
            raise SystemExit(0)
        spelled = self.spelled_out(arguments)
        for argument in spelled:
            name, _, value = argument.removeprefix("--").partition("=")
            if name == "recipe" and value:
                self._check_recipe(value)
            elif name in self.groups:
                self._check_group(spelled_flag(name), name, _loaded(name, value))
        try:
            found = self.parser.instantiate(self.parser.parse_args(spelled))
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise UserError(self._one_line(str(error)) + self._greedy) from None
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
        if any(issubclass(cls, (Architecture, ProfileSettings)) for cls in self.settings):
            try:
                check_names(found.model, found.attention, found.plugin)
            except UserError as error:
                raise UserError(f"{error}{self._greedy}") from None
        return found

    def spelled_out(self, arguments: Sequence[str]) -> list[str]:
        """Return the arguments as jsonargparse takes them: ``--name=value``, names in full.

        Raises:
            UserError: there is no such flag, or a recipe is named that is neither packaged nor a file.
        """
        spelled: dict[
            str, str
        ] = {}  # by name; what is given last is valid, and recipes stand in order
        lists: dict[str, list[str]] = {}
        alone: list[str] = []
        rest = list(arguments)
        self._greedy = greedy = ""
        while rest:
            argument = rest.pop(0)
            if argument == "--":
                alone += rest
                break
            if not _is_flag(argument):
                alone.append(argument)
                continue
            flag, equals, value = argument.partition("=")
            name, switched = self._name(flag)
            values = [value] if equals else self._values(name, rest)
            if len(values) > 1:
                greedy = f"{flag} {values[-1]}"
            if switched is not None and not values:
                values = [switched]
            value = values[0] if values else ""
            if name == "storage" and "database" in self.flags and value not in STORAGE:
                if "://" not in value:  # not repeated: it may hold a password
                    raise UserError(
                        "--storage takes auto, memory or stream, or postgresql://user@host/database"
                    )
                name = "database"
            for old in (name, f"{name} {value}"):
                if old in _RENAMED:
                    raise UserError(f"{spelled_flag(old)} is now {_RENAMED[old]}")
            if name not in self.flags and name not in self.groups and name != _PRINT:
                raise self._unknown(flag)
            if name == "compile" and not values:
                values = ["on"]
            elif name in self.flags and self.flags[name].is_list and values:
                if not value.startswith("["):
                    # Of other flags that are given twice, the last is valid.
                    before = lists.get(name, []) if name in _JOINED else []
                    lists[name] = [*before, *_items(name, values)]
                    values = [json.dumps(lists[name])]
            elif name in self.named and re.fullmatch(r"\w+", value):
                name, values = f"{name}.name", [value.lower()]
            elif name == "recipe" and values:
                values = [recipe_path(value)]
            if name in _PATHS and values and values[0] in _NULLS:
                values = [f"./{values[0]}"]  # a file or folder of this name, and not no value
            spelled.pop(name, None)
            spelled[name] = f"--{name}={values[0]}" if values else f"--{name}"
        if alone:
            spelled |= self._alone(alone)
        elif greedy and self.positional and self.positional not in spelled:
            self._greedy = (
                f" A list takes everything up to the next flag: if {greedy.rpartition(' ')[2]} is "
                f"{self.positional.upper()}, give it first."
            )
        return list(spelled.values())

    def _name(self, flag: str) -> tuple[str, str | None]:
        """Return the setting of a flag, and the value of a switch that is given without one."""
        written = flag.replace("_", "-")
        for spelling in (flag, written, f"--{written[2:].replace('-', '_')}"):
            if spelling in self.short:
                name = self.short[spelling]
                break
        else:
            name = flag.lstrip("-").replace("-", "_")
        if name in self.flags and self.flags[name].is_switch:
            return name, "true"
        group, dot, leaf = name.rpartition(".")
        positive = f"{group}{dot}{leaf.removeprefix('no_')}"
        if name not in self.flags and positive in self.flags and self.flags[positive].is_switch:
            return positive, "false"
        return name, None

    def _values(self, name: str, rest: list[str]) -> list[str]:
        """Take the values of a flag from the arguments behind it."""
        flag, taken = self.flags.get(name), list[str]()
        if name == _PRINT:
            return taken
        while rest and not _is_flag(rest[0]):
            if flag and flag.is_switch and rest[0].lower() not in _SWITCHES:
                break
            if name == "compile" and rest[0].lower() not in (*_SWITCHES, *_COMPILE):
                break
            if taken and name == "plugin" and not rest[0].endswith(".py"):
                break
            taken.append(rest.pop(0))
            whole = taken[0].startswith("[") or (self.positional and "," in taken[0])
            if not (flag and flag.is_list) or whole:
                break
        return taken

    def _alone(self, values: list[str]) -> dict[str, str]:
        """Return the argument for what stands without a flag."""
        name = self.positional
        if name is None:
            raise UserError(
                f"{self.prog} takes flags alone, got {values[0]} (see {self.prog} --help)"
            )
        if self.flags[name].is_list:
            # Of a file whose name holds a comma there are no several.
            return {name: f"--{name}={json.dumps(values)}"}
        if len(values) > 1:
            raise UserError(f"{self.prog} takes one {name.upper()}, got {listed(values)}")
        value = f"./{values[0]}" if name in _PATHS and values[0] in _NULLS else values[0]
        return {name: f"--{name}={value}"}

    def _unknown(self, flag: str) -> UserError:
        """Return the error for a flag that this command does not have, with what may be meant."""
        name = flag.lstrip("-").replace("-", "_")
        leaves = {
            full.rpartition(".")[2]: full for full in self.flags if not full.endswith(".name")
        }
        known = {alias.lstrip("-"): to for alias, to in self.short.items() if len(alias) > 2}
        known = {**leaves, **known, **{full: full for full in self.flags}}
        near = [name] if name in known else nearest(name, known)
        line = f"unknown flag {flag}"
        if name not in known:
            from ecanet.cli.commands import with_flag

            others = [f"ecanet {other}" for other in with_flag(name)]
            if others:
                line = f"{flag} is a flag of {first_of(others, 3)}, and not of {self.prog}"
        means = list(dict.fromkeys(spelled_flag(known[one]) for one in near))
        hint = f". Did you mean {', '.join(means)}?" if means else ""
        return UserError(f"{line}{hint} (see {self.prog} --help)")

    def _check_recipe(self, path: str) -> None:
        """Refuse a recipe that holds other things than settings, before jsonargparse sees it.

        It takes a text in place of a group of settings for a class, and imports its module, or for a
        file, and reads it: a recipe from elsewhere would run what it likes.
        """
        known = [name for name in self.flags if name != "recipe"]
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
        line = re.sub(r"^--[\w.]+", lambda found: found[0].replace("_", "-"), line)
        return f"{line} (see {self.prog} --help)"


def _is_flag(argument: str) -> bool:
    """Whether an argument is a flag; -1 and -1000,400 are values."""
    return re.match(r"--.|-[A-Za-z]", argument) is not None


def _items(name: str, values: list[str]) -> list[str]:
    """Return the items of a list's values, which commas may separate; a file may have one in its name."""
    found = []
    for value in values:
        whole = name in _PATHS and os.path.exists(os.path.expanduser(value))
        found += [value] if whole else [item.strip() for item in value.split(",") if item.strip()]
    return found


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
