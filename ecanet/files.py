"""Files that are there whole or not at all: written under another name, then moved to their place.

What is being written is called ``.ecanet-….tmp`` and locked by its writer. The system frees the lock when a
process ends, however it ends, so whoever opens the folder next can tell what a killed writer has left from
what is being written, and removes it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from ecanet.errors import UserError

try:
    import fcntl
except (
    ImportError
):  # Windows locks no open file in this way: what a killed writer leaves there stays
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.ecanet-[0-9a-f]{16}\.tmp")


def write_atomic(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never a part.

    A file that was there keeps its mode; a new one gets what the user's umask leaves. Bytes of a name
    that are no UTF-8 are written as ``\\udcff``.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file, if any, is intact.
    """
    path = Path(path)
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with _temporary_file(path.parent) as (handle, temporary):
        with suppress(FileNotFoundError):
            os.chmod(temporary, os.stat(path).st_mode & 0o777)
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        if fcntl is None:  # Windows moves no file that is open
            os.close(handle)
        os.replace(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what :func:`write_json` has kept; None where there is no such file, or a damaged one."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def move_to_free(temporary: Path, path: Path) -> None:
    """Give a file its name, which must be free: of several processes that try, one succeeds.

    Raises:
        FileExistsError: the name is taken; neither file is changed.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # This file system has no links: an empty file takes the name before the whole one comes.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.replace(temporary, path)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in ``parent`` for files that are moved out of it; it goes with the block.

    It may be moved itself. Its mode is what the user's umask leaves.
    """
    handle, folder = _begin(parent, _new_folder)
    try:
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is being written, or was left by a killed writer."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove from ``folder`` what killed writers have left, and nothing that is being written."""
    if fcntl is None:
        return
    try:
        left = [folder / name for name in os.listdir(folder) if is_temporary(name)]
    except OSError:
        return
    for path in left:
        with suppress(OSError):
            # Over a network a file's lock needs a file that is open for writing.
            how = os.O_RDONLY if path.is_dir() else os.O_RDWR
            handle = os.open(path, how | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


def lock_of(folder: Path) -> filelock.BaseFileLock:
    """Return the lock of a folder, to be entered: one process at a time works there.

    It is free as soon as the process ends, however it ends. Entering raises ``filelock.Timeout`` at once
    where another process holds it.

    Raises:
        UserError: the lock is a link, whose target would be written to.
    """
    if (folder / ".lock").is_symlink():
        raise UserError(f"{folder / '.lock'} is a link: remove it")
    return filelock.FileLock(folder / ".lock", blocking=False)


def set_aside(path: Path) -> Path:
    """Rename a damaged file, or what stands in its place, and return its new name, ``….damaged``."""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            path.rename(aside)
            return aside
        number += 1


@contextmanager
def _temporary_file(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield a new file in ``folder``, open and by name; what has not been moved goes with the block."""
    handle, temporary = _begin(folder, _new_file)
    try:
        yield handle, temporary
    finally:
        with suppress(OSError):  # closed already where it had to be
            os.close(handle)
        temporary.unlink(missing_ok=True)


def _begin(folder: Path, make: Callable[[Path], int]) -> tuple[int, Path]:
    """Make a file or folder under a temporary name; return it open and locked, and its name."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep_once(folder.absolute())
    while True:
        path = folder / f".ecanet-{secrets.token_hex(8)}.tmp"
        with suppress(FileNotFoundError):
            handle = make(path)
            if fcntl is not None:
                with suppress(OSError):
                    # A file system without locks: what is left here is never removed by others.
                    fcntl.flock(handle, fcntl.LOCK_EX)
            # Between making and locking it looked like a dead writer's.
            if path.exists():
                return handle, path
            os.close(handle)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path if fcntl is not None else os.devnull, os.O_RDONLY)


@functools.lru_cache(maxsize=256)
def _sweep_once(folder: Path) -> None:
    """Sweep a folder when this process first writes into it."""
    sweep(folder)
