"""Data sets in a table: a CSV or Parquet file with a row for each image, of its path, label and split."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ecanet.aliases import HUGGING_FACE
from ecanet.data.columns import choose_columns, sorted_classes
from ecanet.data.splits import SPLITS, Images, Listing, split_named
from ecanet.data.stream import ImageList
from ecanet.errors import UserError, counted, first_of, one_line

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def list_table(file: Path, columns: Sequence[str] = ()) -> Listing:
    """Return the images in a table. Their paths are relative to its folder, or absolute.

    Args:
        file: a CSV, its columns parted by commas, semicolons or tabs, or a Parquet file.
        columns: ``path=file,label=species,split=fold,group=patient`` names columns; usual names are found.

    Raises:
        UserError: the table cannot be read; a path is an address, a file is missing, a label is empty,
            numbers and names are mixed, a split is unknown, or an image has two labels or is in two splits.
    """
    values = _read(file, columns)
    root, where = file.parent.absolute(), str(file)
    classes, labels = sorted_classes(values["label"], where)
    if remote := [path for path in dict.fromkeys(values["path"]) if _ADDRESS.match(path)]:
        raise UserError(
            f"{where}: {len(remote):,} of {counted(len(values['path']), 'path')} are URLs: "
            f"{first_of(remote, 2)}. Download the images and give their paths"
        )
    paths = [_normal(path, root) for path in values["path"]]
    if missing := [name for name in dict.fromkeys(paths) if not (root / name).is_file()]:
        raise UserError(
            f"{where}: {len(missing):,} of {counted(len(paths), 'file')} are missing in {root}: "
            f"{first_of(missing, 5)}"
        )
    splits = _splits(values.get("split"), len(paths), where)
    groups = values.get("group")
    if groups and (empty := [path for path, group in zip(paths, groups, strict=True) if not group]):
        raise UserError(
            f"{where}: {counted(len(empty), 'image')} without a group: {first_of(empty, 5)}"
        )
    rows: dict[str, tuple[int, str, str]] = {}
    twice: list[str] = []
    for index, path in enumerate(paths):
        row = (labels[index], splits[index], groups[index] if groups else "")
        first = rows.setdefault(path, row)
        for what, (one, other) in zip(
            ("label", "split", "group"), zip(first, row, strict=True), strict=True
        ):
            if one != other:
                twice.append(f"{path} ({what})")
    if twice:
        raise UserError(
            f"{where}: {counted(len(twice), 'row')} of an image that has another label, split or group in "
            f"another row: {first_of(twice, 5)}"
        )
    if repeated := len(paths) - len(rows):
        log.info("%s: %s repeated and counted once", where, counted(repeated, "row"))
    found: dict[str, Images] = {}
    for split in SPLITS:
        files = [path for path, row in rows.items() if row[1] == split]
        if files:
            found[split] = ImageList(root, files, [rows[path][0] for path in files], classes)
    grouped = {path: row[2] for path, row in rows.items()} if groups else {}
    return Listing(where, file.stem, classes, found, grouped, labels_apart=True)


def _read(file: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of the columns by what they hold, as texts."""
    try:
        if file.suffix.lower() == ".parquet":
            schema = pyarrow.parquet.read_schema(file)
            chosen = choose_columns(schema.names, columns, str(file))
            _check_types(file, schema, chosen)
            table = pyarrow.parquet.read_table(file, columns=list(chosen.values()))
        else:
            with file.open(encoding="utf-8-sig", newline="") as text:
                head = text.readline()
            delimiter = max(",;\t", key=head.count)
            parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            with pyarrow.csv.open_csv(file, parse_options=parse) as reader:
                names = reader.schema.names
            chosen = choose_columns(names, columns, str(file))
            # As they are written: 007 is no 7.
            convert = pyarrow.csv.ConvertOptions(
                include_columns=list(chosen.values()),
                column_types=dict.fromkeys(chosen.values(), pa.string()),
            )
            table = pyarrow.csv.read_csv(file, parse_options=parse, convert_options=convert)
    except UnicodeDecodeError:
        raise UserError(f"{file} is not in UTF-8: save it as CSV UTF-8") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read as a table: {one_line(reason)}") from None
    if not table.num_rows:
        raise UserError(f"{file} has no rows: give it one for each image")
    return {role: _texts(table[name]) for role, name in chosen.items()}


def _check_types(file: Path, schema: pa.Schema, columns: Mapping[str, str]) -> None:
    """Refuse columns of a Parquet file whose values are neither texts nor numbers."""
    for role, name in columns.items():
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (
            pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        ):
            continue
        hint = ""
        if role == "path" and pa.types.is_struct(kind):
            hint = (
                f". If these are images, --data {HUGGING_FACE}{file.parent} reads the Parquet "
                "files of the folder"
            )
        raise UserError(
            f"{file}: the column {name} holds values of the type {kind}, no {role}s{hint}"
        )


def _texts(column: pa.ChunkedArray) -> list[str]:
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]


def _normal(path: str, root: Path) -> str:
    """Return a path in one of the ways it can be written: relative to ``root`` where it is below that."""
    path = os.path.normpath(path if "/" in path else path.replace("\\", "/"))
    if os.path.isabs(path) and Path(path).is_relative_to(os.path.abspath(root)):
        path = os.path.relpath(path, os.path.abspath(root))
    return Path(path).as_posix()


def _splits(words: list[str] | None, count: int, where: str) -> list[str]:
    """Return the split of each row; train where there is no column of splits."""
    if words is None:
        return ["train"] * count
    meant = {word: split_named(word) for word in dict.fromkeys(words)}
    if unknown := [repr(word) for word, split in meant.items() if split is None]:
        raise UserError(
            f"{where}: unknown splits: {first_of(unknown, 5)}. Write train, val or test, or leave the column "
            "out by --columns split="
        )
    return [meant[word] or "" for word in words]
