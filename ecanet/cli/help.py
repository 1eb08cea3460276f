"""Help texts of at most 80 columns: what people use most stands first, what they seldom need last."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ecanet.aliases import SETTINGS
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
_GENERAL = [
    ("--print-config", "Print the settings as YAML, a recipe, and exit."),
    ("--json [FILE.json]", "Print results as JSON, or write them to a file as well."),
    ("-q, --quiet", "Print results and errors alone."),
    ("-v, --verbose", "Print details, and where an error was raised."),
    ("-h, --help", "Print this text."),
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
    parts.append(("with every command", _GENERAL))
    lines = [usage, "", *textwrap.wrap(parser.description, WIDTH)]
    lines += ["", *textwrap.wrap(
        "Lists are written a,b or a b. Flags may have _ for -, and also stand in a recipe.", WIDTH
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
    """Return a flag's docstring with the names of others as flags, and its choices and default."""

    def as_flag(name: re.Match[str]) -> str:
        return spelled(name[0]) if name[0] in flags else name[0]

    text = re.sub(r"\b(\w+\.)?[a-z]+_[a-z_]+\b|\b\w+\.lr\b", as_flag, flag.text)
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
