"""Image folders: a folder per class, in the folders of the splits or by themselves."""

from __future__ import annotations

import os
from pathlib import Path

from ecanet.data.decode import read_errors
from ecanet.data.formats import ENDINGS, is_ignored, unread_line
from ecanet.data.splits import SPLITS, split_named
from ecanet.data.stream import ImageList
from ecanet.errors import UserError, counted, first_of

WHOLE = ""
"""The folder of a data set without splits, relative to it."""


def find_splits(root: Path) -> dict[str, str]:
    """Return the folder of each split that ``root`` has, by ``train``, ``val`` and ``test``; of several,
    train first. Without such folders all images are in train.

    Raises:
        UserError: two folders are of one split, or it cannot be read.
    """
    found: dict[str, str] = {}
    with read_errors(root):
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    for folder in folders:
        split = split_named(folder)
        if split in found:
            raise UserError(
                f"{root} has two folders of one split, {found[split]}/ and {folder}/: keep one"
            )
        if split:
            found[split] = folder
    return {split: found[split] for split in SPLITS if split in found} or {"train": WHOLE}


def find_images(root: Path, folder: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the image files of each class folder in ``root / folder``, and what is skipped.

    A class folder includes its subfolders, linked ones too; each folder is read once, so links may form
    circles.

    Returns:
        Images by class; and what is skipped: files that are hidden, have another ending or are in no class
        folder, hidden folders, and links to folders already read or that they lie in. All sorted, relative
        to ``root``.

    Raises:
        UserError: there is no class folder.
    """
    images: dict[str, list[str]] = {}
    left_out: list[str] = []
    for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
        name = f"{folder}/{entry.name}" if folder else entry.name
        if is_ignored(entry.name) or not entry.is_dir():
            left_out.append(name)
        else:
            images[entry.name], others = images_below(root, name)
            left_out += others
    if not images:
        raise UserError(
            f"{root / folder} holds no class folder: put the images of each class into one; it holds "
            f"{first_of([Path(name).name for name in left_out], 3) or 'nothing'}"
        )
    return images, left_out


def images_below(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Return the image files in ``folder`` at any depth, and what is skipped; relative to ``root``."""
    images: list[str] = []
    others: list[str] = []
    seen: set[tuple[int, int]] = set()
    # Links come last: what can be reached without one keeps its plain name.
    waiting, linked, top = [folder], list[str](), root / folder
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in seen:
            others.append(folder)
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
            name = f"{folder}/{entry.name}"
            if is_ignored(entry.name):
                others.append(name)
            elif entry.is_symlink() and _leads_up(entry.path, top):
                others.append(name)  # with the images of other classes
            elif entry.is_dir():
                (linked if entry.is_symlink() else waiting).append(name)
            elif entry.name.lower().endswith(ENDINGS):
                images.append(name)
            else:
                others.append(name)
    return sorted(images), sorted(others)


def _leads_up(link: str, top: Path) -> bool:
    """Whether a link leads to a folder that it or ``top`` lies in."""
    target = os.path.realpath(link)
    places = os.path.realpath(os.path.dirname(link)), os.path.realpath(top)
    return any(os.path.commonpath([target, place]) == target for place in places)


def left_out_line(names: list[str]) -> str:
    """Return a line with the number of files that were skipped, and the first of them."""
    skipped = (
        f"skipped {counted(len(names), 'name')} (hidden files, system files such as thumbnails, files "
        "without an image's extension, files outside any class folder, and links that repeat others): "
        f"{first_of(names, 3)}"
    )
    unread = unread_line(names)
    return f"{skipped}. {unread}" if unread else skipped


def list_folders(root: Path, folders: dict[str, str]) -> dict[str, ImageList]:
    """Return the images of splits, by the ``folders`` they are in.

    Raises:
        UserError: a class of another split is not in train, or has no image there; or they cannot be listed.
    """
    with read_errors(root):
        found = {split: find_images(root, folder) for split, folder in folders.items()}
    classes = sorted({name for images, _ in found.values() for name in images})
    if "train" in found:
        images, left_out = found["train"]
        classes = list(images)
        here = root / folders["train"]
        for split, (others, _) in found.items():
            if unknown := [repr(name) for name in others if name not in images]:
                raise UserError(
                    f"class {first_of(unknown, 5)} is in {root / folders[split]} but not in {here}: add its "
                    f"folder there, or remove it from {folders[split]}"
                )
        for name in classes:
            if not images[name]:
                inside = os.path.join(folders["train"], name, "")
                unread = unread_line(file for file in left_out if file.startswith(inside))
                raise UserError(
                    f"{here / name} holds no image ({' '.join(ENDINGS)}): add some, or remove "
                    f"the class from every split{unread and f'; {unread}'}"
                )
    for split, (by_class, _) in found.items():
        if not any(by_class.values()):
            raise UserError(
                f"{root / folders[split]} holds no image ({' '.join(ENDINGS)}): add some"
            )
    if WHOLE not in folders.values():
        ignored = [
            entry.name
            for entry in os.scandir(root)
            if entry.is_dir() and not is_ignored(entry.name) and not split_named(entry.name)
        ]
        next(iter(found.values()))[1].extend(sorted(ignored))
    return {split: image_list(root, *found[split], classes) for split in folders}


def image_list(
    root: Path, images: dict[str, list[str]], left_out: list[str], classes: list[str]
) -> ImageList:
    """Return what :func:`find_images` found in a split, labeled by the order of ``classes``."""
    files = [(file, label) for label, name in enumerate(classes) for file in images.get(name, [])]
    names, labels = [file for file, _ in files], [label for _, label in files]
    return ImageList(root, names, labels, classes, left_out=left_out)
