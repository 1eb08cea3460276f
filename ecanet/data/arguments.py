"""Image files as arguments name them: files, folders and glob patterns."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from pathlib import Path

from ecanet.data.decode import read_errors
from ecanet.data.folder import images_below
from ecanet.data.formats import ENDINGS, is_ignored, unread_line
from ecanet.errors import UserError

log = logging.getLogger(__name__)


def named_files(
    name: str, endings: Sequence[str] = ENDINGS, *, subfolders: bool = False
) -> list[Path]:
    """Return the files of a name: itself, the images of a folder, or the matches of a glob pattern.

    Args:
        endings: of the images of a folder, in lower case.
        subfolders: include those of a folder, as :func:`ecanet.data.folder.images_below` does, for images
            alone.

    Raises:
        UserError: there is none, or a folder cannot be read.
    """
    path, others = Path(name).expanduser(), list[str]()
    with read_errors(path):
        if path.is_file():
            return [path]
        if path.is_dir():
            if subfolders:
                found, others = images_below(path, ".")
                files = [path / file for file in found]
            else:
                there = sorted(p for p in path.iterdir() if not is_ignored(p.name))
                files = [p for p in there if p.suffix.lower() in endings]
                others = [p.name for p in there if p not in files]
        else:
            matches = map(Path, glob.glob(str(path), recursive=True))
            files = sorted(p for p in matches if p.is_file())
    unread = unread_line(others)
    if not files:
        where = "in the folder " if path.is_dir() else ""
        raise UserError(f"there is no image {where}{name}{unread and f'; {unread}'}")
    if unread:
        log.warning(f"{name}: {unread}")
    return files
