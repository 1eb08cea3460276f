"""Which images there are: folders of classes, tar shards, or data sets that have a name."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ecanet.aliases import SOURCES
from ecanet.data.folder import check_classes, find_images
from ecanet.data.shards import has_shards, list_shards
from ecanet.data.sources import load_data
from ecanet.data.stream import ImageList
from ecanet.errors import UserError


def list_training(root: Path) -> tuple[ImageList, ImageList]:
    """Return the images of ``root``/train and ``root``/val.

    In each stand a folder per class, or tar shards.

    Raises:
        UserError: a split is missing, a class has no image, or the two have other classes.
    """
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise UserError(
                f"{root} has no folder {split}/: it needs train/ and val/, a folder per class in each"
            )
    if has_shards(root, "train") or has_shards(root, "val"):
        sharded, val_sharded = (list_shards(root, split) for split in ("train", "val"))
        if sharded.classes != val_sharded.classes:
            raise UserError(
                f"the shards in {root / 'train'} have labels up to {len(sharded.classes) - 1}, those "
                f"in {root / 'val'} up to {len(val_sharded.classes) - 1}: they must be the same"
            )
        return sharded, val_sharded
    found = {split: find_images(root, split) for split in ("train", "val")}
    classes = check_classes(root, {split: images for split, (images, _) in found.items()})
    train, val = (_flat(root, *found[split], classes) for split in ("train", "val"))
    return train, val


@dataclass(frozen=True)
class HeldImages(ImageList):
    """Images of a data set that has a name, from memory; read as PNG, which loses nothing."""

    images: Tensor
    """uint8 (N, C, H, W)."""

    def read(self, index: int) -> bytes:
        content = io.BytesIO()
        image = self.images[index].permute(1, 2, 0).squeeze(-1)
        Image.fromarray(image.numpy()).save(content, "PNG", compress_level=0)
        return content.getvalue()


def evaluated_split(data: Path, split: str | None) -> str:
    """Return ``split``, by default val, or test where there is no val."""
    if split is not None:
        return split
    has_val = str(data) not in SOURCES and (data / "val").is_dir()
    has_test = str(data) in SOURCES or (data / "test").is_dir()
    return "test" if has_test and not has_val else "val"


def list_evaluated(data: Path, split: str | None) -> ImageList:
    """Return the images of one split alone, as evaluation needs them.

    Args:
        data: a folder, or the name of a data set, whose split test there is.
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
        test = loaded.test
        files = [f"test/{index}" for index in range(len(test))]
        return HeldImages(data, files, test.labels.tolist(), loaded.classes, test.images)
    if not (data / split).is_dir():
        raise UserError(
            f"{data} has no folder {split}/: it needs one with a folder per class in it"
        )
    if has_shards(data, split):
        return list_shards(data, split)
    images, left_out = find_images(data, split)
    return _flat(data, images, left_out, list(images))


def _flat(
    root: Path, images: dict[str, list[str]], left_out: list[str], classes: list[str]
) -> ImageList:
    files = [(file, label) for label, name in enumerate(classes) for file in images[name]]
    names, labels = [file for file, _ in files], [label for _, label in files]
    return ImageList(root, names, labels, classes, left_out=left_out)
