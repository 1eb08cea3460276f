"""A look at some images before a run: how deep their pixels are, and whether they show anything."""

from __future__ import annotations

import logging
from collections import defaultdict

from ecanet.data.decode import Window, deep_range
from ecanet.data.stream import ImageList
from ecanet.errors import counted

log = logging.getLogger(__name__)

# Images that are looked at, evenly spaced.
LOOKED_AT = 64
# Share of the values from black to white in which there is nothing to see.
_DARK = 1 / 16


def look_at(images: ImageList, in_chans: int | None = None) -> None:
    """Log how deep pixels are read, and warn of images that are nearly black, of one color, or grey.

    Images that cannot be read are left to whoever reads them all. Photographs are settled by the first of
    them: of the others only headers are read.

    Args:
        images: of a split, as files; they are decoded with their window.
        in_chans: as given; None where grey images are worth a line.
    """
    sample = range(0, len(images), max(1, len(images) // LOOKED_AT))
    deep: dict[str, list[Window]] = defaultdict(list)
    decoded, one_color, grey = 0, True, True
    for index in sample:
        try:
            found = deep_range(images.read(index))
            if found or one_color or grey:
                pixels = images.image(index)
                decoded += 1
                one_color &= bool((pixels == pixels[:, :1, :1]).all())
                grey &= bool((pixels == pixels[:1]).all())
        except ValueError:
            continue
        if found:
            deep[found[0]].append(found[1:])
    looked = f"the {counted(len(sample), 'image')} looked at"
    for kind, ranges in deep.items():
        _report_depth(kind, ranges, images.window, looked)
    if images.window and not deep:
        log.warning(f"--window has no effect: none of {looked} is grey with more than 8 bits")
    if decoded and one_color:
        log.warning(
            f"each of {looked} has a single color (first: {images.files[sample[0]]}), so there is nothing to "
            "see. For files of more than 8 bits, --window LOW,HIGH gives the values of black and white"
        )
    elif decoded and grey and in_chans is None:
        log.info(f"all of {looked} are grey: --in-chans 1 gives the network one input channel")


def _report_depth(kind: str, ranges: list[Window], window: Window | None, looked: str) -> None:
    """Log how pixels of a kind become 8 bits, and warn if they lose most of their contrast."""
    low, high = min(least for least, _ in ranges), max(most for _, most in ranges)
    black, white = window or (0, 1 if kind == "floating-point" else 2 ** int(kind[:2]) - 1)
    log.info(
        f"{len(ranges)} of {looked} have {kind} pixels, with values from {low:g} to {high:g}: "
        f"{black:g} becomes black and {white:g} white"
    )
    seen = min(high, white) - max(low, black)
    if seen < _DARK * (white - black):
        log.warning(
            f"the {kind} pixels lose most of their contrast in 8 bits: --window {low:g},{high:g} maps "
            "their own range to black and white"
        )
