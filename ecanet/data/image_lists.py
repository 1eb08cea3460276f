"""Which images there are: folders of classes, or tar shards."""

from __future__ import annotations

from pathlib import Path

from ecanet.data.folder import check_classes, find_images
from ecanet.data.shards import has_shards, list_shards
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


def list_split(root: Path, split: str) -> ImageList:
    """Return the images of one split alone, as evaluation needs them.

    Raises:
        UserError: there is no such folder, or it holds no class folder.
    """
    if not (root / split).is_dir():
        raise UserError(
            f"{root} has no folder {split}/: it needs one with a folder per class in it"
        )
    if has_shards(root, split):
        return list_shards(root, split)
    images, left_out = find_images(root, split)
    return _flat(root, images, left_out, list(images))


def _flat(
    root: Path, images: dict[str, list[str]], left_out: list[str], classes: list[str]
) -> ImageList:
    files = [(file, label) for label, name in enumerate(classes) for file in images[name]]
    names, labels = [file for file, _ in files], [label for _, label in files]
    return ImageList(root, names, labels, classes, left_out=left_out)
