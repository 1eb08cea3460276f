"""``ecanet download``."""

from __future__ import annotations

from pathlib import Path

from ecanet.cli.options import OneLineParser
from ecanet.cli.output import show
from ecanet.names import check_download, downloads


def parser() -> OneLineParser:
    """Return the command's parser."""
    parser = OneLineParser(
        "ecanet download",
        description=run.__doc__,
        epilog=_names(),
    )
    parser.add_argument("name", metavar="NAME", help="what to download: one of the names below")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder to download to (default: downloads in ecanet's cache, $ECANET_CACHE)",
    )
    parser.add_argument(
        "--mirror",
        metavar="URL",
        help="base URL to download the files from by name (default: $ECANET_MIRROR, or the original "
        "source of each file)",
    )
    return parser


def run(arguments: list[str]) -> int:
    """Download released weights or a data set, and print the paths. Interrupted downloads are resumed."""
    flags = parser().parse_args(arguments)

    check_download(flags.name)

    from ecanet.data.download import download

    for path in download(flags.name, flags.out, mirror=flags.mirror):
        show(path)
    return 0


def _names() -> str:
    entries = downloads()
    lines = [
        f"  {name:22} {entry['file']}"
        + (f", {entry['size'] / 1e9:.1f} GB" if "size" in entry else "")
        for name, entry in entries.items()
    ]
    return "\n".join(["names:", *lines, f"  {'coco':22} all three of COCO"])
