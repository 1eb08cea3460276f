"""Checks the headers of image files before a decoder spends memory or time on them.

Small files can be crafted that take gigabytes or minutes to decode: of huge size, of a million parts, or
with data that expand a thousandfold. Ordinary images are far below each limit here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

# Decoding takes up to 8 bytes per pixel.
MAX_PIXELS = 2**26
MAX_BYTES = 4 * MAX_PIXELS + 2**20
# Ratio of the sides: resizing the short one makes the long one longer by this factor.
MAX_ASPECT = 100
# Of a PNG: chunks before its second frame. Of a TIFF: strips or tiles.
MAX_PARTS = 2**18
# Of a JPEG: segments before its data (an ICC profile may have 255), and scans over the whole image (a
# progressive one has ten).
MAX_SEGMENTS, MAX_SCANS = 512, 100
# Of a GIF, before its first frame.
MAX_EXTENSIONS = 1024

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
# Bytes of a value of each TIFF type: 4 bytes in a file are 30 in one of Python's tuples.
_BYTES_OF = {**dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), 1)), 16: 8}
_TEXTS = (1, 2, 7)


def check_bytes(size: int) -> None:
    """Refuse a file of ``size`` bytes if that is too large for an image.

    Raises:
        ValueError: a short reason.
    """
    if size > MAX_BYTES:
        raise ValueError(
            f"it is {size / 1e6:,.0f} MB, above the limit of {MAX_BYTES / 1e6:.0f} MB: make it smaller"
        )


def check_size(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Refuse an image that would take too much memory when decoded or resized.

    Raises:
        ValueError: a short reason.
    """
    if width * height > most:
        raise ValueError(
            f"it has {width} x {height} pixels, above the limit of {most / 1e6:.0f} million: "
            "make it smaller"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"it has {width} x {height} pixels, above the limit of 1:{MAX_ASPECT} for its sides: crop it"
        )


def check_parts(content: bytes) -> None:
    """Refuse a PNG, TIFF or GIF of too many parts.

    Raises:
        ValueError: a short reason.
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(content)
    elif content.startswith((b"II", b"MM")):
        check_tiff(content)
    elif content.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(content)


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height from a JPEG's frame header, or None if it is no JPEG.

    Raises:
        ValueError: it has no frame header, or too many parts.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    frame = None
    for number, (marker, place) in enumerate(_jpeg_markers(content)):
        if number > MAX_SEGMENTS:
            raise ValueError(f"it has more than {MAX_SEGMENTS} segments: save it again")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not frame:
            frame = marker, *struct.unpack(">HHB", content[place + 3 : place + 8].ljust(5, b"\0"))
        if marker == 0xDA and frame:
            kind, height, width, components = frame
            # Only progressive images and those with a scan per component may have many.
            if kind > 0xC1 or content[place + 2 : place + 3] != bytes([components]):
                _check_scans(content)
            return width, height
    raise ValueError("the JPEG is truncated before its data, or has no size")


def _check_scans(content: bytes) -> None:
    # A quick count first, which also finds these bytes in thumbnails and films.
    if content.count(b"\xff\xda") > MAX_SCANS:
        scans = sum(marker == 0xDA for marker, _ in _jpeg_markers(content, gap=len(content)))
        if scans > MAX_SCANS:
            raise ValueError(f"it has {scans} scans, above the limit of {MAX_SCANS}: save it again")


def _jpeg_markers(content: bytes, gap: int = 1024) -> Iterator[tuple[int, int]]:
    """Yield each marker of a JPEG and the position after it, as libjpeg finds them.

    Stops at the first gap of ``gap`` bytes between two markers.
    """
    place = 2
    while found := _MARKER.search(content, place, place + gap):
        marker, place = found[1][0], found.end()
        yield marker, place
        if marker == 0xD9:
            return
        if not (0xD0 <= marker <= 0xD7 or marker == 0x01):  # these have no content
            place += max(2, int.from_bytes(content[place : place + 2], "big"))


def _check_png(content: bytes) -> None:
    place, animated, begun = 8, False, False
    for _ in range(MAX_PARTS):
        kind = content[place + 4 : place + 8]
        if len(kind) < 4 or kind == b"IEND" or (kind == b"fcTL" and animated and begun):
            return
        animated |= kind == b"acTL"
        begun |= kind == b"IDAT"
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    raise ValueError(f"it has more than {MAX_PARTS:,} chunks: save it again")


def check_tiff(content: bytes) -> None:
    """Refuse a TIFF, or EXIF data, whose tags hold too many values.

    Raises:
        ValueError: a short reason.
    """
    order = "<" if content.startswith(b"II") else ">"
    big = content[2:4] in (b"\x2b\0", b"\0\x2b")
    # Formats of the offset of the tags, of their number, and of a tag: id, type, count, offset of its values.
    place, number, entry = ("Q", "Q", "HHQQ") if big else ("L", "H", "HHLL")
    try:
        (first,) = struct.unpack_from(order + place, content, 8 if big else 4)
        (tags,) = struct.unpack_from(order + number, content, first)
        first += struct.calcsize(order + number)
        total = 0
        for i in range(min(tags, 2**16)):
            where = first + i * struct.calcsize(order + entry)
            _, kind, count, values = struct.unpack_from(order + entry, content, where)
            if kind not in _TEXTS and count > MAX_PARTS:
                raise ValueError(f"it has {count:,} values in one tag: save it again")
            size = count * _BYTES_OF.get(kind, 0)
            total += size if values + size <= len(content) else 0
            if total > 2 * len(content):
                raise ValueError("its tags repeat the same bytes: save it again")
    except (struct.error, OverflowError):
        return  # truncated, which the decoder will report


def _check_gif(content: bytes) -> None:
    colors = content[10:11]
    place = 13 + (3 << (colors[0] & 7) + 1 if colors and colors[0] & 0x80 else 0)
    for _ in range(MAX_EXTENSIONS):
        if content[place : place + 1] != b"!":
            return
        place += 2
        while length := int.from_bytes(content[place : place + 1], "big"):
            place += 1 + length
        place += 1
    raise ValueError(f"it has more than {MAX_EXTENSIONS} extensions: save it again")
