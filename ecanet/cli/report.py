"""``ecanet report``."""

from __future__ import annotations

from pathlib import Path

from ecanet.cli.options import OneLineParser


def run(arguments: list[str]) -> int:
    """Make the report of a study from what is there, be it finished or still running."""
    parser = OneLineParser("ecanet report", description=run.__doc__)
    parser.add_argument("study", type=Path, help="folder that was --out of a compare")
    flags = parser.parse_args(arguments)

    from ecanet.experiments import report

    print(report(flags.study))
    return 0
