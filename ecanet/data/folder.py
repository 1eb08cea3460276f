"""Image folders: train/ and val/ or test/, and in each a folder per class."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from ecanet.data.cache import content_key, load_images, save_images
from ecanet.data.dataset import Data, Split, build_data
from ecanet.data.decode import (
    decode_files,
    decode_image,
    naming_what_cannot_be_read,
    read_file,
)
from ecanet.data.memory import check_fits
from ecanet.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Square images all of one size up to this one are kept as they are; others need a size.
NATIVE_LIMIT = 96
DEFAULT_SIZE = 224
# Raise it whenever decoding or resizing gives other pixels: old caches are then left alone.
DECODING = 2


def load_folder(
    root: Path,
    *,
    image_size: int | None,
    validation: float,
    skip_corrupt: bool,
    cache: Path,
    progress: bool,
) -> Data:
    """Load the images below ``root``, decoded once and then taken from ``cache``.

    test/ is the test split. Where it is absent val/ is, and validation is held out of train, as it is
    when there is no val/.

    Raises:
        UserError: a split, a class or an image is missing or cannot be read.
    """
    with naming_what_cannot_be_read(root):
        names = find_splits(root)
        found = {name: find_images(root, name) for name in names}
    images_of = {name: images for name, (images, _) in found.items()}
    classes = check_classes(root, images_of)
    files: list[str] = []
    labels: list[int] = []
    for name in names:
        for label, class_name in enumerate(classes):
            files += images_of[name][class_name]
            labels += [label] * len(images_of[name][class_name])

    paths = [root / file for file in files]
    native = _native_size(paths) if image_size is None else None
    check_fits(len(files), 3, image_size or native or DEFAULT_SIZE)  # before reading all of them
    content = content_key(root, files, cache)
    images, failed = _load_images(paths, image_size, native, content, cache, progress)
    unreadable = {files[i]: reason for i, reason in failed.items()}
    if unreadable and not skip_corrupt:
        name, reason = next(iter(unreadable.items()))
        more = f" (and {len(unreadable) - 1} more like it)" if len(unreadable) > 1 else ""
        raise UserError(
            f"{root / name} cannot be decoded: {reason}{more}. "
            "Repair or remove it, or leave such images out with --skip-corrupt."
        )

    splits: dict[str, Split] = {}
    start = 0
    all_labels = torch.tensor(labels)
    for name in names:
        stop = start + sum(map(len, images_of[name].values()))
        good = [i for i in range(start, stop) if i not in failed]
        if name == "train" and len(good) == stop - start:  # a view: build_data copies its parts
            splits[name] = Split(images[start:stop], all_labels[start:stop])
        else:
            splits[name] = Split(images[good], all_labels[good])
        _check_none_empty(root / name, splits[name], classes)
        start = stop

    has_test = "test" in splits
    return build_data(
        root.resolve().name,
        classes,
        splits["train"],
        splits.get("val") if has_test else None,
        splits["test" if has_test else "val"],
        validation=validation,
        content=content,
        skipped=list(unreadable),
        left_out=[name for _, others in found.values() for name in others],
    )


def find_splits(root: Path) -> list[str]:
    """Return which of train, val and test are folders in ``root``.

    Raises:
        UserError: there is no train, or neither val nor test.
    """
    there = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
    splits = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "train" not in splits or len(splits) < 2:
        found = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "") if there else "nothing"
        raise UserError(
            f"{root} needs the folders train/ and test/ (or val/), a folder per class in each; "
            f"it holds {found}."
        )
    return splits


def find_images(root: Path, split: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the image files of each class folder in ``root / split``, and what else is there.

    Folders inside a class folder belong to it, linked ones too, wherever they are; each is read once, so
    that links may lead in a circle.

    Returns:
        Images by class; and what is left out: files that are hidden, of another ending or in no class
        folder, hidden folders, and links to folders read already. All sorted, and relative to ``root``.

    Raises:
        UserError: there is no class folder.
    """
    images: dict[str, list[str]] = {}
    left_out: list[str] = []
    for entry in sorted(os.scandir(root / split), key=lambda entry: entry.name):
        if entry.name.startswith(".") or not entry.is_dir():
            left_out.append(f"{split}/{entry.name}")
        else:
            images[entry.name], others = _images_below(root, f"{split}/{entry.name}")
            left_out += others
    if not images:
        raise UserError(
            f"{root / split} holds no class folder: put the images of each class into one."
        )
    return images, left_out


