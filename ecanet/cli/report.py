"""``ecanet report``."""

from __future__ import annotations

from ecanet.cli.options import OneLineParser, add_study_arguments
from ecanet.cli.output import show


def run(arguments: list[str]) -> int:
    """Make the report of a study from what is there, be it finished or still running."""
    parser = OneLineParser("ecanet report", description=run.__doc__)
    add_study_arguments(parser)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the report goes; by default report/ in the study's folder",
    )
    flags = parser.parse_args(arguments)

    from ecanet.experiments.cells import report

    show(report(flags.folder, storage=flags.storage, name=flags.study, out=flags.out))
    return 0
