"""Atomic writes: files are written under a temporary name, then renamed into place.

A temporary file is named ``.ecanet-….tmp`` and locked by its writer. The operating system frees the lock when
a process ends, however it ends: so the next process that writes into the folder recognizes the files of
killed writers and removes them.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from ecanet.errors import UserError

try:
    import fcntl
except ImportError:
    # On Windows the files of killed writers are not removed.
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.ecanet-[0-9a-f]{16}\.tmp")
# Names that are tried for a new file; another process may take one for a killed writer's.
_TRIES = 100


def write_atomic(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write ``content`` to ``path``, atomically: a reader sees the old file or the new one, never a part.

    An existing file keeps its mode; a new one gets the mode that the user's umask allows. Bytes of file names
    that are not UTF-8 are written as ``\\udcff``.

    Raises:
        OSError: the disk is full or the folder cannot be written; an existing file is intact.
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
        if fcntl is None:  # Windows cannot rename an open file
            os.close(handle)
        os.replace(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read what :func:`write_json` has written; return None if the file is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def move_to_free(temporary: Path, path: Path) -> None:
    """Rename a file to a name that must be free; of several processes that try, one succeeds.

    Raises:
        FileExistsError: ``path`` exists; neither file is changed.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # The file system has no hard links: an empty file reserves the name.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.replace(temporary, path)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in ``parent``, which is removed at the end of the block.

    Files may be moved out of it, and the folder itself may be moved. Its mode follows the user's umask.
    """
    handle, folder = _begin(parent, _new_folder)
    try:
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def is_temporary(name: str) -> bool:
    """Whether ``name`` is that of a temporary file or folder of ours."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed writers from ``folder``, and none that is being written."""
    if fcntl is None:
        return
    try:
        left = [folder / name for name in os.listdir(folder) if is_temporary(name)]
    except OSError:
        return
    for path in left:
        with suppress(OSError):
            # Network file systems lock only files that are open for writing.
            how = os.O_RDONLY if path.is_dir() else os.O_RDWR
            handle = os.open(path, how | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


def lock_of(folder: Path) -> filelock.BaseFileLock:
    """Return the lock of a folder, a context manager: one process at a time works there.

    It is freed when the process ends, however it ends. If another process holds it, entering raises
    ``filelock.Timeout`` at once.

    Raises:
        UserError: the lock file is a symbolic link, whose target would be written to.
    """
    if (folder / ".lock").is_symlink():
        raise UserError(f"{folder / '.lock'} is a link: remove it")
    return filelock.FileLock(folder / ".lock", blocking=False)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to ``….damaged`` and return the new name."""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            path.rename(aside)
            return aside
        number += 1


@contextmanager
def _temporary_file(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield a new file in ``folder``, open, and its path; it is removed after the block unless renamed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    handle, temporary = _begin(folder, lambda path: os.open(path, flags, 0o666))
    try:
        yield handle, temporary
    finally:
        with suppress(OSError):  # on Windows it is closed already
            os.close(handle)
        temporary.unlink(missing_ok=True)


def _begin(folder: Path, make: Callable[[Path], int]) -> tuple[int, Path]:
    """Make a file or folder under a temporary name; return its handle, locked, and its path.

    Raises:
        UserError: the folder holds nothing that is put into it, as /proc does.
    """
    with suppress(FileNotFoundError):
        folder.mkdir(parents=True, exist_ok=True)
    _sweep_once(folder.absolute())
    for _ in range(_TRIES):
        path = folder / f".ecanet-{secrets.token_hex(8)}.tmp"
        with suppress(FileNotFoundError):
            handle = make(path)
            if fcntl is not None:
                with suppress(OSError):
                    # On a file system without locks, the files of killed writers are not removed.
                    fcntl.flock(handle, fcntl.LOCK_EX)
            # Before it was locked, another process may have removed it as a killed writer's.
            if path.exists():
                return handle, path
            os.close(handle)
    raise UserError(f"no file can be made in {folder}: choose another folder")


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path if fcntl is not None else os.devnull, os.O_RDONLY)


@functools.lru_cache(maxsize=256)
def _sweep_once(folder: Path) -> None:
    """Sweep a folder before this process first writes into it."""
    sweep(folder)


def absolute(path: str | None) -> str | None:
    """Return the absolute path of a file or folder, for processes that start in another folder."""
    return path and str(Path(path).expanduser().resolve())


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV with a line for each of ``rows``, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def no_formula(value: Any) -> Any:
    """Return ``value`` so that a spreadsheet shows it: names and errors come from anywhere."""
    formula = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if formula else value