def _images_below(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Return the image files in ``folder`` at any depth, and what else is there; relative to ``root``."""
    images: list[str] = []
    others: list[str] = []
    seen: set[tuple[int, int]] = set()
    # Links wait until all else has been read: what can be reached without one keeps its plain name.
    waiting, linked = [folder], list[str]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in seen:
            others.append(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
            name = f"{folder}/{entry.name}"
            if entry.name.startswith("."):
                others.append(name)
            elif entry.is_dir():
                (linked if entry.is_symlink() else waiting).append(name)
            elif entry.name.lower().endswith(ENDINGS):
                images.append(name)
            else:
                others.append(name)
    return sorted(images), sorted(others)


def left_out_line(names: list[str]) -> str:
    """Say how much in a folder of images is none, and name the first."""
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"left out {len(names)} files or folders that are hidden, no images by their ending, in no class "
        f"folder, or linked twice: {first}"
    )


def check_classes(root: Path, images_of: dict[str, dict[str, list[str]]]) -> list[str]:
    """Return the class names, the same in every split.

    Raises:
        UserError: a class is missing somewhere or has no image, or there is only one.
    """
    classes = list(images_of["train"])
    if len(classes) < 2:
        raise UserError(
            f"{root / 'train'} holds one class, {classes[0]!r}: at least two are needed."
        )
    for split, images in images_of.items():
        for name in classes:
            if name not in images:
                raise UserError(
                    f"Class {name!r} is in {root / 'train'} but not in {root / split}: add its folder there, "
                    "or take it out of train."
                )
            if not images[name]:
                raise UserError(
                    f"{root / split / name} holds no image ({' '.join(ENDINGS)}): add some, "
                    "or remove the class from every split."
                )
        for name in images:
            if name not in classes:
                raise UserError(
                    f"Class {name!r} is in {root / split} but not in {root / 'train'}: add its folder there, "
                    f"or take it out of {split}."
                )
    return classes


def _check_none_empty(folder: Path, split: Split, classes: list[str]) -> None:
    counts = torch.bincount(split.labels, minlength=len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if not count:
            raise UserError(
                f"{folder / name} holds no image that can be decoded: add some that can."
            )


def _load_images(
    paths: list[Path],
    image_size: int | None,
    native: int | None,
    content: str,
    cache: Path,
    progress: bool,
) -> tuple[torch.Tensor, dict[int, str]]:
    """Return the images of ``paths`` and the reasons of those that failed; cached or decoded.

    In their ``native`` size if that turns out to be the size of all.
    """
    identity = repr((content, image_size, NATIVE_LIMIT, DEFAULT_SIZE, DECODING))
    key = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    cached = load_images(cache, key)
    if cached is not None:
        return cached

    result = None
    if native:
        result = decode_files(paths, native, native=True, progress=progress)
    if result is None:
        size = image_size or DEFAULT_SIZE
        check_fits(len(paths), 3, size)
        result = decode_files(paths, size, progress=progress)
        assert result is not None  # only native=True may give up
    save_images(cache, key, *result)
    return result


def _native_size(paths: list[Path]) -> int | None:
    """Return the side of the first image that can be read, if it is square and small."""
    for path in paths:
        try:
            _, height, width = decode_image(read_file(path)).shape
        except ValueError:
            continue
        return height if height == width <= NATIVE_LIMIT else None
    return None
