"""Lists the images of a split: folders of classes, tar shards, or data sets known by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ecanet.aliases import SOURCES
from ecanet.data.dataset import Split
from ecanet.data.folder import find_images, image_list, list_folders
from ecanet.data.shards import has_shards, list_shards
from ecanet.data.sources import load_data
from ecanet.data.stream import ImageList
from ecanet.errors import UserError


def list_splits(root: Path, splits: list[str]) -> dict[str, ImageList]:
    """Return the images of these splits of ``root``: a folder per class, or tar shards, in each.

    Raises:
        UserError: a class has no image, or the splits have other classes.
    """
    if any(has_shards(root, split) for split in splits):
        sharded = {split: list_shards(root, split) for split in splits}
        counts = {split: len(images.classes) for split, images in sharded.items()}
        if len(set(counts.values())) > 1:
            each = ", ".join(f"up to {n - 1} in {root / split}" for split, n in counts.items())
            raise UserError(f"the shards have labels {each}: they must be the same")
        return dict(sharded)
    return list_folders(root, splits)


@dataclass(frozen=True)
class HeldImages(ImageList):
    """Images that are in memory already."""

    images: Tensor
    """uint8 (N, C, H, W)."""

    def image(self, index: int) -> Tensor:
        return self.images[index]


def held_images(split: Split | ImageList, name: str, classes: list[str]) -> ImageList:
    """Return a split as a list whose images are read one by one, from memory if they are there."""
    if isinstance(split, ImageList):
        return split
    files = [f"{name}/{index}" for index in range(len(split))]
    return HeldImages(Path(), files, split.labels.tolist(), classes, split.images)


def evaluated_split(data: Path, split: str | None) -> str:
    """Return ``split``, by default val, or test if there is no val."""
    if split is not None:
        return split
    has_val = str(data) not in SOURCES and (data / "val").is_dir()
    has_test = str(data) in SOURCES or (data / "test").is_dir()
    return "test" if has_test and not has_val else "val"


def list_evaluated(data: Path, split: str | None) -> ImageList:
    """Return the images of one split, for evaluation.

    Args:
        data: a folder, or the name of a data set, which has the split test.
        split: as in :func:`evaluated_split`.

    Raises:
        UserError: there is no such split, or it holds no class folder.
    """
    split = evaluated_split(data, split)
    if str(data) in SOURCES:
        if split != "test":
            raise UserError(
                f"{data} is evaluated on its split test, not {split}: leave --split out"
            )
        loaded = load_data(str(data))
        assert loaded.test is not None
        return held_images(loaded.test, "test", loaded.classes)
    if not (data / split).is_dir():
        raise UserError(
            f"{data} has no folder {split}/: it needs one with a folder per class in it"
        )
    if has_shards(data, split):
        return list_shards(data, split)
    images, left_out = find_images(data, split)
    return image_list(data, images, left_out, list(images))
