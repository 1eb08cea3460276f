"""Random access to images in WebDataset's tar shards, for data on a shared file system.

A shard holds ``KEY.jpg`` (or another image) and ``KEY.cls``, the label as a number. An index is built once
from the shards' headers and cached; after that an image is one read, and shuffling, resuming and several
processes work as with a folder of files. Nothing is ever unpacked.
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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from ecanet.data.cache import cache_folder
from ecanet.data.decode import read_errors
from ecanet.data.formats import ENDINGS
from ecanet.data.headers import check_bytes
from ecanet.data.stream import ImageList
from ecanet.errors import UserError, one_line
from ecanet.files import write_atomic

# Limit of labels, of which a list is made.
MAX_CLASSES = 1_000_000
# Limits in bytes of a member's header, with its long name and other fields, and of a label.
_HEADER, _LABEL = 2**20, 32
# To be raised whenever the content of an index changes, so that old ones are not used.
_VERSION = 2
# Directories and key, and ending of a member, split as by WebDataset.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class ShardedImages(ImageList):
    """Images inside tar files; ``files`` are named ``SHARD:MEMBER``."""

    shards: list[str]
    """The tar files, relative to ``root``."""
    places: np.ndarray
    """int64 (N, 3): the number of each image's shard, its offset there and its length, in bytes."""

    def subset(self, indices: Sequence[int]) -> ShardedImages:
        chosen = super().subset(indices)
        assert isinstance(chosen, ShardedImages)
        return replace(chosen, places=self.places[list(indices)])

    def read(self, index: int) -> bytes:
        shard, offset, length = (int(value) for value in self.places[index])
        check_bytes(length)
        path = self.root / self.shards[shard]
        with read_errors(path), open(path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length)


@dataclass(frozen=True)
class _Index:
    """The content of a shard."""

    members: list[str]
    labels: np.ndarray
    """int64 (N,)."""
    places: np.ndarray
    """int64 (N, 2): offset and length in bytes."""

    def fits(self, size: int) -> bool:
        """Whether it can be the index of a shard of ``size`` bytes."""
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
    """Whether ``root``/``split`` holds tar files rather than class folders."""
    return any((root / split).glob("*.tar"))


def list_shards(root: Path, split: str) -> ShardedImages:
    """Return the images of all shards of a split, in the order of the shards' names.

    The classes are the numbers from 0 to the largest label.

    Raises:
        UserError: a shard is no tar file or is truncated, or an image has no label or is no plain file.
    """
    shards = [f"{split}/{path.name}" for path in sorted((root / split).glob("*.tar"))]
    indices = [_indexed(root / shard) for shard in shards]
    found = zip(shards, indices, strict=True)
    names = [f"{shard}:{member}" for shard, index in found for member in index.members]
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
    """Return the index of a shard, from the cache or its headers."""
    with read_errors(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a file: remove it, or put a shard there")
    stamp = repr((_VERSION, str(path.resolve()), status.st_size, status.st_mtime_ns))
    name = hashlib.blake2b(os.fsencode(stamp), digest_size=16).hexdigest()
    kept = cache_folder() / "shards" / f"{name}.npz"
    if kept.exists():
        index = _load(kept)
        if index is not None and index.fits(status.st_size):
            return index
        warnings.warn(
            f"the index of {path} in {kept} is damaged and will be rebuilt from the shard",
            stacklevel=2,
        )
    index = _read_headers(path)
    content = io.BytesIO()
    members = np.frombuffer(json.dumps(index.members).encode(), np.uint8)
    np.savez(content, members=members, labels=index.labels, places=index.places)
    with suppress(OSError):  # then the headers are read again next time
        write_atomic(kept, content.getbuffer())
    return index


def _load(path: Path) -> _Index | None:
    try:
        with np.load(path) as kept:
            return _Index(json.loads(kept["members"].tobytes()), kept["labels"], kept["places"])
    except Exception:  # zipfile and numpy raise nearly anything for damaged files
        return None


class _Headers(io.FileIO):
    """A tar file of which only headers and labels are read."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size)


def _read_headers(path: Path) -> _Index:
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    with read_errors(path), _Headers(path) as file:
        size = path.stat().st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                place = -1
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would collect them all
                    if member.offset <= place or member.size < 0:
                        raise ValueError(f"{member.name} appears before the member it belongs to")
                    place = member.offset
                    _add_member(tar, member, images, labels)
        except (OSError, UserError):
            raise
        except Exception as error:  # tarfile raises nearly anything for forged files
            reason = one_line(error) or type(error).__name__
            raise UserError(f"{path} cannot be read as a shard: {reason}") from None
    if images:
        _, offset, length = max(images.values(), key=lambda image: image[1])
        if offset + length > size:
            raise UserError(f"{path} is truncated: copy it again")
    without = [name for key, (name, _, _) in images.items() if key not in labels]
    if without:
        raise UserError(
            f"{path}: {without[0]} has no label: a file of the same name that ends in .cls"
        )
    return _Index(
        [name for name, _, _ in images.values()],
        np.array([labels[key] for key in images], dtype=np.int64),
        np.array([image[1:] for image in images.values()], dtype=np.int64).reshape(-1, 2),
    )


def _add_member(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    images: dict[str, tuple[str, int, int]],
    labels: dict[str, int],
) -> None:
    """Add the position of an image, or the value of a label; a ValueError says why it cannot be."""
    name = member.name
    parts = _NAME.fullmatch(name)
    if parts is None or not (parts[2] == "cls" or f".{parts[2].lower()}" in ENDINGS):
        return
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name} points outside the shard")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise ValueError(f"{name} is a link, device or sparse file: pack plain files")
    key = parts[1]
    if key in (labels if parts[2] == "cls" else images):
        raise ValueError(f"{name}: the key {key} occurs twice")
    if parts[2] != "cls":
        images[key] = (name, member.offset_data, member.size)
        return
    if member.size > _LABEL:
        raise ValueError(f"the label {name} has {member.size:,} bytes, but should be a number")
    tar.fileobj.seek(member.offset_data)
    text = tar.fileobj.read(member.size).strip()
    if not text.isdigit() or int(text) >= MAX_CLASSES:
        raise ValueError(
            f"the label {name} is {text[:20]!r}: give a number from 0 to {MAX_CLASSES - 1:,}"
        )
    labels[key] = int(text)
