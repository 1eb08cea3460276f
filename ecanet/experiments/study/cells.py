"""The cells of a comparison over several networks and data sets: which there are, and where they are.

``OUT/cells.json`` lists them. Each is an ordinary study in a folder of its own, ``OUT/CELL/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ecanet.errors import UserError, prefixed
from ecanet.experiments.study.location import Location, inside, locate, valid_run_name
from ecanet.experiments.study.study import Study, is_study, load_study
from ecanet.files import read_json, write_json
from ecanet.typed import typed

_FILE = "cells.json"


@dataclass(frozen=True)
class Cell:
    """A network on a data set, and the study of it."""

    name: str
    """Of its folder."""
    model: str
    data: str


@dataclass
class _Cells:
    """What ``cells.json`` holds."""

    cells: list[Cell]


def has_cells(folder: str | Path | None) -> bool:
    """Whether a folder holds a comparison over several networks or data sets."""
    return folder is not None and (Path(folder) / _FILE).is_file()


def read_cells(folder: str | Path) -> list[Cell]:
    """Return the cells of a comparison.

    Raises:
        UserError: the list is damaged, or names what no cell can be called.
    """
    file = Path(folder) / _FILE
    found = read_json(file)
    if found is None:
        raise UserError(f"{file} is damaged: each folder beside it is a study of its own")
    with prefixed(f"{file} cannot be used: "):
        cells = typed(_Cells, found).cells
        for cell in cells:
            valid_run_name(cell.name)
    return cells


def write_cells(folder: Path, cells: Iterable[Cell]) -> None:
    """Write the list of cells, atomically; without cells there is no list."""
    if not (cells := list(cells)):
        (folder / _FILE).unlink(missing_ok=True)
        return
    write_json(folder / _FILE, {"cells": [asdict(cell) for cell in cells]})


def locate_cell(
    folder: str | Path, cell: Cell, storage: str | None = None, name: str | None = None
) -> Location:
    """Return the location of a cell's study, which is called NAME-CELL in a database."""
    folder = Path(folder)
    if storage is None and name is not None:
        raise UserError("--study names a study in a database: say which one with --storage")
    own = f"{name or folder.resolve().name}-{cell.name}" if storage else None
    return locate(inside(folder, cell.name), storage, own)


def cell_studies(
    folder: str | Path,
    storage: str | None = None,
    name: str | None = None,
    mode: Literal["read", "write"] = "write",
) -> Iterator[tuple[Cell, Study | None]]:
    """Open the study of each cell; None for one that has not begun."""
    for cell in read_cells(folder):
        location = locate_cell(folder, cell, storage, name)
        yield cell, load_study(location, mode) if is_study(location) else None


def open_studies(
    folder: str | Path | None,
    storage: str | None = None,
    name: str | None = None,
    mode: Literal["read", "write"] = "write",
) -> list[Study]:
    """Open a study, or those of the cells that have begun.

    Raises:
        UserError: there is none.
    """
    if not has_cells(folder):
        return [load_study(locate(folder, storage, name), mode)]
    assert folder is not None
    found = [study for _, study in cell_studies(folder, storage, name, mode) if study is not None]
    if not found:
        raise UserError(f"no cell of {folder} has begun: run `ecanet compare` again")
    return found


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return the end of each name, from behind a slash: as much as it takes to tell them apart."""
    parts = {name: [part for part in re.split(r"[/\\]", name) if part] or [name] for name in names}
    found = {}
    for name, own in parts.items():
        others = [other for other in parts.values() if other is not own]
        lengths = range(1, len(own) + 1)
        length = next((n for n in lengths if all(own[-n:] != o[-n:] for o in others)), len(own))
        found[name] = "/".join(own[-length:])
    return found
