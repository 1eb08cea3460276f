"""``ecanet report``."""

from __future__ import annotations

from typing import get_args

from ecanet.cli.options import OneLineParser, add_study_arguments
from ecanet.cli.output import show
from ecanet.errors import UserError, did_you_mean
from ecanet.inputs import check_study


def parser() -> OneLineParser:
    """Return the command's parser."""
    parser = OneLineParser("ecanet report", description=run.__doc__)
    add_study_arguments(parser)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="folder for the report; by default report/ in the study's folder",
    )
    parser.add_argument(
        "--format",
        metavar="FORMATS",
        help="also write files for papers and print their paths: latex, markdown (tables), svg, pdf "
        "(figures), methods (text and BibTeX); several with commas, or all",
    )
    return parser


def run(arguments: list[str]) -> int:
    """Write the report of a study, finished or still running."""
    flags = parser().parse_args(arguments)

    check_study(flags.folder, flags.storage)
    from ecanet.experiments.cells import report, report_for_papers
    from ecanet.experiments.report.page import PaperFormat

    where = {"storage": flags.storage, "name": flags.study, "out": flags.out}
    if flags.format is None:
        show(report(flags.folder, **where))
        return 0
    known = get_args(PaperFormat)
    wanted = list(dict.fromkeys(name.strip() for name in flags.format.split(",")))
    for name in wanted:
        if name not in (*known, "all"):
            raise UserError(
                f"--format {name}: take {', '.join(known)} or all.{did_you_mean(name, known)}"
            )
    for path in report_for_papers(flags.folder, None if "all" in wanted else wanted, **where):
        show(path)
    return 0
