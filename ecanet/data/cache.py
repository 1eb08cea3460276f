"""Decoded images on disk, under a name made from the content they came from.

An entry is two files: KEY.bin (the bytes of the tensor) and KEY.json (shape, checksum, failures), written
in this order, each atomically. Whatever is missing or damaged is a miss, never an error; the folder may
be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor

from ecanet.data.decode import naming_what_cannot_be_read, read_file
from ecanet.data.memory import check_fits
from ecanet.files import write_atomic, write_json

# A file changed within this time (s) of being hashed could change again under the same time stamp.
STAMP_RESOLUTION = 2.0


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Return ``given``, or $ECANET_CACHE, or ecanet's folder in the user's cache."""
    if given is not None:
        return Path(given).expanduser()
    if os.environ.get("ECANET_CACHE"):
        return Path(os.environ["ECANET_CACHE"]).expanduser()
    return platformdirs.user_cache_path("ecanet", appauthor=False)


def load_images(folder: Path, key: str, count: int) -> tuple[Tensor, dict[int, str]] | None:
    """Return the ``count`` images that :func:`save_images` stored under ``key``, or None where they are
    not there, whole.

    Raises:
        UserError: it is there, but does not fit in memory.
    """
    try:
        entry = json.loads((folder / f"{key}.json").read_text())
        failed = {int(index): str(reason) for index, reason in entry["failed"].items()}
        images, channels, size, width = (int(length) for length in entry["shape"])
        file = folder / f"{key}.bin"
        if images != count or min(channels, size) < 1 or width != size:
            return None
        if file.stat().st_size != count * channels * size**2 or not set(failed) <= set(
            range(count)
        ):
            return None
        check_fits(count, channels, size)
        array = np.fromfile(file, dtype=np.uint8)
        if zlib.crc32(array.data) != entry["crc32"]:
            return None
        return torch.from_numpy(array).view(count, channels, size, size), failed
    except (
        OSError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ):
        return None


def save_images(folder: Path, key: str, images: Tensor, failed: dict[int, str]) -> None:
    """Store uint8 ``images`` and why those ``failed`` could not be decoded.

    Where that cannot be done a warning says so, and the program goes on.
    """
    values = images.contiguous().numpy().data.cast("B")
    entry = {"shape": list(images.shape), "crc32": zlib.crc32(values), "failed": failed}
    try:
        write_atomic(folder / f"{key}.bin", values)
        write_json(folder / f"{key}.json", entry)
    except OSError as error:
        warnings.warn(
            f"Decoded images are not cached in {folder} ({error.strerror}) and will be decoded again "
            "next time: free some space, or set ECANET_CACHE to another folder.",
            stacklevel=2,
        )


def content_key(root: Path, names: Sequence[str], folder: Path) -> str:
    """Return a hash of ``names``, files relative to ``root``, and of their bytes.

    Reading every file takes seconds, so the hash is kept in ``folder`` under a hash of what the file
    system says of them: absolute names, sizes, times of the last change of content and of the entry.
    The latter cannot be set by a program, so that no change goes unnoticed.
    """
    stamps = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16)
    newest = 0.0
    with naming_what_cannot_be_read(root):
        for name in names:
            status = os.stat(os.path.join(root, name))
            newest = max(newest, status.st_ctime, status.st_mtime)
            stamp = (name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            stamps.update(repr(stamp).encode())
    known = folder / f"{stamps.hexdigest()}.key"
    try:
        key, check = known.read_text().split()
        if int(check) == zlib.crc32(key.encode()):
            return key
    except (OSError, ValueError):
        pass
    started = time.time()
    content = hashlib.blake2b(digest_size=16)
    for name in names:
        content.update(os.fsencode(name) + b"\0")
        try:
            image = read_file(root / name)
        except ValueError as error:  # no image, whose content then makes no difference
            image = str(error).encode()
        content.update(hashlib.blake2b(image, digest_size=16).digest())
    key = content.hexdigest()
    if newest < started - STAMP_RESOLUTION:
        with contextlib.suppress(OSError):  # save_images says it
            write_atomic(known, f"{key} {zlib.crc32(key.encode())}")
    return key
