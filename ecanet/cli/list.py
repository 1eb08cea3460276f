"""``ecanet list``."""

from __future__ import annotations

import re
import sys

from ecanet.cli.options import OneLineParser
from ecanet.cli.output import result, show
from ecanet.names import built_in_attention, our_models
from ecanet.recipe_file import recipes

_KINDS = ("attention", "models", "recipes")
_VENUE = re.compile(r"^Paper: .*?\b(\w+ (?:19|20)\d\d)\b(?!\.)", re.DOTALL | re.MULTILINE)


def parser() -> OneLineParser:
    """Return the command's parser."""
    parser = OneLineParser("ecanet list", description=run.__doc__)
    parser.add_argument(
        "what", nargs="?", choices=_KINDS, help="what to list; by default all three"
    )
    return parser


def run(arguments: list[str]) -> int:
    """List attention modules, models and recipes, one per line."""
    what = parser().parse_args(arguments).what
    result({kind: _rows(kind) for kind in ([what] if what else _KINDS)})
    parts = []
    for kind in [what] if what else _KINDS:
        lines = [] if what else [f"{kind}:"]
        parts.append("\n".join(lines + _lines(_rows(kind))))
    show("\n\n".join(parts))
    return 0


def _rows(kind: str) -> dict[str, str]:
    """Return the names of a kind, and what each is."""
    if kind == "attention":
        return {name: _summary(text) for name, text in built_in_attention().items()}
    if kind == "models":
        return our_models() | {"...": "every CNN of timm by its name, and torchvision/NAME"}
    return recipes()


def _summary(docstring: str) -> str:
    """Return the first line of an attention module's docstring, with where its paper appeared."""
    venue = _VENUE.search(docstring)
    first = docstring.partition("\n")[0].rstrip(".")
    return f"{first} ({venue[1]})" if venue else first


def _lines(rows: dict[str, str]) -> list[str]:
    """Return a line for each name, wrapped on a terminal; elsewhere programs may read them."""
    width = max(map(len, rows)) + 2
    if not sys.stdout.isatty():
        return [f"{name:{width}}{text}" for name, text in rows.items()]
    from ecanet.cli.help import table

    return [line.removeprefix("  ") for line in table(rows.items(), width + 2)]
