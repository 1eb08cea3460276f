"""Data sets as Ultralytics takes them: a YAML that names folders or lists of images, and their classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecanet.errors import UserError, did_you_mean
from ecanet.inputs import check_yolo
from ecanet.yaml_file import read_yaml

SPLITS = ("train", "val", "test")

_SUFFIXES = {
    ".avif", ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpeg2000", ".jpg", ".mpo", ".png", ".tif",
    ".tiff", ".webp",
}  # fmt: skip


@dataclass
class YoloData:
    """A data set, of which the images have been listed and the labels read."""

    file: Path
    names: dict[int, str]
    origins: dict[str, list[str]]
    """The folders and lists of each split."""
    train: list[str]
    val: list[str]
    test: list[str] | None
    fingerprint: str
    """A hash of the labels, and of the names and sizes of the images."""
    channels: int = 3
    skipped: list[str] = field(default_factory=list)
    """What the library that trains leaves out of it, a line for each."""
    notices: list[str] = field(default_factory=list)
    """What is to be said of it before anything is trained."""

    def as_dict(self) -> dict[str, Any]:
        """Return what trainers of Ultralytics take for their data."""
        return {
            "path": self.file.parent,
            "yaml_file": str(self.file),
            "names": dict(self.names),
            "nc": len(self.names),
            "channels": self.channels,
            **self.origins,
        }


def read_data(path: str | None) -> YoloData:
    """Read a data set's YAML, list its images and hash their labels. Nothing is downloaded.

    Raises:
        UserError: none is given, it is no such YAML, or an image or all labels are missing.
    """
    file = check_yolo(path)
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: give path, train, val and names, as Ultralytics takes them")
    if "val" not in content and "validation" in content:
        content["val"] = content["validation"]
    for name in ("train", "val", "names"):
        if not content.get(name):
            hint = did_you_mean(name, content) if content else ""
            raise UserError(f"{file} has no {name}, which a data set of Ultralytics needs.{hint}")
    root = _root(file, content.get("path"))
    origins, images = {}, {}
    for split in SPLITS:
        if content.get(split):
            origins[split], images[split] = _images(file, root, split, content[split])
    found = hashlib.blake2b(digest_size=16)
    for split, paths in images.items():
        if not _add(found, split, paths):
            raise UserError(
                f"{file}: none of the {len(paths)} images of {split} has a label file, such as "
                f"{label_file(paths[0])}"
            )
    names = _names(file, content["names"])
    found.update(repr(sorted(names.items())).encode())
    channels = content.get("channels", 3)
    if channels not in (1, 3):
        raise UserError(f"{file}: channels is {channels!r}, and 1 or 3 are possible")
    return YoloData(
        file, names, origins, images["train"], images["val"], images.get("test"),
        found.hexdigest(), channels,
    )  # fmt: skip


def label_file(image: str) -> Path:
    """Return the file with the labels of an image: in ``labels`` in place of the last folder ``images``."""
    before, folder, after = image.rpartition("/images/")
    return Path(f"{before}/labels/{after}" if folder else image).with_suffix(".txt")


def _root(file: Path, given: Any) -> Path:
    """Return the folder that a YAML's paths are relative to."""
    if given is None:
        return file.parent
    if not isinstance(given, str):
        raise UserError(f"{file}: path is {given!r}, and not a folder")
    root = Path(given).expanduser()
    # Ultralytics takes a relative one from the current folder, which differs between workers.
    return root if root.is_absolute() else file.parent / root


def _images(file: Path, root: Path, split: str, given: Any) -> tuple[list[str], list[str]]:
    """Return a split's folders and lists, and its images."""
    origins = given if isinstance(given, list) else [given]
    places: list[str] = []
    images: list[str] = []
    for origin in origins:
        if not isinstance(origin, str):
            raise UserError(f"{file}: {split} is {origin!r}, and not a folder or a list of images")
        place = (root / origin).resolve()
        if place.is_dir():
            images += map(str, place.rglob("*.*"))
        elif place.is_file():
            images += _listed(place)
        else:
            raise UserError(
                f"{file}: the images of {split} are missing, as there is no {place}; ecanet does "
                f"not download them"
            )
        places.append(str(place))
    images = sorted(image for image in images if Path(image).suffix.lower() in _SUFFIXES)
    if not images:
        raise UserError(f"{file}: {split} has no images in {', '.join(places)}")
    return places, images


def _listed(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a list of images: {error}") from None
    paths = [line.strip() for line in lines if line.strip()]
    return [f"{file.parent}/{path[2:]}" if path.startswith("./") else path for path in paths]


def _add(found: Any, split: str, images: list[str]) -> int:
    """Add a split to a hash; return how many of its images have labels."""
    labelled = 0
    found.update(f"{split}\n".encode())
    for image in images:
        try:
            size = Path(image).stat().st_size
        except OSError as error:
            raise UserError(f"{image}: {error.strerror}") from None
        try:
            labels = label_file(image).read_bytes()
            labelled += 1
        except FileNotFoundError:
            labels = b""
        found.update(f"{Path(image).name} {size} {len(labels)}\n".encode() + labels)
    return labelled


def _names(file: Path, given: Any) -> dict[int, str]:
    names = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(names, dict) or sorted(names, key=str) != sorted(range(len(names)), key=str):
        raise UserError(f"{file}: names must be a list of the classes, or a mapping 0: ..., 1: ...")
    return {number: str(names[number]) for number in range(len(names))}
