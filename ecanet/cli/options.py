"""Dataclasses of settings as flags, recipes as their defaults, and errors of one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from ecanet.errors import UserError, did_you_mean

_RECIPES = Path(__file__).resolve().parents[1] / "recipes"
_Settings = TypeVar("_Settings")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def recipes() -> dict[str, str]:
    """Return the packaged recipes: name (``smoke/digits``) to the first line of its header."""
    return {
        str(path.relative_to(_RECIPES).with_suffix("")): path.read_text()
        .split("\n")[0]
        .lstrip("# ")
        for path in sorted(_RECIPES.rglob("*.yaml"))
    }


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which study: ``folder``, ``--storage`` and ``--study``."""
    parser.add_argument(
        "folder", nargs="?", metavar="STUDY", help="folder that was --out of a compare or a sweep"
    )
    parser.add_argument(
        "--storage", help="postgresql://… of a study that its folder does not tell of"
    )
    parser.add_argument(
        "--study", metavar="NAME", help="its name in that database; by default the folder's"
    )


@dataclasses.dataclass
class StudyCommand:
    """Where a study goes and how it is worked."""

    out: str = "study"
    """Folder of the study. The same command again goes on where it stopped."""
    storage: str | None = None
    """postgresql://user@host/database that holds the study, so that workers on several machines can join;
    by default it is a file in the folder."""
    study: str | None = None
    """Name of the study in that database; by default the folder's."""
    jobs: int | None = None
    """Runs that train at the same time on this machine; by default one a GPU, or one a CPU core."""


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
        skip: fields that are no flags here.
        short: other spellings of flags: ``{"-m": "model", "--lr": "optimizer.lr"}``.
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
        self.positional, self.short = positional, short or {}
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
        fields = {f.name: f for cls in reversed(settings) for f in dataclasses.fields(cls)}.values()
        self.switches = {field.name for field in fields if field.type in ("bool", "bool | None")}
        self.lists = {field.name for field in fields if str(field.type).startswith("list[")}
        names = self._names()
        self.named = {name.removesuffix(".name") for name in names if name.endswith(".name")}

    def parse(self, arguments: Sequence[str]) -> Any:
        """Return a namespace of flags, nested groups as their dataclasses.

        Raises:
            UserError: a flag or a value is wrong; the message is one line.
        """
        try:
            return self.parser.instantiate(self.parser.parse_args(self.spelled_out(arguments)))
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise UserError(self._one_line(str(error))) from None

    def spelled_out(self, arguments: Sequence[str]) -> list[str]:
        """Return the arguments as jsonargparse takes them: ``--name=value``, names in full.

        Raises:
            UserError: a recipe is named that is neither packaged nor a file.
        """
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
            if name in self.lists and has_value and not value.startswith("["):
                value = json.dumps([item.strip() for item in value.split(",") if item.strip()])
            if name in self.named and re.fullmatch(r"\w+", value):
                name, value = f"{name}.name", value.lower()
            if name == "recipe" and has_value:
                value = recipe_path(value)
            spelled += [f"--{name}={value}"] if has_value else [f"--{name}"]
        return [*spelled, f"--{self.positional}={json.dumps(several)}"] if several else spelled

    def _is_value(self, name: str, argument: str) -> bool:
        """Whether ``argument`` belongs to the flag before it."""
        if name == "help" or argument.startswith("--") or argument in self.short:
            return False
        # Where arguments stand without a flag, a switch takes none but true and false.
        return not (self.positional and name in self.switches) or argument in ("true", "false")

    def _one_line(self, message: str) -> str:
        line = " ".join(message.split())
        line = re.sub(r'Parser key "([^"]*)":', r"--\1:", line)
        line = re.sub(r"Expected an? <class '(\w+)'>\.", r"expected \1,", line)
        line = re.sub(r"Expected an? typing\.Literal\[(.*?)\]\.", r"expected one of \1,", line)
        line = line.replace("Got value:", "got")
        unknown = re.search(
            r"unrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)'(?! was)", line
        )
        if unknown:
            name = unknown[1] or unknown[2]
            line = f"unknown setting {name}.{did_you_mean(name, self._names())}"
        return f"{line} (see {self.parser.prog} --help)"

    def _names(self) -> list[str]:
        return [action.dest for action in self.parser._actions if action.dest not in ("help",)]


def pick(cls: type[_Settings], namespace: Any) -> _Settings:
    """Make the dataclass ``cls`` of those flags that are its fields."""
    return cls(**{f.name: namespace[f.name] for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


def recipe_path(name: str) -> str:
    """Return the path of a packaged recipe, or of a file.

    Raises:
        UserError: there is neither.
    """
    packaged = _RECIPES / f"{name}.yaml"
    if packaged.is_file():
        return str(packaged)
    if Path(name).is_file():
        return name
    raise UserError(f"no recipe or file {name!r}.{did_you_mean(name, recipes())}")
