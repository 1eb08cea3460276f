"""Image folders: train/ and val/ or test/, each with a folder per class."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from ecanet.data.cache import content_key, load_images, save_images
from ecanet.data.dataset import Data, Split, build_data, check_fits
from ecanet.data.decode import decode_files, decode_image, read_errors, read_file
from ecanet.data.stream import ImageList
from ecanet.errors import UserError, first_of

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Square images that all have one size up to this side in pixels keep it; others are resized.
NATIVE_LIMIT = 96
DEFAULT_SIZE = 224
# To be raised whenever decoding or resizing gives other pixels, so that old caches are not used.
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
    """Load the images in ``root``, which are decoded once and then read from ``cache``.

    Which split is what: :func:`split_roles`.

    Raises:
        UserError: a split, a class or an image is missing or cannot be read.
    """
    with read_errors(root):
        lists = list_folders(root, find_splits(root))
    classes = lists["train"].classes
    files = [file for listed in lists.values() for file in listed.files]
    labels = torch.tensor([label for listed in lists.values() for label in listed.labels])
    paths = [root / file for file in files]
    native = native_size(paths) if image_size is None else None
    check_fits(len(files), 3, image_size or native or DEFAULT_SIZE)  # before reading all of them
    content = content_key(root, files, cache)
    images, failed = _load_images(paths, image_size, native, content, cache, progress)
    unreadable = {files[i]: reason for i, reason in failed.items()}
    if unreadable and not skip_corrupt:
        name, reason = next(iter(unreadable.items()))
        more = f" (and {len(unreadable) - 1} more like it)" if len(unreadable) > 1 else ""
        raise UserError(
            f"{root / name} cannot be decoded: {reason}{more}. "
            "Repair or remove it, or skip such images with --corrupt skip."
        )

    val, test, held_out = split_roles(root, list(lists), validation)
    splits: dict[str, Split] = {}
    start = 0
    for name, listed in lists.items():
        stop = start + len(listed)
        good = [i for i in range(start, stop) if i not in failed]
        if name == "train" and len(good) == stop - start:
            # A view, of which build_data copies parts.
            splits[name] = Split(images[start:stop], labels[start:stop])
        else:
            splits[name] = Split(images[good], labels[good])
        counts = torch.bincount(splits[name].labels, minlength=len(classes)).tolist()
        if 0 in counts:
            folder = root / name / classes[counts.index(0)]
            raise UserError(f"{folder} holds no image that can be decoded: add some")
        start = stop

    return build_data(
        root.resolve().name,
        classes,
        splits["train"],
        splits[val] if val else None,
        splits[test] if test else None,
        validation=held_out,
        content=content,
        skipped=list(unreadable),
        left_out=[name for listed in lists.values() for name in listed.left_out],
    )


def split_roles(
    root: Path, splits: list[str], validation: float
) -> tuple[str | None, str | None, float]:
    """Return the split for choices and curves, the test split, and what to hold out of train instead.

    val/ beside test/ is the validation split. Otherwise ``validation`` is held out of train, and the
    other split is the test split; val/ without test/ is the validation split if ``validation`` is 0, and
    then there is no test split.

    Raises:
        UserError: there is nothing to validate on.
    """
    if "val" in splits and "test" in splits:
        return "val", "test", 0.0
    if validation:
        return None, "test" if "test" in splits else "val", validation
    if "val" not in splits:
        raise UserError(
            f"--validation 0: {root} has no val/ to choose by; give a fraction of train"
        )
    return "val", None, 0.0


def find_splits(root: Path) -> list[str]:
    """Return which of the folders train, val and test are in ``root``.

    Raises:
        UserError: there is no train, or neither val nor test.
    """
    there = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
    splits = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "train" not in splits or len(splits) < 2:
        raise UserError(
            f"{root} needs the folders train/ and test/ (or val/), a folder per class in each; "
            f"it holds {first_of(there, 5) or 'nothing'}"
        )
    return splits


def find_images(root: Path, split: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the image files of each class folder in ``root / split``, and what is skipped.

    A class folder includes its subfolders, linked ones too; each folder is read once, so links may form
    circles.

    Returns:
        Images by class; and what is skipped: files that are hidden, have another ending or are in no class
        folder, hidden folders, and links to folders already read. All sorted, relative to ``root``.

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
            f"{root / split} holds no class folder: put the images of each class into one"
        )
    return images, left_out


def _images_below(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Return the image files in ``folder`` at any depth, and what is skipped; relative to ``root``."""
    images: list[str] = []
    others: list[str] = []
    seen: set[tuple[int, int]] = set()
    # Links come last: what can be reached without one keeps its plain name.
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
    """Return a line with the number of files that were skipped, and the first of them."""
    return (
        f"skipped {len(names)} files or folders that are hidden, no images by their ending, in no class "
        f"folder, or linked twice: {first_of(names, 3)}"
    )


