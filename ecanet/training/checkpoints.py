"""Checkpoints that a kill, a full disk or a bad sector cannot turn against the run.

A checkpoint's name tells where in the run it was made and the hash of its content:
``epoch0003-step000250-0123456789abcdef.ckpt``. It is written beside the others and then renamed, and
the older ones are deleted after that; whatever happens, the last good one is there.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ecanet.record import write_atomic

# One to go on from, and one more should the disk spoil it.
KEEP = 2
_NAME = re.compile(r"epoch(\d+)-step(\d+)-([0-9a-f]{16})\.ckpt")


def save_checkpoint(folder: Path, epoch: int, step: int, state: dict[str, Any]) -> Path:
    """Save ``state``, made after ``step`` steps of ``epoch``, and delete all but the last two.

    Raises:
        OSError: the disk is full; the checkpoints before this one are intact.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    path = folder / f"epoch{epoch:04d}-step{step:06d}-{_digest(content)}.ckpt"
    write_atomic(path, content)
    for old in _sorted(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the state of the last good checkpoint in ``folder``, None if there is none.

    One whose content does not fit the hash in its name is left out, and ``warn`` called with a line
    about it. Nothing is ever unpickled but tensors and plain values.
    """
    for path in _sorted(folder):
        content = path.read_bytes()
        match = _NAME.fullmatch(path.name)
        assert match is not None
        if _digest(content) != match[3]:
            warn(f"{path} is damaged: going back to the checkpoint before it")
            continue
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return None


def _sorted(folder: Path) -> list[Path]:
    """The checkpoints, the one furthest in the run first."""
    found = [path for path in folder.glob("*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_place, reverse=True)


def _place(path: Path) -> tuple[int, int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    # A return to a checkpoint saves it anew, with a lower learning rate.
    return int(match[1]), int(match[2]), path.stat().st_mtime_ns


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
