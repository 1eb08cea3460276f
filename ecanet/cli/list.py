"""``ecanet list``."""

from __future__ import annotations

import ecanet
from ecanet.cli.options import OneLineParser
from ecanet.cli.output import show
from ecanet.recipe_file import recipes


def parser() -> OneLineParser:
    """Return the command's parser."""
    parser = OneLineParser("ecanet list", description=run.__doc__)
    parser.add_argument("what", choices=["attention", "models", "recipes"])
    return parser


def run(arguments: list[str]) -> int:
    """List attention modules, models or recipes, one per line."""
    flags = parser().parse_args(arguments)
    if flags.what == "recipes":
        width = max(map(len, recipes()))
        show("\n".join(f"{name:{width}}  {header}" for name, header in recipes().items()))
    else:
        names = ecanet.list_attention() if flags.what == "attention" else ecanet.list_models()
        show("\n".join(names))
    return 0