def list_folders(root: Path, splits: list[str]) -> dict[str, ImageList]:
    """Return the images of ``splits``, train among them, which all have the same class folders.

    Raises:
        UserError: a class is missing from a split or has no image there, or there is only one class.
    """
    found = {split: find_images(root, split) for split in splits}
    images_of = {split: images for split, (images, _) in found.items()}
    classes = list(images_of["train"])
    if len(classes) < 2:
        raise UserError(
            f"{root / 'train'} holds one class, {classes[0]!r}: at least two are needed"
        )
    for split, images in images_of.items():
        for here, there in (("train", split), (split, "train")):
            for name in images_of[here]:
                if name not in images_of[there]:
                    raise UserError(
                        f"class {name!r} is in {root / here} but not in {root / there}: add its folder "
                        f"there, or remove it from {here}"
                    )
        for name in classes:
            if not images[name]:
                raise UserError(
                    f"{root / split / name} holds no image ({' '.join(ENDINGS)}): add some, or remove "
                    "the class from every split"
                )
    return {split: image_list(root, *found[split], classes) for split in splits}


def image_list(
    root: Path, images: dict[str, list[str]], left_out: list[str], classes: list[str]
) -> ImageList:
    """Return what :func:`find_images` found in a split, labeled by the order of ``classes``."""
    files = [(file, label) for label, name in enumerate(classes) for file in images[name]]
    names, labels = [file for file, _ in files], [label for _, label in files]
    return ImageList(root, names, labels, classes, left_out=left_out)


def _load_images(
    paths: list[Path],
    image_size: int | None,
    native: int | None,
    content: str,
    cache: Path,
    progress: bool,
) -> tuple[torch.Tensor, dict[int, str]]:
    """Return the images of ``paths`` and the reasons of those that failed; from the cache or decoded.

    They keep the ``native`` size if all of them have it.
    """
    identity = repr((content, image_size, NATIVE_LIMIT, DEFAULT_SIZE, DECODING))
    key = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    cached = load_images(cache, key, len(paths))
    if cached is not None:
        return cached

    result = None
    if native:
        result = decode_files(paths, native, native=True, progress=progress)
    if result is None:
        size = image_size or DEFAULT_SIZE
        check_fits(len(paths), 3, size)
        result = decode_files(paths, size, progress=progress)
        assert result is not None  # only native=True can return None
    save_images(cache, key, *result)
    return result


def native_size(paths: list[Path]) -> int | None:
    """Return the side of images that are square, alike and small, as far as 64 of them show, or None."""
    sides = set()
    for path in paths[:: max(1, len(paths) // 64)]:
        try:
            _, height, width = decode_image(read_file(path)).shape
        except ValueError:
            continue
        sides.add(height if height == width <= NATIVE_LIMIT else None)
        if len(sides) > 1 or None in sides:
            return None
    return sides.pop() if sides else None
