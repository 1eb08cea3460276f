"""Decodes image files to uint8 tensors, by torchcodec, which is several times as fast, or else PIL."""

from __future__ import annotations

import functools
import io
import math
import os
import stat
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    TILELENGTH,
    TILEWIDTH,
)
from torch import Tensor

from ecanet.activity import activity
from ecanet.data.formats import FORMATS
from ecanet.data.headers import (
    MAX_PIXELS,
    check_bytes,
    check_parts,
    check_size,
    check_tiff,
    jpeg_size,
)
from ecanet.errors import UserError

decode_jpeg: Callable[..., Any] | None
try:
    from torchcodec.decoders import decode_jpeg
except (ImportError, OSError, RuntimeError):  # absent, older, or built for another torch
    decode_jpeg = None

# Bytes of a file below which decoding takes less time than handing over Python's lock: measured on
# CIFAR-10's JPEGs, two threads are slower than one.
SMALL_FILE = 16_384
# Files decoded together: many small ones for speed, few large ones for memory.
SMALL_CHUNK, LARGE_CHUNK = 256, 4

# Limit in bytes of formats that PIL decodes in Python: plain-text PPMs, run-length coded BMPs.
MAX_SLOW_BYTES = 2**24
# EXIF orientation of an image that needs no rotation.
UPRIGHT = 1
# ITU-R 601 in 16 bits, as in PIL: grey pixels keep their value.
_LUMA = (19595, 38470, 7471)

# The values of deep pixels that become black and white.
Window: TypeAlias = tuple[float, float]


def as_window(values: Sequence[float] | None) -> Window | None:
    """Return the window of a setting."""
    return None if values is None else (float(values[0]), float(values[1]))


class Pixels(NamedTuple):
    """What becomes of an image's pixels as it is decoded."""

    channels: int = 3
    """1 for grey, 3 for color."""
    window: Window | None = None
    """For :func:`decode_image`."""


COLOR = Pixels()


def decode_image(content: bytes, window: Window | None = None) -> Tensor:
    """Return an image as uint8 RGB (3, H, W), with its EXIF orientation applied.

    Grey, palette and CMYK images become RGB; transparency is dropped, and of an animation the first
    frame is used. Deep pixels, which are grey ones of more than 8 bits, become 8 bits by a fixed rule,
    independent of the content: unsigned integers of 12 or 16 bits keep their upper 8 bits, and floats
    range from 0 (black) to 1 (white). Every command reads images by this function.

    Args:
        content: of the file.
        window: the values of deep pixels that become 0 and 255, in place of that rule; what lies outside is
            clipped. Of signed and 32-bit integers too.

    Raises:
        ValueError: the image is empty, truncated, not in one of FORMATS, beyond the limits of
            :mod:`ecanet.data.headers`, or has pixels of unknown scale; the message is a short reason.
    """
    if not content:
        raise ValueError("the file is empty")
    size = jpeg_size(content)
    if size is not None:
        check_size(*size)
        if decode_jpeg is not None:
            try:
                return decode_jpeg(content)
            except (RuntimeError, ValueError):
                pass  # PIL reads more, and its reasons are shorter
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata
            return torch.from_numpy(_decode_by_pil(content, window)).permute(2, 0, 1)
    except Exception as error:  # PIL's plugins raise nearly anything for damaged files
        raise ValueError(_reason(error)) from None


def _by_pil(source: Any) -> Image.Image:
    """Open a file as PIL does, also where Ultralytics has put a function of its own in the place of PIL's.

    That one would install a package when a file is no image.
    """
    patched = sys.modules.get("ultralytics.utils.patches")
    by_pil: Any = getattr(patched, "_image_open", Image.open)
    return by_pil(source, formats=FORMATS)


