"""``ecanet completion``."""

from __future__ import annotations

import argparse
from typing import Any

from ecanet.cli import commands
from ecanet.cli.flags import Flag
from ecanet.cli.help import option_strings
from ecanet.cli.options import OneLineParser, SettingsParser
from ecanet.cli.output import show
from ecanet.errors import UserError
from ecanet.names import built_in_attention, our_models
from ecanet.recipe_file import recipes

_SHELLS = ("bash", "zsh", "tcsh")


def parser() -> OneLineParser:
    """Return the command's parser."""
    parser = OneLineParser("ecanet completion", description=run.__doc__)
    parser.add_argument("shell", choices=_SHELLS)
    return parser


def run(arguments: list[str]) -> int:
    """Print a script that makes a shell complete commands, flags and names.

    bash: eval "$(ecanet completion bash)" in ~/.bashrc; zsh: ecanet completion zsh >DIR/_ecanet, where DIR
    is one of $fpath.
    """
    shell = parser().parse_args(arguments).shell
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs shtab: pip install 'ecanet[completion]'") from None
    show(shtab.complete(_tree(shtab), shell))
    return 0


def _tree(shtab: Any) -> argparse.ArgumentParser:
    """Return all commands as one parser of argparse, from which shtab makes its script."""
    top = argparse.ArgumentParser("ecanet")
    outer = top.add_subparsers()
    inner: dict[str, Any] = {}
    for own in commands.parsers():
        first, _, second = own.prog.removeprefix("ecanet ").partition(" ")
        if not second:
            target, name = outer, first
        else:
            if first not in inner:
                group = outer.add_parser(first, help=commands.COMMANDS[first])
                inner[first] = group.add_subparsers()
            target, name = inner[first], second
        summary = commands.COMMANDS[first] if not second else (own.description or "").split(".")[0]
        if isinstance(own, SettingsParser):
            _add_flags(shtab, target.add_parser(name, help=summary), own)
        else:
            target.add_parser(name, help=summary, parents=[own], add_help=False)
    return top


def _add_flags(shtab: Any, parser: argparse.ArgumentParser, own: SettingsParser) -> None:
    for flag in own.flags.values():
        spellings, text = option_strings(flag, own.short), flag.text.replace("%", "%%")
        if flag.is_switch:
            action = parser.add_argument(*spellings, action="store_true", help=text)
        else:
            choices = _choices(flag)
            action = parser.add_argument(*spellings, choices=choices, help=text)
            if choices is None:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        if flag.name == own.positional:
            positional = parser.add_argument(flag.name, nargs="*")
            positional.complete = shtab.FILE  # type: ignore[attr-defined]


def _choices(flag: Flag) -> list[str] | None:
    """Return the values that a shell offers, if they are known."""
    if flag.name == "attention":
        return list(built_in_attention())
    if flag.name == "model":
        return list(our_models())
    return list(recipes()) if flag.name == "recipe" else flag.words or None
