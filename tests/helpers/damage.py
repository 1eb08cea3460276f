"""What disks, kills and people do to a file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content)


def _put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": _zero,
    "a bit flipped": _flip_a_bit,
    "another file": lambda path: shutil.copy(__file__, path),
    "a folder": _put_a_folder_there,
}
