"""Which files are taken for images, and which formats are read: two need a library that may be absent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from PIL import features

from ecanet.errors import counted, first_of

try:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    _HAS_HEIF = True
except (ImportError, OSError):  # absent, or a library of its own is
    _HAS_HEIF = False
_HAS_AVIF = "avif" in features.modules and features.check_module("avif")


class _Optional(NamedTuple):
    format: str
    endings: tuple[str, ...]
    is_read: bool
    command: str
    """Installs what reads it."""


_OPTIONAL = (
    _Optional("AVIF", (".avif",), _HAS_AVIF, "pip install --upgrade 'pillow>=11.3'"),
    _Optional("HEIF", (".heic", ".heif", ".hif"), _HAS_HEIF, "pip install 'ecanet[heic]'"),
)
_READ = tuple(kind for kind in _OPTIONAL if kind.is_read)

# Accepted formats, whatever the file name. For some others PIL would start programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", *(kind.format for kind in _READ))
# Of files that are taken for images, in lower or upper case.
ENDINGS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    *(ending for kind in _READ for ending in kind.endings),
)  # fmt: skip

# What file servers, cameras and systems leave in folders: thumbnails, deleted files, snapshots. Names that
# start with a dot, such as .thumbnails and the ._ files of macOS, are hidden and ignored anyway.
_LEFTOVERS = frozenset({
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "lost.dir", "network trash folder", "temporary items",
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini",
})  # fmt: skip


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name, without its path, is hidden or a leftover of a system."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def unread_line(names: Iterable[str]) -> str:
    """Return a line on those files that are images of a format that is not read here; "" if there are none.

    It counts and names them, and gives the command that installs what reads them.
    """
    names, lines = list(names), []
    for kind in _OPTIONAL:
        found = [name for name in names if name.lower().endswith(kind.endings)]
        if found and not kind.is_read:
            lines.append(
                f"{counted(len(found), f'{kind.format} image')} cannot be read here "
                f"({first_of(found, 3)}): {kind.command}"
            )
    return "; ".join(lines)
