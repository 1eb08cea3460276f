"""Images in WebDataset's tar shards, read by position, for data that stand on a shared file system.

A shard holds ``KEY.jpg`` (or another image) beside ``KEY.cls``, the label as a number. What is where is
read once from the shards' headers and kept in the cache; after that an image is one read, and order,
resuming and several processes work as with a folder of files.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecanet.data.cache import cache_folder
from ecanet.data.decode import naming_what_cannot_be_read
from ecanet.data.folder import ENDINGS
from ecanet.data.stream import ImageList
from ecanet.errors import UserError


@dataclass(frozen=True)
class ShardedImages(ImageList):
    """Images inside tar files; ``files`` are named ``SHARD:MEMBER``."""

    places: np.ndarray
    """int64 (N, 2): offset and length of each image in its shard, in bytes."""

    def read(self, index: int) -> bytes:
        shard, _, _ = self.files[index].partition(":")
        offset, length = (int(value) for value in self.places[index])
        path = self.root / shard
        with naming_what_cannot_be_read(path), open(path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length)


def has_shards(root: Path, split: str) -> bool:
    """Whether ``root``/``split`` holds tar files in place of class folders."""
    return any((root / split).glob("*.tar"))


def list_shards(root: Path, split: str) -> ShardedImages:
    """Return the images of all shards of a split, in the order of the shards' names.

    The classes are the numbers from 0 to the largest label.

    Raises:
        UserError: a shard is no tar file or is cut short, or an image has no label.
    """
    names: list[str] = []
    labels: list[int] = []
    places: list[np.ndarray] = []
    for path in sorted((root / split).glob("*.tar")):
        members, shard_labels, shard_places = _indexed(path)
        names += [f"{split}/{path.name}:{member}" for member in members]
        labels += shard_labels.tolist()
        places.append(shard_places)
    if not names:
        raise UserError(
            f"the shards in {root / split} hold no image with a label (KEY.jpg, KEY.cls)"
        )
    classes = [str(number) for number in range(max(labels) + 1)]
    return ShardedImages(root, names, labels, classes, np.concatenate(places))


def _indexed(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return a shard's image members, labels and places, from the cache or its headers."""
    with naming_what_cannot_be_read(path):
        stat = path.stat()
    stamp = repr((str(path.resolve()), stat.st_size, stat.st_mtime_ns))
    kept = cache_folder() / "shards" / f"{hashlib.blake2b(stamp.encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(kept) as index:
            return index["members"].tolist(), index["labels"], index["places"]
    except (OSError, ValueError, KeyError):
        pass
    members, labels, places = _index(path)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{id(members)}.npz")
        np.savez(partial, members=np.array(members), labels=labels, places=places)
        partial.replace(kept)
    except OSError:
        pass  # without a cache the headers are read again next time
    return members, labels, places


def _index(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                if not member.isfile():
                    continue
                if f".{ending.lower()}" in ENDINGS:
                    images[key] = (member.name, member.offset_data, member.size)
                elif ending == "cls":
                    content = tar.extractfile(member)
                    assert content is not None
                    labels[key] = int(content.read())
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a shard: {error}") from None
    if images:
        _, offset, length = max(images.values(), key=lambda image: image[1])
        if offset + length > path.stat().st_size:
            raise UserError(f"{path} is cut short: fetch it again")
    without = [name for key, (name, _, _) in images.items() if key not in labels]
    if without:
        raise UserError(f"{path}: {without[0]} has no label, a file of its name that ends in .cls")
    return (
        [name for name, _, _ in images.values()],
        np.array([labels[key] for key in images], dtype=np.int64),
        np.array([image[1:] for image in images.values()], dtype=np.int64).reshape(-1, 2),
    )
