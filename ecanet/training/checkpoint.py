"""Crash-safe checkpoints: atomic writes, content hash in the name, the previous one kept.

A checkpoint's name holds where in the run it was made and the hash of its content:
``epoch0003-return0-step000250-0123456789abcdef.ckpt``, after how many returns to a good state within the
epoch. It is written beside the others and then renamed, and the older ones are deleted after that; whatever
happens, the last good one is there.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ecanet.files import set_aside, write_atomic

log = logging.getLogger(__name__)

# One to resume from, and one more should the disk spoil it.
KEEP = 2
# Older versions did not name the returns.
_NAME = re.compile(r"epoch(\d+)(?:-return(\d+))?-step(\d+)-([0-9a-f]{16})\.ckpt")


def save_checkpoint(
    folder: Path,
    place: tuple[int, int, int],
    state: dict[str, Any],
    before_write: Callable[[], None] = lambda: None,
) -> Path:
    """Save a state, and delete all but the last two.

    Args:
        place: where in the run it was made: the epoch, returns to a good state within it, and steps done.
        state: tensors and plain values.
        before_write: called when the state is in bytes, which may take seconds; what it raises is raised.

    Raises:
        OSError: the disk is full; the checkpoints before this one are intact.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    epoch, returns, step = place
    path = folder / f"epoch{epoch:04d}-return{returns}-step{step:06d}-{_digest(content)}.ckpt"
    before_write()
    write_atomic(path, content)
    for old in _sorted(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path, *, repair: bool = True) -> tuple[Path, dict[str, Any]] | None:
    """Return the last good checkpoint in ``folder``, its file and its state; None if there is none.

    Nothing is ever unpickled but tensors and plain values.

    Args:
        folder: of the checkpoints.
        repair: set aside those whose content does not fit the hash in their name; another process of the run
            does it otherwise.
    """
    for path in _sorted(folder):
        content = _good_content(path)
        if content is not None:
            return path, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if repair and os.path.lexists(path):
            aside = set_aside(path).name
            log.warning("%s is damaged: renamed to %s; using the checkpoint before it", path, aside)
    return None


def is_damaged(path: Path) -> bool:
    """Whether a file has the name of a checkpoint, and another content than was saved under it."""
    return _NAME.fullmatch(path.name) is not None and _good_content(path) is None


def _good_content(path: Path) -> bytes | None:
    """Return what was saved under the name, None if that is not what can be read there."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    try:
        content = path.read_bytes()
    except PermissionError:
        raise
    except OSError:
        # A folder, a bad sector, or set aside by another process.
        return None
    return content if _digest(content) == match[4] else None


def _sorted(folder: Path) -> list[Path]:
    """The checkpoints, the one furthest in the run first."""
    found = [path for path in folder.glob("*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_place, reverse=True)


def _place(path: Path) -> tuple[int, ...]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return tuple(int(part or 0) for part in match.groups()[:3])


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
