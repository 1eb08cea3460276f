"""Data sets of the Hugging Face Hub, and folders in its format, through the library ``datasets``.

No code that comes with a data set is run: the library has no loading scripts from version 4 on.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ecanet.aliases import HUGGING_FACE
from ecanet.data.columns import choose_columns, sorted_classes
from ecanet.data.decode import read_errors, read_file
from ecanet.data.formats import is_ignored
from ecanet.data.headers import check_bytes
from ecanet.data.splits import SPLITS, Images, Listing, split_named
from ecanet.data.stream import ImageList
from ecanet.errors import UserError, counted, first_of, one_line
from ecanet.network import hub_or_cache

log = logging.getLogger(__name__)

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class HubImages(ImageList):
    """Images in the rows of a ``datasets.Dataset``: their bytes, or the paths of their files."""

    rows: list[int]
    """The row of each image."""
    dataset: Any
    """A ``datasets.Dataset``, whose rows stay on the disk."""
    column: str
    """Of the images."""

    def subset(self, indices: Sequence[int]) -> HubImages:
        chosen = super().subset(indices)
        assert isinstance(chosen, HubImages)
        return replace(chosen, rows=[self.rows[i] for i in indices])

    def read(self, index: int) -> bytes:
        image = self._stored(index)
        if image["bytes"] is None:
            return read_file(Path(image["path"]))
        check_bytes(len(image["bytes"]))
        return image["bytes"]

    def length(self, index: int) -> int:
        image = self._stored(index)
        return os.stat(image["path"]).st_size if image["bytes"] is None else len(image["bytes"])

    def _stored(self, index: int) -> dict[str, Any]:
        """Return an image's ``bytes`` or, without them, its ``path``."""
        return self.dataset.data.column(self.column)[self.rows[index]].as_py()


def is_hub_folder(root: Path) -> bool:
    """Whether a folder describes its images in a file of metadata rather than by class folders."""
    with read_errors(root):
        splits = [root / entry for entry in os.listdir(root) if split_named(entry)]
        inside = [folder for folder in splits if folder.is_dir()]
        described = any(
            (folder / name).is_file() for folder in [root, *inside] for name in _METADATA
        )
        return described and not any(
            entry.is_dir() and not is_ignored(entry.name)
            for folder in inside or [root]
            for entry in os.scandir(folder)
        )


def list_hub(data: str, columns: Sequence[str] = ()) -> Listing:
    """Return the images of a data set of the Hub, downloaded into the library's cache, or in a local folder.

    Args:
        data: ``hf:NAME``, ``hf:NAME:CONFIG`` or ``hf:FOLDER``.
        columns: ``path=image,label=fine_label`` names columns; by default the only ones that can be meant.

    Raises:
        UserError: it cannot be had, or has no column of images or of labels.
    """
    asked = data.removeprefix(HUGGING_FACE)
    dataset = _load(data, asked)
    first = next(iter(dataset.values()))
    roles = _roles(first.features, columns, data)
    parts, others = {}, []
    for name in dataset:
        split = split_named(name)
        if split is None or split in parts:
            others.append(name)
        else:
            parts[split] = dataset[name]
    if others:
        log.info("%s: unused splits: %s", data, first_of(others, 5))
    if not parts:
        raise UserError(
            f"{data} has the splits {first_of(others, 5)}: none of them is train, val or test"
        )
    image, label = roles["path"], roles["label"]
    folder = Path(asked).expanduser().resolve()
    labels = {split: part.data.column(label).to_pylist() for split, part in parts.items()}
    classes, number = _classes(first.features[label], labels, data)
    splits: dict[str, Images] = {}
    for split in SPLITS:
        if split in parts:
            paths = _paths(parts[split], image)
            missing = [str(row) for row, path in enumerate(paths) if path is None]
            if missing:
                raise UserError(
                    f"{data}: no image in {first_of(missing, 5)} of {split}: remove these rows"
                )
            splits[split] = HubImages(
                folder if folder.is_dir() else Path(data),
                _names(paths, split, folder),
                [number[value] for value in labels[split]],
                classes,
                rows=list(range(len(paths))),
                dataset=parts[split],
                column=image,
            )
    name = Path(asked).name.partition(":")[0]
    return Listing(data, name, classes, splits, labels_apart=True)


