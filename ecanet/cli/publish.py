"""``ecanet publish``."""

from __future__ import annotations

from ecanet.cli.options import OneLineParser
from ecanet.cli.output import say, show
from ecanet.inputs import RUNS, check_weights


def parser() -> OneLineParser:
    """Return the command's parser."""
    parser = OneLineParser("ecanet publish", description=run.__doc__)
    parser.add_argument(
        "source", metavar="SOURCE", help="file of weights, or the folder of a run or a study"
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="PLACE",
        help="new folder to write, or hf-hub:OWNER/NAME to push to the Hub",
    )
    parser.add_argument(
        "--license",
        required=True,
        metavar="NAME",
        help="license of the weights, as named on the Hub: mit, apache-2.0, cc-by-4.0, other",
    )
    parser.add_argument(
        "--private", action="store_true", help="make the repository private if it is new"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files without writing or sending them"
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file that registers the attention module of the weights",
    )
    return parser


def run(arguments: list[str]) -> int:
    """Write weights with a model card to a folder, or push them to the Hugging Face Hub."""
    flags = parser().parse_args(arguments)
    check_weights(flags.source, RUNS)

    from ecanet.experiments.publish import publish

    published = publish(
        flags.source,
        flags.to,
        license=flags.license,
        private=flags.private,
        dry_run=flags.dry_run,
        plugin=flags.plugin,
    )
    for name, size in published.files.items():
        say(f"{name}  {size:,} bytes")
    if flags.dry_run:
        say("nothing was written")
    else:
        show(published.place)
    return 0
