"""``ecanet list``."""

from __future__ import annotations

from ecanet.cli.options import OneLineParser, recipes
from ecanet.cli.output import show


def run(arguments: list[str]) -> int:
    """List attention modules, models or recipes, one per line."""
    parser = OneLineParser("ecanet list", description=run.__doc__)
    parser.add_argument("what", choices=["attention", "models", "recipes"])
    flags = parser.parse_args(arguments)
    if flags.what == "recipes":
        show("\n".join(f"{name:20} {header}" for name, header in recipes().items()))
    elif flags.what == "attention":
        from ecanet.attention import list_attention

        show("\n".join(list_attention()))
    else:
        from ecanet.models import list_models

        show("\n".join(list_models()))
    return 0
