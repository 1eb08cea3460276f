"""Cache of decoded images on disk, keyed by the content of their files.

An entry is two files, KEY.bin (the bytes of the tensor) and KEY.json (shape, checksum, failures), each
written atomically, in this order. A missing or damaged entry is a miss, never an error; the folder may be
deleted at any time.
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

from ecanet.data.dataset import check_fits
from ecanet.data.decode import read_errors, read_file
from ecanet.errors import UserError
from ecanet.files import write_atomic, write_json

# Seconds within which a file could change again under the same time stamp.
STAMP_RESOLUTION = 2.0


def cache_folder() -> Path:
    """Return $ECANET_CACHE, or ecanet's folder in the user's cache."""
    if os.environ.get("ECANET_CACHE"):
        return Path(os.environ["ECANET_CACHE"]).expanduser()
    return platformdirs.user_cache_path("ecanet", appauthor=False)


def load_images(folder: Path, key: str, count: int) -> tuple[Tensor, dict[int, str]] | None:
    """Return the ``count`` images that :func:`save_images` stored under ``key``; None if there is no intact
    entry.

    Raises:
        UserError: the images do not fit in memory.
    """
    try:
        entry = json.loads((folder / f"{key}.json").read_text())
        failed = {int(index): str(reason) for index, reason in entry["failed"].items()}
        images, channels, size, width = (int(length) for length in entry["shape"])
        file = folder / f"{key}.bin"
        is_square = images == count and min(channels, size) >= 1 and width == size
        if not is_square or file.stat().st_size != count * channels * size**2:
            return None
        if not set(failed) <= set(range(count)):
            return None
        check_fits(count, channels, size)
        array = np.fromfile(file, dtype=np.uint8)
        if zlib.crc32(array.data) != entry["crc32"]:
            return None
        return torch.from_numpy(array).view(count, channels, size, size), failed
    except UserError:
        raise
    except Exception:  # damaged entries raise nearly anything
        return None


def save_images(folder: Path, key: str, images: Tensor, failed: dict[int, str]) -> None:
    """Store uint8 ``images`` and the reasons of those that ``failed`` to decode.

    A failure to write is only a warning.
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
    """Return a hash of the ``names`` of files relative to ``root``, and of their bytes.

    Reading every file takes seconds, so the hash is kept in ``folder`` under a hash of the files' metadata:
    absolute names, sizes, mtimes and ctimes. Programs cannot set a ctime, so no change goes unnoticed.
    """
    stamps = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16)
    newest = 0.0
    with read_errors(root):
        for name in names:
            status = os.stat(os.path.join(root, name))
            newest = max(newest, status.st_ctime, status.st_mtime)
            stamp = (name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            stamps.update(repr(stamp).encode())
    known = folder / f"{stamps.hexdigest()}.key"
    with contextlib.suppress(OSError, ValueError):
        key, check = known.read_text().split()
        if int(check) == zlib.crc32(key.encode()):
            return key
    started = time.time()
    content = hashlib.blake2b(digest_size=16)
    for name in names:
        content.update(os.fsencode(name) + b"\0")
        try:
            image = read_file(root / name)
        except ValueError as error:  # no image, so its content makes no difference
            image = str(error).encode()
        content.update(hashlib.blake2b(image, digest_size=16).digest())
    key = content.hexdigest()
    if newest < started - STAMP_RESOLUTION:
        with contextlib.suppress(OSError):  # save_images warns
            write_atomic(known, f"{key} {zlib.crc32(key.encode())}")
    return key
