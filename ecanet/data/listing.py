"""Lists the images of a data set, of whatever kind: folders, shards, tables, and sets known by name."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ecanet.aliases import HUGGING_FACE, SOURCES, TORCHVISION
from ecanet.config import EvaluateSettings, Splitting
from ecanet.data.decode import read_errors
from ecanet.data.folder import find_images, find_splits, image_list, list_folders
from ecanet.data.hub import is_hub_folder, list_hub
from ecanet.data.shards import has_shards, list_shards
from ecanet.data.sources import list_digits, list_torchvision
from ecanet.data.splits import Images, Listing, check_groups, divide, grouped, split_named
from ecanet.data.stream import ImageList
from ecanet.data.table import list_table
from ecanet.errors import UserError
from ecanet.inputs import TABLES, check_images

log = logging.getLogger(__name__)

ALL = "all"
"""The split of all images of data without splits, in evaluation."""


def list_images(
    data: str,
    how: Splitting | None = None,
    *,
    downloads: Path | None = None,
) -> Listing:
    """Return the images of a data set, in the splits that it has, with their groups if these are asked for.

    Args:
        data: digits, cifar10, cifar100, torchvision/NAME, hf:NAME, a CSV or Parquet file, or a folder. A name
            wins over a folder of that name.
        how: columns and groups.
        downloads: folder of torchvision's archives; by default that of the user.

    Raises:
        UserError: the data is unknown, incomplete or not to be had.
    """
    how = how or Splitting()
    path, data = Path(data).expanduser(), _with_prefix(data)
    if how.columns and not has_columns(data):
        raise UserError(f"--columns: {data} is not a table, so leave it out")
    if data == "digits":
        listing = list_digits()
    elif data in SOURCES or data.startswith(TORCHVISION):
        listing = list_torchvision(data, downloads)
    elif data.startswith(HUGGING_FACE):
        listing = list_hub(data, how.columns)
    elif path.suffix.lower() in TABLES:
        listing = list_table(path, how.columns)
    else:
        listing = _list_folder(data, path)
    if how.group_by is None:
        return listing
    if listing.in_memory:
        raise UserError(f"--group-by: the images of {data} have no names, so leave it out")
    if listing.groups:
        raise UserError("--group-by and --columns group=...: give only one of them")
    return grouped(listing, how.group_by)


def has_columns(data: str) -> bool:
    """Whether a data set is a table, or described by one as Hugging Face's are."""
    is_hub = _with_prefix(data).startswith(HUGGING_FACE)
    return is_hub or Path(data).suffix.lower() in TABLES


def _with_prefix(data: str) -> str:
    """Return ``hf:FOLDER`` for a folder that Hugging Face's library has written, and other data as it is."""
    path = Path(data).expanduser()
    if data.startswith(HUGGING_FACE) or data in SOURCES or path.suffix.lower() in TABLES:
        return data
    return f"{HUGGING_FACE}{path}" if path.is_dir() and is_hub_folder(path) else data


def _list_folder(data: str, root: Path) -> Listing:
    if root.is_file():
        raise UserError(
            f"{root} is a file: give a folder with a folder per class, or a table ({' '.join(TABLES)})"
        )
    check_images(data)
    folders = find_splits(root)
    lists: dict[str, ImageList]
    if any(has_shards(root, folder) for folder in folders.values()):
        lists = {split: list_shards(root, folder) for split, folder in folders.items()}
        classes = max((images.classes for images in lists.values()), key=len)
        lists = {split: replace(images, classes=classes) for split, images in lists.items()}
    else:
        lists = list_folders(root, folders)
        classes = next(iter(lists.values())).classes
    return Listing(str(root), root.resolve().name, classes, dict(lists))


@dataclass(frozen=True)
class HeldImages(ImageList):
    """Images that are in memory already."""

    images: Tensor
    """uint8 (N, C, H, W)."""

    def subset(self, indices: Sequence[int]) -> HeldImages:
        chosen = super().subset(indices)
        assert isinstance(chosen, HeldImages)
        return replace(chosen, images=self.images[list(indices)])

    def image(self, index: int) -> Tensor:
        return self.images[index]


def held_images(split: Images, classes: list[str], root: Path = Path()) -> ImageList:
    """Return a split as a list whose images are read one by one, from memory if they are there.

    ``root`` is what messages call those.
    """
    if isinstance(split, ImageList):
        return split
    return HeldImages(root, split.files, split.labels.tolist(), classes, split.images)


def list_evaluated(data: str, settings: EvaluateSettings) -> tuple[str, ImageList]:
    """Return which split is evaluated, and its images, of data of any kind.

    By default that is val if the data has it, else test. Of data without splits it is what training holds out
    as the test split by the same settings, or ``all``.

    Raises:
        UserError: the data has no such split, a group that is in two, or it cannot be listed.
    """
    asked = settings.split and (split_named(settings.split) or settings.split)
    root = Path(data).expanduser()
    if data not in SOURCES and root.is_dir() and not is_hub_folder(root):
        # The folder alone: the other splits may be large, or not there.
        folders = find_splits(root)
        split = asked or _default_split(folders)
        folder = folders.get(split, split)
        if folder and (root / folder).is_dir():
            if has_shards(root, folder):
                return split, list_shards(root, folder)
            with read_errors(root):
                found = find_images(root, folder)
            return split, image_list(root, *found, list(found[0]))
        if list(folders) != ["train"]:
            raise UserError(
                f"{data} has no folder {folder}/: it needs that folder, with a folder per class in it"
            )
    listing = list_images(data, settings)
    splits = dict(listing.splits)
    if list(splits) == ["train"] and asked == ALL:
        return ALL, held_images(splits["train"], listing.classes, Path(data))
    if list(splits) == ["train"]:
        divided = divide(listing, splits, validation=settings.validation, test=settings.test)
        for line in divided.notices:
            log.info("%s", line)
        if not asked:
            log.info("--split all evaluates all images")
        assert divided.test is not None
        splits = {"train": divided.train, "val": divided.val, "test": divided.test}
        asked = asked or "test"
    else:
        check_groups(listing)
    split = asked or _default_split(splits)
    if split not in splits:
        raise UserError(f"{data} has no split {split}: give --split {' or '.join(splits)}")
    return split, held_images(splits[split], listing.classes, Path(data))


def _default_split(splits: Container[str]) -> str:
    return "val" if "val" in splits else "test"


def absolute_data(data: str) -> str:
    """Return the name of a data set, or the absolute path of its files, for processes that start in another
    folder."""
    if data.startswith(HUGGING_FACE):
        folder = Path(data.removeprefix(HUGGING_FACE)).expanduser()
        return f"{HUGGING_FACE}{folder.resolve()}" if folder.is_dir() else data
    is_name = data in SOURCES or data.startswith(TORCHVISION)
    return data if is_name else str(Path(data).expanduser().resolve())