def image_header(path: Path) -> tuple[int, int, int] | str:
    """Return an image's stored width and height and its EXIF orientation, or why it cannot be read.

    The pixels are not read.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) in (b"II", b"MM"):
                check_parts(read_file(path))
        with _by_pil(path) as image:
            check_size(*image.size)
            # PIL would decode a whole PNG to find metadata behind the pixels.
            has_exif = image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(ExifTags.Base.Orientation) if has_exif else UPRIGHT
            return *image.size, orientation if orientation in range(1, 9) else UPRIGHT
    except Exception as error:  # PIL's plugins raise nearly anything for damaged files
        return _reason(error)


def _reason(error: Exception) -> str:
    """Return in one line why an image cannot be read."""
    if isinstance(error, Image.UnidentifiedImageError):  # PIL's text has the address of an object
        return f"not an image, or none of {', '.join(FORMATS)} that is read"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS / 1e6:.0f} million pixels: make it smaller"
    return (str(error).splitlines() or [type(error).__name__])[0]


def deep_range(content: bytes) -> tuple[str, float, float] | None:
    """Return the kind of an image's deep pixels, and the least and the greatest of them; None for others.

    Raises:
        ValueError: it cannot be decoded; the message is a short reason.
    """
    if content.startswith(b"\xff\xd8"):  # a JPEG
        return None
    try:
        with _opened(content) as image:
            if not _is_deep(image):
                return None
            image.load()
            values, tags = _deep_values(image, _tags(image)), _tags(image)
            kind = "floating-point" if image.mode == "F" else f"{_bits(tags)}-bit"
            return kind, float(values.min()), float(values.max())
    except Exception as error:  # PIL's plugins raise nearly anything for damaged files
        raise ValueError(_reason(error)) from None


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Open an image by PIL, within the limits; its pixels are not read yet."""
    check_parts(content)
    with _by_pil(io.BytesIO(content)) as image:
        # PIL's decoder of animations holds two more frames.
        most = MAX_PIXELS // 2 if image.format == "WEBP" else MAX_PIXELS
        check_size(image.width, image.height, most)
        tags = _tags(image)  # each tile gets a buffer of its claimed size
        if tags.get(TILEWIDTH, 1) * tags.get(TILELENGTH, 1) > MAX_PIXELS:
            raise ValueError("it has tiles larger than an image: save it again")
        slow = any(tile[0] in Image.DECODERS for tile in image.tile)
        if slow and len(content) > MAX_SLOW_BYTES:
            raise ValueError(
                f"it is plain text or run-length coded, of {len(content) / 1e6:.0f} MB, above "
                f"the limit of {MAX_SLOW_BYTES / 1e6:.0f} MB: save it as PNG"
            )
        yield image


