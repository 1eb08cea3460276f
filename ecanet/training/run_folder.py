"""The folder of a single run: one process at a time, and only ever one run in it."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock

from ecanet.config import FIXED, MAY_CHANGE, AnySettings, differences
from ecanet.errors import UserError
from ecanet.files import is_temporary, lock_of, read_json, set_aside, sweep, write_json
from ecanet.training.checkpoint import is_damaged

log = logging.getLogger(__name__)

# What a run keeps as JSON.
_KEPT = ("settings.json", "record.json", "tracking.json")


def check_out(out: Path) -> None:
    """Refuse a run's folder that cannot be one, before anything is read for the run.

    Raises:
        UserError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder")


@contextmanager
def claim_folder(out: Path, settings: AnySettings, *, accept: bool) -> Iterator[Callable[[], None]]:
    """Lock a run's folder, check that it holds this run or none, and keep the settings there if none are.

    Args:
        out: the folder; made if missing.
        settings: of the run. Those of MAY_CHANGE may differ from the ones it began with, those of FIXED
            never.
        accept: resume although others differ; they are logged.

    Yields:
        :func:`check_place` of this folder, to be called before anything is written there.

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
    with lock:
        _check_holds(out, asdict(settings), accept)
        put_in_order(out)
        path = out / "settings.json"
        if not path.exists():
            write_json(path, asdict(settings))
        found = out.stat()
        yield functools.partial(check_place, out, (found.st_dev, found.st_ino))


def _check_holds(out: Path, settings: dict[str, Any], accept: bool) -> None:
    """Refuse a folder that holds something else than a run with these settings."""
    path = out / "settings.json"
    kept = read_json(path)
    if kept is not None:
        if kept.keys() != settings.keys():
            raise UserError(
                f"{out} holds a run of another version of ecanet, or of a detector in place of a classifier "
                "or the reverse: use that version, or choose another --out"
            )
        compared = [name for name in settings if name not in MAY_CHANGE]
        lines = differences(
            {name: kept.get(name) for name in compared}, {name: settings[name] for name in compared}
        )
        changed, text = {re.split("[.:]", line)[0] for line in lines}, "; ".join(lines)
        if changed & FIXED or (changed and not accept):
            raise UserError(
                f"{out} holds a run with other settings ({text}): choose another --out"
                + ("" if changed & FIXED else ", or resume all the same with --accept-changes")
            )
        ended = (out / "record.json").exists() and settings["epochs"] <= kept.get("epochs", 0)
        if changed and ended:
            raise UserError(
                f"{out} holds a run that has ended, with other settings ({text}): choose another --out"
            )
        if changed:
            log.info("resuming with changed settings: %s", text)
    elif os.path.lexists(path):
        if not any((out / name).exists() for name in ("checkpoints", "metrics.csv", "record.json")):
            raise UserError(
                f"{path} cannot be read, and the folder holds no training run: choose another --out"
            )
    elif not all(p.name == ".lock" or is_temporary(p.name) for p in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no training run: choose another --out")


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return (folder / "record.json").is_file() or (folder / "settings.json").is_file()


def kept_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a run, finished or not, as they were written; {} in another folder."""
    record = read_json(folder / "record.json") or {}
    settings = record.get("settings") or read_json(folder / "settings.json")
    return settings if isinstance(settings, dict) else {}


def kept_weights(folder: Path) -> Path | None:
    """Return the weights that a run selects, best or last; else the others; None if none are kept."""
    names = ["best", "last"]
    if kept_settings(folder).get("select") == "last":
        names.reverse()
    files = [folder / f"{name}.safetensors" for name in names]
    return next((file for file in files if file.is_file()), None)


def remove_weights(folder: Path, but: Path | None = None) -> bool:
    """Remove the weights of a run that has ended, all ``but`` one file; return whether there were any."""
    files = [folder / f"{name}.safetensors" for name in ("best", "last")]
    found = [file for file in files if file.is_file() and file != but]
    for file in found:
        file.unlink(missing_ok=True)
    return bool(found)


def check_place(out: Path, place: tuple[int, int]) -> None:
    """Refuse to continue in a run's folder that is no longer the one that was claimed.

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
            f"{out} was moved, deleted or replaced during training: run the command again with "
            f"the folder's present path"
        )


def put_in_order(folder: Path) -> None:
    """Remove from a run's folder what killed writers have left, and set aside what is damaged.

    What was damaged is written again, from what is good.

    Args:
        folder: of the run, and of this process alone; its subfolders are searched as well.
    """
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sweep(place)
    for path in sorted(folder.rglob("*")):
        if is_damaged(path) or (path.name in _KEPT and read_json(path) is None):
            log.warning(
                "%s is damaged: renamed to %s and written again", path, set_aside(path).name
            )
