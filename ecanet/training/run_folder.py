"""The folder of a single run: one process at a time, and only ever one run in it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import filelock

from ecanet.errors import UserError
from ecanet.files import is_temporary, lock_of, read_json, set_aside, sweep, write_json
from ecanet.training.checkpoint import is_damaged

# What a run keeps as JSON.
_KEPT = ("settings.json", "record.json", "wandb.json")


def check_out(out: Path) -> None:
    """Refuse a run's folder that cannot be one, before anything is read for the run.

    Raises:
        UserError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder")


def claim_folder(
    out: Path,
    asked: dict[str, Any],
    free: Set[str],
    fixed: Set[str],
    *,
    accept: bool,
    say: Callable[[str], None],
) -> AbstractContextManager[Callable[[], None]]:
    """Lock a run's folder, check that it holds this run or none, and keep the settings there.

    Args:
        out: the folder; made if missing.
        asked: the run's settings, plain values.
        free: settings that may differ when the run goes on.
        fixed: settings that may not, even with ``accept``.
        accept: go on although others differ.
        say: called with a line that names them.

    Returns:
        A context manager that holds the lock and gives :func:`check_place` of this folder, to be called
        before anything is written there; it can be pickled.

    Raises:
        UserError: the folder is a file, is in use, or holds something else.
    """
    check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_of(out).acquire()
    except filelock.Timeout:
        raise UserError(
            f"another process trains in {out}: wait for it, or choose another --out"
        ) from None
    path = out / "settings.json"
    kept = read_json(path)
    if kept is not None:
        changed = {
            name: (kept.get(name), value)
            for name, value in asked.items()
            if kept.get(name) != value and name not in free
        }
        text = "; ".join(_difference(name, *values) for name, values in changed.items())
        if set(changed) & fixed or (changed and not accept):
            raise UserError(
                f"{out} holds a run with other settings ({text}): choose another --out"
                + ("" if set(changed) & fixed else ", or go on all the same with --accept-changes")
            )
        if changed:
            say(f"going on with changed settings: {text}")
    elif os.path.lexists(path):
        if not any((out / name).exists() for name in ("checkpoints", "metrics.csv", "record.json")):
            raise UserError(
                f"{path} cannot be read, and beside it is no training run: choose another --out"
            )
    elif not all(p.name == ".lock" or is_temporary(p.name) for p in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no training run: choose another --out")
    put_in_order(out, say)
    write_json(path, asked)
    found = out.stat()
    return _held(lock, functools.partial(check_place, out, (found.st_dev, found.st_ino)))


@contextmanager
def _held(
    lock: AbstractContextManager[Any], check: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    with lock:
        yield check


def check_place(out: Path, place: tuple[int, int]) -> None:
    """Refuse to go on in a run's folder that is no longer the one that was claimed.

    Writing to its old name would make a second folder, with a part of the run.

    Args:
        out: the folder's name.
        place: device and inode of the folder when it was claimed.

    Raises:
        UserError: it was moved, deleted or replaced.
    """
    try:
        found = out.stat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None or (found.st_dev, found.st_ino) != place:
        raise UserError(
            f"{out} was moved, deleted or replaced while this command trained in it: start it again on "
            "the folder where the run is now"
        )


def put_in_order(folder: Path, say: Callable[[str], None]) -> None:
    """Remove from a run's folder what killed writers have left, and set aside what is damaged.

    What was damaged is made again, from what is good.

    Args:
        folder: of the run, and of this process alone; the folders in it are looked through as well.
        say: called with a line about each file that is damaged.
    """
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sweep(place)
    for path in sorted(folder.rglob("*")):
        if is_damaged(path) or (path.name in _KEPT and read_json(path) is None):
            say(f"{path} is damaged: renamed to {set_aside(path).name}, and made again")


def _difference(name: str, kept: Any, asked: Any) -> str:
    if isinstance(kept, dict) and isinstance(asked, dict):
        inner = (
            f"{name}.{key}: {kept.get(key)} there, {asked[key]} asked"
            for key in asked
            if kept.get(key) != asked[key]
        )
        return "; ".join(inner)
    return f"{name}: {kept} there, {asked} asked"
