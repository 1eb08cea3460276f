"""Help texts of at most 80 columns: the flags used most come first, those used least last."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ecanet.aliases import SETTINGS
from ecanet.cli.commands import WITH_JSON
from ecanet.cli.flags import Flag, spelled

if TYPE_CHECKING:
    from ecanet.cli.options import SettingsParser

WIDTH = min(80, max(40, shutil.get_terminal_size().columns))
_COLUMN = 26  # where texts begin

# Headings in their order, and the classes of settings below each. What is not named is the command's own.
_SECTIONS = {
    "comparison": ("StudySettings", "Judging"),
    "sweep": ("SweepSettings",),
    "network": ("Architecture", "NewArchitecture", "Network", "DetectorShape"),
    "options": (),  # the command's own
    "training": ("Training", "ClassificationSettings", "DetectionSettings"),
    "images": ("Images", "CocoImages"),
    "optimizer": ("Optimizer", "DetectionOptimizer"),
    "learning rate schedule": ("Schedule", "DetectionSchedule"),
    "augmentation": ("Augmentation",),
    "fine-tuning": ("Transfer",),
    "splits": ("Splitting",),
    "machine": ("Machine", "Numerics", "Compilation"),
    "interruptions": ("Recovery",),
    "tracking": ("Tracking",),
}
_JSON = ("--json [FILE.json]", "Print results as JSON; FILE.json: also write them to a file.")
_GENERAL = [
    ("--print-config", "Print the settings as a YAML recipe and exit."),
    _JSON,
    ("-q, --quiet", "Print only results and errors."),
    ("-v, --verbose", "Print details, and where an error was raised."),
    ("-h, --help", "Print this help."),
]
_HEADINGS = {home: heading for heading, homes in _SECTIONS.items() for home in homes}


def command_help(parser: SettingsParser) -> str:
    """Return the help of a command."""
    positional = parser.positional
    flags = dict(parser.flags)
    parts = []
    usage = f"usage: {parser.prog} [flags]"
    if positional:
        own = flags.pop(positional)
        name = _placeholder(own)
        usage = f"usage: {parser.prog} [{name}{' ...' if own.is_list else ''}] [flags]"
        parts.append(("arguments", [(name, _text(own, parser.flags))]))
    sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _SECTIONS}
    for flag in flags.values():
        heading = _HEADINGS.get(flag.home, "options")
        sections[heading].append((_names(flag, parser.short), _text(flag, parser.flags)))
    parts += [(heading, rows) for heading, rows in sections.items() if rows]
    has_json = not WITH_JSON.isdisjoint(parser.prog.split())
    general = [one for one in _GENERAL if one is not _JSON or has_json]
    parts.append(("with every command", general))
    lines = [usage, "", *textwrap.wrap(parser.description, WIDTH)]
    lines += ["", *textwrap.wrap(
        "Write lists as a,b or a b. Flags may have _ for -; recipes have _.", WIDTH
    )]  # fmt: skip
    for heading, rows in parts:
        lines += ["", f"{heading}:", *table(rows)]
    return "\n".join(lines)


def table(rows: Iterable[tuple[str, str]], column: int = _COLUMN) -> list[str]:
    """Return lines of names and texts, the texts wrapped in a column of their own."""
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - column) or [""]
        names = textwrap.wrap(name, WIDTH - 2, initial_indent="  ", subsequent_indent="      ")
        if len(names) == 1 and len(names[0]) <= column - 2:
            lines.append(f"{names[0]:{column}}{wrapped.pop(0)}".rstrip())
        else:
            lines += names
        lines += [" " * column + line for line in wrapped]
    return lines


def commands_help(
    prog: str, groups: Mapping[str, Mapping[str, str]], *, title: str = "", end: Iterable[str] = ()
) -> str:
    """Return the help of a program: its commands, in groups, with a summary of each."""
    lines = [*textwrap.wrap(title, WIDTH), ""] if title else []
    lines += [f"usage: {prog} COMMAND [flags]"]
    column = 4 + max(len(name) for commands in groups.values() for name in commands)
    for heading, commands in groups.items():
        lines += ["", f"{heading}:", *table(commands.items(), column)]
    return "\n".join([*lines, "", *end])


def _placeholder(flag: Flag) -> str:
    return flag.value.removesuffix(",...")


def _names(flag: Flag, short: Mapping[str, str]) -> str:
    """Return a flag's spellings as help shows them: ``-m, --model NAME``, ``--lr, --optimizer.lr X``."""
    return f"{', '.join(option_strings(flag, short))} {flag.value}".rstrip()


def option_strings(flag: Flag, short: Mapping[str, str]) -> list[str]:
    """Return the spellings of a flag that help shows: ``-m`` and ``--model``."""
    letters = [one for one, name in short.items() if name == flag.name and len(one) == 2][:1]
    leaf = flag.name.rpartition(".")[2]
    own = [spelled(leaf)] if leaf != flag.name and SETTINGS.get(leaf) == flag.name else []
    names = [*letters, *own, flag.spelled]
    if flag.is_switch and flag.default is not False:
        group, dot, leaf = flag.name.rpartition(".")
        names.append(spelled(f"{group}{dot}no_{leaf}"))
    return names


def _text(flag: Flag, flags: Mapping[str, Flag]) -> str:
    """Return a flag's docstring with its choices and default, and with names of settings as flags.

    Names of one word are in backticks there.
    """

    def as_flag(name: re.Match[str]) -> str:
        word = name[0].strip("`")
        return spelled(word) if word in flags or SETTINGS.get(word) in flags else name[0]

    names = r"`[a-z]+`|\b(\w+\.)?[a-z]+_[a-z_]+\b|\b\w+\.lr\b"
    text = re.sub(names, as_flag, flag.text)
    if flag.words and not set(flag.words) <= set(_placeholder(flag).split("|")):
        text += f" One of {', '.join(flag.words)}."
    return text + _default(flag.default)


def _default(value: Any) -> str:
    """Return a default as a person would write it; "" where there is none to mention."""
    if value is None or value is False or value in ([], ""):
        return ""
    if value is True:
        return " (default: yes)"
    if isinstance(value, list):
        return f" (default: {','.join(map(str, value))})"
    return f" (default: {value:g})" if isinstance(value, float) else f" (default: {value})"
