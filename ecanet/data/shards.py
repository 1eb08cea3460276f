"""Images in WebDataset's tar shards, read by position, for data that stand on a shared file system.

A shard holds ``KEY.jpg`` (or another image) beside ``KEY.cls``, the label as a number. What is where is
read once from the shards' headers and kept in the cache; after that an image is one read, and order,
resuming and several processes work as with a folder of files. Nothing is ever unpacked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ecanet.data.cache import cache_folder
from ecanet.data.decode import naming_what_cannot_be_read
from ecanet.data.folder import ENDINGS
from ecanet.data.headers import check_bytes
from ecanet.data.stream import ImageList
from ecanet.errors import UserError
from ecanet.files import write_atomic

# Labels are below it: a list of all classes is made.
MAX_CLASSES = 1_000_000
# Most bytes of a member's header with its long name and further fields, and of a label.
_HEADER, _LABEL = 2**20, 32
# Raise it whenever an index would hold something else: old ones are then left alone.
_VERSION = 2
# Directories, key and ending of a member, as WebDataset takes them apart.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class ShardedImages(ImageList):
    """Images inside tar files; ``files`` are named ``SHARD:MEMBER``."""

    shards: list[str]
    """The tar files, relative to ``root``."""
    places: np.ndarray
    """int64 (N, 3): the number of each image's shard, its offset there and its length, in bytes."""

    def read(self, index: int) -> bytes:
        shard, offset, length = (int(value) for value in self.places[index])
        check_bytes(length)
        path = self.root / self.shards[shard]
        with naming_what_cannot_be_read(path), open(path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length)


@dataclass(frozen=True)
class _Index:
    """What a shard holds."""

    members: list[str]
    labels: np.ndarray
    """int64 (N,)."""
    places: np.ndarray
    """int64 (N, 2): offset and length in bytes."""

    def fits(self, size: int) -> bool:
        """Whether it can be that of a shard of so many bytes."""
        count, (labels, places) = len(self.members), (self.labels, self.places)
        if labels.shape != (count,) or places.shape != (count, 2):
            return False
        if labels.dtype != np.int64 or places.dtype != np.int64:
            return False
        return not count or bool(
            labels.min() >= 0
            and labels.max() < MAX_CLASSES
            and places.min() >= 0
            and (places <= size).all()
            and places.sum(1).max() <= size
        )


def has_shards(root: Path, split: str) -> bool:
    """Whether ``root``/``split`` holds tar files in place of class folders."""
    return any((root / split).glob("*.tar"))


def list_shards(root: Path, split: str) -> ShardedImages:
    """Return the images of all shards of a split, in the order of the shards' names.

    The classes are the numbers from 0 to the largest label.

    Raises:
        UserError: a shard is no tar file or is cut short, an image has no label or is no plain file
            inside the shard.
    """
    shards = [f"{split}/{path.name}" for path in sorted((root / split).glob("*.tar"))]
    indices = [_indexed(root / shard) for shard in shards]
    names = [
        f"{shard}:{member}"
        for shard, index in zip(shards, indices, strict=True)
        for member in index.members
    ]
    if not names:
        raise UserError(
            f"the shards in {root / split} hold no image with a label (KEY.jpg, KEY.cls)"
        )
    labels = np.concatenate([index.labels for index in indices])
    numbers = np.repeat(np.arange(len(shards)), [len(index.members) for index in indices])
    places = np.column_stack([numbers, np.concatenate([index.places for index in indices])])
    classes = [str(number) for number in range(int(labels.max()) + 1)]
    return ShardedImages(root, names, labels.tolist(), classes, shards, places)


def _indexed(path: Path) -> _Index:
    """Return what a shard holds, from the cache or its headers."""
    with naming_what_cannot_be_read(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no file: remove it, or put a shard there")
    stamp = repr((_VERSION, str(path.resolve()), status.st_size, status.st_mtime_ns))
    name = hashlib.blake2b(os.fsencode(stamp), digest_size=16).hexdigest()
    kept = cache_folder() / "shards" / f"{name}.npz"
    if kept.exists():
        index = _load(kept)
        if index is not None and index.fits(status.st_size):
            return index
        warnings.warn(
            f"the index of {path} in {kept} is damaged, and made anew from the shard", stacklevel=2
        )
    index = _read_headers(path)
    content = io.BytesIO()
    members = np.frombuffer(json.dumps(index.members).encode(), np.uint8)
    np.savez(content, members=members, labels=index.labels, places=index.places)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, content.getbuffer())
    except OSError:
        pass  # without a cache the headers are read again next time
    return index


def _load(path: Path) -> _Index | None:
    try:
        with np.load(path) as kept:
            return _Index(json.loads(kept["members"].tobytes()), kept["labels"], kept["places"])
    except Exception:  # bytes that have changed make zipfile and numpy raise nearly anything
        return None


class _Headers(io.FileIO):
    """A tar file of which no more than headers and labels are read."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size)


def _read_headers(path: Path) -> _Index:
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    with naming_what_cannot_be_read(path), _Headers(path) as file:
        size = path.stat().st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                place = -1
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                    if member.offset <= place or member.size < 0:
                        raise ValueError(f"{member.name} lies before what it follows")
                    place = member.offset
                    _take(tar, member, images, labels)
        except (OSError, UserError):
            raise
        except Exception as error:  # bytes made for it make tarfile raise nearly anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{path} cannot be read as a shard: {reason}") from None
    if images:
        _, offset, length = max(images.values(), key=lambda image: image[1])
        if offset + length > size:
            raise UserError(f"{path} is cut short: fetch it again")
    without = [name for key, (name, _, _) in images.items() if key not in labels]
    if without:
        raise UserError(f"{path}: {without[0]} has no label, a file of its name that ends in .cls")
    return _Index(
        [name for name, _, _ in images.values()],
        np.array([labels[key] for key in images], dtype=np.int64),
        np.array([image[1:] for image in images.values()], dtype=np.int64).reshape(-1, 2),
    )


def _take(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    images: dict[str, tuple[str, int, int]],
    labels: dict[str, int],
) -> None:
    """Note where an image is, or what a label says.

    Raises:
        ValueError: it is no plain file inside the shard, twice there, or no label.
    """
    name = member.name
    parts = _NAME.fullmatch(name)
    if parts is None or not (parts[2] == "cls" or f".{parts[2].lower()}" in ENDINGS):
        return
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name} is a name outside the shard")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise ValueError(f"{name} is a link, device or sparse file: pack plain files")
    key = parts[1]
    if key in (labels if parts[2] == "cls" else images):
        raise ValueError(f"{name}: {key} is there twice")
    if parts[2] != "cls":
        images[key] = (name, member.offset_data, member.size)
        return
    if member.size > _LABEL:
        raise ValueError(f"the label {name} has {member.size:,} bytes, and is to be a number")
    tar.fileobj.seek(member.offset_data)
    text = tar.fileobj.read(member.size).strip()
    if not text.isdigit() or int(text) >= MAX_CLASSES:
        raise ValueError(
            f"the label {name} is {text[:20]!r}: give a number from 0 to {MAX_CLASSES - 1:,}"
        )
    labels[key] = int(text)