def _load(data: str, asked: str) -> dict[str, Any]:
    """Return the splits of a data set by their names there."""
    try:
        import datasets  # an extra, and a second of imports
    except ImportError:
        raise UserError(f"{data} needs the datasets library: pip install 'ecanet[hf]'") from None
    if not asked:
        raise UserError(f"{data}: name a data set of the Hub, or a folder: {data}NAME")
    folder = Path(asked).expanduser()
    if folder.is_dir():
        name, config = str(folder.resolve()), None
    else:
        name, _, config = asked.partition(":")
    unreachable = None
    shows = datasets.is_progress_bar_enabled()
    try:
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        if folder.is_dir():
            kept = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
            found = datasets.load_from_disk(name) if kept else datasets.load_dataset(name)
        else:
            with hub_or_cache() as unreachable:
                found = datasets.load_dataset(name, config or None)
        parts = {"train": found} if isinstance(found, datasets.Dataset) else found
        return {split: part.flatten_indices() for split, part in parts.items()}
    except Exception as error:  # the library and what it reads files with raise nearly anything
        if unreachable:
            raise UserError(
                f"{data} is not a folder, and cannot be downloaded ({unreachable}): check the "
                f"network, or give "
                "a folder of images"
            ) from None
        raise UserError(f"{data} cannot be loaded: {one_line(error)}") from None
    finally:
        if shows:
            datasets.enable_progress_bars()


def _roles(features: Any, columns: Sequence[str], data: str) -> dict[str, str]:
    """Return the columns of images and labels: those asked for, or of the type that has only one of them."""
    asked = [pair.partition("=")[0].strip() for pair in columns]
    if unused := set(asked) - {"path", "label"}:
        raise UserError(
            f"--columns {unused.pop()}=...: of {data}, only path and label can be chosen"
        )
    columns = list(columns)
    for role, is_kind in (("path", _holds_images), ("label", _holds_classes)):
        of_kind = [name for name, feature in features.items() if is_kind(feature)]
        if role not in asked and len(of_kind) == 1:
            columns.append(f"{role}={of_kind[0]}")
    roles = choose_columns(list(features), columns, data)
    if not _holds_images(features[roles["path"]]):
        raise UserError(
            f"{data}: the column {roles['path']} holds no images: choose by --columns path=NAME"
        )
    return roles


def _holds_images(feature: Any) -> bool:
    """Whether a column holds images, or what the library stores for one without its word for it."""
    is_stored = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    return is_stored or type(feature).__name__ == "Image"


def _holds_classes(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _classes(
    feature: Any, labels: dict[str, list[Any]], data: str
) -> tuple[list[str], dict[Any, int]]:
    """Return the classes, and the number of each value in the column of labels."""
    values = list(dict.fromkeys(value for part in labels.values() for value in part))
    if names := getattr(feature, "names", None):
        if unlabeled := sum(value in (None, -1) for part in labels.values() for value in part):
            raise UserError(
                f"{data}: {counted(unlabeled, 'image')} without a label: remove these rows"
            )
        used = sorted(values)
        return [names[value] for value in used], {value: i for i, value in enumerate(used)}
    texts = ["" if value is None else str(value).strip() for value in values]
    classes, numbers = sorted_classes(texts, data)
    return classes, dict(zip(values, numbers, strict=True))


def _paths(part: Any, image: str) -> list[str | None]:
    """Return the path that each image has in its row, "" for those without; None where there is no image."""
    column = part.data.column(image)
    paths = pc.struct_field(column, "path").to_pylist()
    empty = pc.is_null(pc.struct_field(column, "bytes")).to_pylist()
    return [
        None if path is None and none else path or ""
        for path, none in zip(paths, empty, strict=True)
    ]


def _names(paths: Sequence[str | None], split: str, folder: Path) -> list[str]:
    """Return the name of each image: its file in the folder of the data set, else its row."""
    root = os.path.join(folder, "")
    names = [str(path).removeprefix(root) for path in paths]
    if all(str(path).startswith(root) for path in paths) and len(set(names)) == len(names):
        return names
    return [f"{split}/{row}" for row in range(len(paths))]
