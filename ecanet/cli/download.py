"""``ecanet download``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ecanet.cli.options import OneLineParser
from ecanet.cli.output import show

_LIST = Path(__file__).resolve().parents[1] / "data" / "downloads.yaml"


def run(arguments: list[str]) -> int:
    """Download released weights or a data set, resuming interrupted transfers; print the files' paths."""
    parser = OneLineParser(
        "ecanet download",
        description=run.__doc__,
        epilog=_names(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="what to download: one of those below")
    parser.add_argument(
        "--out", type=Path, help="folder (default: downloads in ecanet's cache, $ECANET_CACHE)"
    )
    parser.add_argument(
        "--mirror",
        help="base URL that serves the files under their names (default: $ECANET_MIRROR, or each "
        "file's own source)",
    )
    flags = parser.parse_args(arguments)

    from ecanet.data.download import download

    for path in download(flags.name, flags.out, mirror=flags.mirror):
        show(path)
    return 0


def _names() -> str:
    import yaml

    entries = yaml.safe_load(_LIST.read_text())
    lines = [
        f"  {name:22} {entry['file']}"
        + (f", {entry['size'] / 1e9:.1f} GB" if "size" in entry else "")
        for name, entry in entries.items()
    ]
    return "\n".join(["names:", *lines, f"  {'coco':22} all three of COCO"])
