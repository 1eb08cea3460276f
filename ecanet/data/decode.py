"""Image files to uint8 tensors: torchcodec, several times as fast, and PIL for what it can't read."""

from __future__ import annotations

import io
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ecanet.errors import UserError

decode_jpeg: Callable[..., Any] | None
try:
    from torchcodec.decoders import decode_jpeg
except (ImportError, OSError, RuntimeError):  # absent, older, or built for another torch
    decode_jpeg = None

# Below this many bytes a file, decoding is shorter than the hand-over of Python's lock between
# threads: measured on CIFAR-10's JPEGs, two threads are slower than one.
SMALL_FILE = 16_384
# Files decoded together: many small ones, for speed; few large ones, for memory.
SMALL_CHUNK, LARGE_CHUNK = 256, 4


def decode_image(content: bytes) -> Tensor:
    """Return an image as uint8 RGB (3, H, W), turned as its EXIF orientation says.

    Grey, palette and CMYK images become RGB; transparency is dropped, of an animation the first frame
    is taken, 16 bits become 8.

    Raises:
        ValueError: the image is empty, cut short or not an image; the message is a short reason.
    """
    if not content:
        raise ValueError("the file is empty")
    if decode_jpeg is not None and content.startswith(b"\xff\xd8"):
        try:
            return decode_jpeg(content)
        except (RuntimeError, ValueError):
            pass  # PIL reads more, and its reasons are shorter
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata
            with Image.open(io.BytesIO(content)) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I"):  # PIL would clip these at 255
                    upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                array = np.array(upright.convert("RGB"))
    except Image.UnidentifiedImageError:
        raise ValueError("not an image") from None  # PIL's own text names an object in memory
    except Exception as error:  # arbitrary bytes make PIL's plugins raise nearly anything
        reason = str(error).splitlines() or [type(error).__name__]
        raise ValueError(reason[0]) from None
    return torch.from_numpy(array).permute(2, 0, 1)


def fit_square(
    image: Tensor,
    size: int,
    resize: int | None = None,
    interpolation: str = "bilinear",
    *,
    squash: bool = False,
) -> Tensor:
    """Resize the short side of uint8 images (..., C, H, W) and cut a square of ``size`` at the centre.

    With antialiasing, as PIL and torchvision resize.

    Args:
        resize: pixels of the short side, at least ``size``, which it is by default.
        interpolation: bilinear or bicubic.
        squash: resize both sides to ``resize``.
    """
    resize = resize or size
    height, width = image.shape[-2:]
    if (height, width) == (size, size) == (resize, resize):
        return image
    batch = image if image.ndim == 4 else image[None]
    short = min(height, width)
    # In whole pixels, rounded down like torchvision's Resize
    shape = (resize * height // short, resize * width // short)
    if squash:
        shape = (resize, resize)
    if shape != (height, width):
        batch = F.interpolate(batch, shape, mode=interpolation, antialias=True)
    top, left = round((batch.shape[-2] - size) / 2), round((batch.shape[-1] - size) / 2)
    batch = batch[..., top : top + size, left : left + size]
    return batch if image.ndim == 4 else batch[0]


def read_file(path: Path) -> bytes:
    """Return the bytes of ``path``.

    Raises:
        UserError: it cannot be read.
    """
    with naming_what_cannot_be_read(path), open(path, "rb", buffering=0) as file:
        return file.read()


@contextmanager
def naming_what_cannot_be_read(path: Path) -> Iterator[None]:
    """Turn the system's errors into a :class:`UserError` with the file's name, or else ``path``."""
    try:
        yield
    except OSError as error:
        name = error.filename or path
        raise UserError(
            f"{name} cannot be read: {error.strerror}. Repair or remove it, or ask for access."
        ) from None


def _decode_chunk(contents: list[bytes]) -> list[Tensor | str]:
    """Decode each of ``contents``; where that fails the reason stands in for the image."""
    if decode_jpeg is not None:
        try:
            return decode_jpeg(contents)  # one call for all: twice as fast for small images
        except (RuntimeError, ValueError):
            pass
    images: list[Tensor | str] = []
    for content in contents:
        try:
            images.append(decode_image(content))
        except ValueError as error:
            images.append(str(error))
    return images


def decode_files(
    paths: Sequence[Path], size: int, *, native: bool = False, progress: bool = False
) -> tuple[Tensor, dict[int, str]] | None:
    """Decode image files into one tensor, in parallel where that is faster.

    Args:
        size: side of the square images that come out.
        native: return None as soon as an image has another size to begin with.
        progress: show a progress bar when it takes more than a second.

    Returns:
        Images uint8 (N, 3, size, size), and the reason for each index that cannot be decoded (its image
        is black).
    """
    images = torch.zeros(len(paths), 3, size, size, dtype=torch.uint8)
    failed: dict[int, str] = {}

    def decode(start: int, stop: int) -> bool:
        decoded = _decode_chunk([read_file(path) for path in paths[start:stop]])
        reasons = {start + i: image for i, image in enumerate(decoded) if isinstance(image, str)}
        good = [(start + i, image) for i, image in enumerate(decoded) if isinstance(image, Tensor)]
        failed.update(reasons)
        if native and any(image.shape[1:] != (size, size) for _, image in good):
            return False
        for i, image in good:
            images[i] = fit_square(image, size)
        return True

    sample = [os.path.getsize(path) for path in paths[:: max(1, len(paths) // 100)]]
    small = statistics.median(sample) < SMALL_FILE
    step = SMALL_CHUNK if small else LARGE_CHUNK
    starts = range(0, len(paths), step)
    stops = [min(start + step, len(paths)) for start in starts]
    bar = tqdm(
        total=len(paths),
        desc="Decoding images",
        unit=" images",
        delay=1,
        disable=None if progress else True,  # None: off where nobody watches
        leave=False,
    )
    pool = ThreadPoolExecutor(1 if small else os.cpu_count())
    try:
        with bar:
            done = pool.map(decode, starts, stops)
            for start, stop, alike in zip(starts, stops, done, strict=True):
                if not alike:
                    return None
                bar.update(stop - start)
    finally:
        pool.shutdown(cancel_futures=True)  # at Ctrl-C too: do not decode the rest first
    return images, dict(sorted(failed.items()))