def _decode_by_pil(content: bytes, window: Window | None) -> np.ndarray:
    """Return an image as uint8 (H, W, 3); takes 7 bytes of memory per pixel."""
    with _opened(content) as image:
        image.load()
        if isinstance(exif := image.info.get("exif"), bytes):
            check_tiff(exif.removeprefix(b"Exif\0\0"))
        ImageOps.exif_transpose(image, in_place=True)
        deep, tags = _is_deep(image), _tags(image)
        width, height = image.size
        array = np.empty((height, width, 3), np.uint8)
        rows = max(1, 2**20 // width)
        for top in range(0, height, rows):  # in parts, because each step makes a copy
            part = image.crop((0, top, width, min(top + rows, height)))
            part = _with_eight_bits(part, tags, window) if deep else part
            array[top : top + rows] = np.asarray(part.convert("RGB"))
    return array


def _is_deep(image: Image.Image) -> bool:
    """Whether an image is a grey one of mode F, I or I;16."""
    return image.mode[0] in "IF"


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF, and none of other files."""
    return image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]


def _bits(tags: Mapping[int, Any]) -> int:
    """Return how many bits a deep pixel of integers has in its file."""
    return tags.get(BITSPERSAMPLE, (16,))[0]


def _deep_values(image: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """Return the pixels of a deep image as they are stored."""
    values = np.asarray(image)
    if image.mode == "I" and _bits(tags) == 32 and tags.get(SAMPLEFORMAT, (1,))[0] == 1:
        return values.view(np.uint32)  # PIL has signed ones alone
    return values


def _with_eight_bits(
    image: Image.Image, tags: Mapping[int, Any], window: Window | None
) -> Image.Image:
    """Convert a deep image to 8 bits, by the rule of :func:`decode_image`.

    ``tags`` are those of the file if it is a TIFF.
    """
    values = _deep_values(image, tags)
    if window is not None:
        low, high = window
        if image.mode == "F" and np.isnan(values).any():
            raise ValueError("some of its pixels are NaN: give them a number")
        values = np.rint(np.clip((values - np.float64(low)) / (high - low), 0, 1) * 255)
    elif image.mode == "F":
        least, greatest = values.min(), values.max()
        if not (least >= 0 and greatest <= 1):  # false for NaN too
            raise ValueError(
                f"it has floats from {least:g} to {greatest:g} for pixels, but only 0 to 1 can be read"
                + _advice(least, greatest)
            )
        values = np.rint(values * 255)
    elif image.mode == "I" and tags:
        raise ValueError(
            "its pixels are signed or of 32 bits, and the file does not define white"
            + _advice(values.min(), values.max())
        )
    else:  # I: a PNG or PPM of 16 bits in 32
        values = values >> (_bits(tags) - 8)
    values = values.astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero; PIL inverts only 8 bits
        values = 255 - values
    return Image.fromarray(values)


def _advice(least: float, greatest: float) -> str:
    """Return what to do about deep pixels of no known scale."""
    usual = next((most for most in (255, 65535) if least >= 0 and greatest <= most), None)
    window = f"0,{usual}" if usual else "LOW,HIGH"
    return (
        ": save it with 8 or 16 bits, or give a classifier the values of black and white, "
        f"--window {window}"
    )


def as_channels(images: Tensor, channels: int) -> Tensor:
    """Return uint8 images (..., 1 or 3, H, W) with 1 or 3 channels: color as its luma, grey repeated."""
    if images.shape[-3] == 1:
        return images.expand(*images.shape[:-3], channels, -1, -1)
    if channels == 3:
        return images
    weights = torch.tensor(_LUMA, dtype=torch.int32)[:, None, None]
    return ((images * weights).sum(-3, keepdim=True) + 0x8000 >> 16).to(torch.uint8)


def fit_square(
    image: Tensor,
    size: int,
    resize: int | None = None,
    interpolation: str = "bilinear",
    *,
    squash: bool = False,
) -> Tensor:
    """Resize the short side of uint8 images (..., C, H, W) and take a center crop of ``size``.

    Resizing is antialiased, like that of PIL and torchvision.

    Args:
        resize: pixels of the short side, at least ``size``, which is the default.
        interpolation: bilinear or bicubic.
        squash: resize both sides to ``resize``.
    """
    resize = resize or size
    height, width = image.shape[-2:]
    if (height, width) == (size, size) == (resize, resize):
        return image
    batch = image if image.ndim == 4 else image[None]
    short = min(height, width)
    # In whole pixels, rounded down as by torchvision's Resize.
    shape = (resize * height // short, resize * width // short)
    if squash:
        shape = (resize, resize)
    if shape != (height, width):
        batch = F.interpolate(batch, shape, mode=interpolation, antialias=True)
    top, left = round((batch.shape[-2] - size) / 2), round((batch.shape[-1] - size) / 2)
    batch = batch[..., top : top + size, left : left + size]
    return batch if image.ndim == 4 else batch[0]


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        ValueError: it is a pipe or device, or larger than MAX_BYTES; the message is a short reason.
        UserError: it cannot be read.
    """

    def open_at_once(name: str, flags: int) -> int:  # without waiting for the writer of a pipe
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with read_errors(path), open(path, "rb", buffering=0, opener=open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a pipe or device, not a file")
        check_bytes(status.st_size)
        return file.read(status.st_size)


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a :class:`UserError` with the file's name, or else ``path``."""
    try:
        yield
    except OSError as error:
        name = error.filename or path
        raise UserError(
            f"{name} cannot be read: {error.strerror}. Repair or remove it, or ask for access."
        ) from None


def read_image(name: str, window: Window | None = None) -> Tensor:
    """Return the image in a file as uint8 RGB (3, H, W), as :func:`decode_image` does.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return decode_image(read_file(Path(name)), window)
    except ValueError as error:
        raise UserError(f"{name} cannot be read as an image: {error}") from None


def _decode_each(contents: Sequence[bytes | str], window: Window | None) -> Iterator[Tensor | str]:
    """Yield the image of each file's content, or why it cannot be read or decoded."""
    if decode_jpeg is not None and _decoded_together(contents):
        with suppress(RuntimeError, ValueError):
            yield from decode_jpeg(contents)  # one call: twice as fast for small images
            return
    decode = functools.partial(decode_image, window=window)
    for content in contents:
        yield content if isinstance(content, str) else _or_reason(decode, content)


def _or_reason(read: Callable[[Any], Any], given: Any) -> Any:
    """Return ``read(given)``, or why it raises a ValueError."""
    try:
        return read(given)
    except ValueError as error:
        return str(error)


def _decoded_together(contents: Sequence[bytes | str]) -> bool:
    """Whether all are JPEGs that together do not exceed the limit of one image."""
    pixels = 0
    for content in contents:
        try:
            size = None if isinstance(content, str) else jpeg_size(content)
            if size is None:
                return False
            check_size(*size)
        except ValueError:
            return False
        pixels += math.prod(size)
    return pixels <= MAX_PIXELS


def decode_files(
    paths: Sequence[Any],
    size: int,
    pixels: Pixels = COLOR,
    *,
    native: bool = False,
    read: Callable[[Any], bytes] = read_file,
    length: Callable[[Any], int] = os.path.getsize,
) -> tuple[Tensor, dict[int, str]] | None:
    """Decode image files into one tensor, in parallel where that is faster.

    Args:
        paths: of the files, or what else ``read`` and ``length`` take.
        size: side in pixels of the square images returned.
        pixels: what becomes of them.
        native: return None as soon as an image has another size.
        read: returns the content of a file.
        length: returns how many bytes that is.

    Returns:
        Images uint8 (N, channels, size, size), and by index the reasons of those that cannot be decoded,
        which are black.
    """
    images = torch.zeros(len(paths), pixels.channels, size, size, dtype=torch.uint8)
    failed: dict[int, str] = {}

    def decode(start: int, stop: int) -> bool:
        contents = [_or_reason(read, path) for path in paths[start:stop]]
        for i, image in enumerate(_decode_each(contents, pixels.window), start):
            if isinstance(image, str):
                failed[i] = image
            elif native and image.shape[1:] != (size, size):
                return False
            else:
                images[i] = fit_square(as_channels(image, pixels.channels), size)
        return True

    sample = [length(path) for path in paths[:: max(1, len(paths) // 100)]]
    small = statistics.median(sample) < SMALL_FILE
    step = SMALL_CHUNK if small else LARGE_CHUNK
    starts = range(0, len(paths), step)
    stops = [min(start + step, len(paths)) for start in starts]
    pool = ThreadPoolExecutor(1 if small else os.cpu_count())
    try:
        with activity("decoding", len(paths), "images") as shown:
            done = pool.map(decode, starts, stops)
            for start, stop, alike in zip(starts, stops, done, strict=True):
                if not alike:
                    return None
                shown.done += stop - start
    finally:
        pool.shutdown(cancel_futures=True)  # also after Ctrl-C, without decoding the rest
    return images, dict(sorted(failed.items()))
