"""The folder of a single run: one process at a time, and only ever one run in it."""

from __future__ import annotations

from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import filelock

from ecanet.errors import UserError
from ecanet.record import read_json, write_json


def claim_folder(
    out: Path,
    asked: dict[str, Any],
    free: Set[str],
    fixed: Set[str],
    *,
    accept: bool,
    say: Callable[[str], None],
) -> AbstractContextManager[Any]:
    """Lock a run's folder, check that it holds this run or none, and keep the settings there.

    Args:
        out: the folder; made if missing.
        asked: the run's settings, plain values.
        free: settings that may differ when the run goes on.
        fixed: settings that may not, even with ``accept``.
        accept: go on although others differ.
        say: called with a line that names them.

    Raises:
        UserError: the folder is a file, is in use, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = filelock.FileLock(out / ".lock", blocking=False).acquire()
    except filelock.Timeout:
        raise UserError(
            f"another process trains in {out}: wait for it, or choose another --out"
        ) from None
    path = out / "settings.json"
    if path.exists():
        kept = read_json(path)
        if not isinstance(kept, dict):
            raise UserError(f"{path} holds no settings: choose another --out")
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
    elif any(p.name != ".lock" for p in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no training run: choose another --out")
    write_json(path, asked)
    return lock


def _difference(name: str, kept: Any, asked: Any) -> str:
    if isinstance(kept, dict) and isinstance(asked, dict):
        inner = (
            f"{name}.{key}: {kept.get(key)} there, {asked[key]} asked"
            for key in asked
            if kept.get(key) != asked[key]
        )
        return "; ".join(inner)
    return f"{name}: {kept} there, {asked} asked"
