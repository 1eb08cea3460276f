"""Where images come from: scikit-learn's digits, torchvision's CIFAR, or a folder."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ecanet.aliases import SOURCES
from ecanet.data.cache import cache_folder
from ecanet.data.dataset import (
    Data,
    Split,
    build_data,
    check_fits,
    check_validation,
    hold_out,
    tensor_hash,
)
from ecanet.data.decode import fit_square
from ecanet.data.folder import load_folder
from ecanet.errors import UserError, did_you_mean

DIGITS_TEST = 0.2
SILENCE = 60.0
"""Seconds without a byte after which a download is given up."""


def load_data(
    name_or_path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    validation: float = 0.1,
    skip_corrupt: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    download_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Data:
    """Load a data set into memory.

    Args:
        name_or_path: ``digits``, ``cifar10``, ``cifar100``, or a folder with train/ and val/ or test/,
            a folder per class in each. A name wins over a folder of that name: write ``./digits``.
        image_size: side in pixels that images are brought to (short side resized, centre cut). By
            default the data's own where all images are square, alike and at most 96 wide, else 224.
        validation: fraction of each class of train held out where the data has no val/ beside test/. With
            0, val/ takes its place if there is no test/.
        skip_corrupt: leave out images that cannot be decoded, and name them in ``Data.skipped``.
        cache_dir: where decoded images are kept; by default $ECANET_CACHE/decoded, or ecanet/decoded
            in the user's cache.
        download_dir: where torchvision's archives are kept; by default ``downloads`` beside ``decoded``.
        progress: show progress bars on stderr.

    Raises:
        UserError: the data is unknown, incomplete, damaged, too large for memory, or not to be had.
    """
    if validation != 0 or os.fspath(name_or_path) in SOURCES:
        check_validation(validation)
    if image_size is not None and image_size < 1:
        raise UserError(f"The image size is {image_size}: give a number of pixels, such as 64.")
    name = os.fspath(name_or_path)
    if name == "digits":
        return _load_digits(image_size, validation)
    if name in ("cifar10", "cifar100"):
        downloads = Path(download_dir or cache_folder() / "downloads").expanduser()
        return _load_cifar(name, image_size, validation, downloads, progress)
    root = Path(name).expanduser()
    if root.is_file():
        raise UserError(f"{root} is a file: give the folder that holds train/ and test/.")
    if not root.is_dir():
        if root.name != name:  # it was meant as a path
            raise UserError(
                f"There is no folder {root}: give {', '.join(SOURCES)}, or an existing folder."
            )
        raise UserError(
            f"Unknown data {name!r}, and no folder of that name.{did_you_mean(name, SOURCES)}"
        )
    return load_folder(
        root,
        image_size=image_size,
        validation=validation,
        skip_corrupt=skip_corrupt,
        cache=Path(cache_dir or cache_folder() / "decoded").expanduser(),
        progress=progress,
    )


def _load_digits(image_size: int | None, validation: float) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8x8, one channel; a fixed fifth of each class is test.

    Values 0..16 become round(v * 255 / 16).
    """
    from sklearn.datasets import load_digits  # a second of imports that other sources do not need

    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round_().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    classes = [str(name) for name in digits.target_names]
    content = tensor_hash(images, labels)
    whole = Split(_resize(images, image_size), labels)
    train, test = hold_out(labels, DIGITS_TEST, classes)
    return build_data(
        "digits",
        classes,
        whole.subset(train),
        None,
        whole.subset(test),
        validation=validation,
        content=content,
    )


def _load_cifar(
    name: str, image_size: int | None, validation: float, folder: Path, progress: bool
) -> Data:
    """CIFAR-10 or CIFAR-100, by torchvision, which checks every file against its MD5 before reading."""
    from torchvision import datasets  # seconds of imports that other sources do not need

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        train = _open_or_download(source, folder, progress)
        test = source(folder, train=False)
    except (OSError, EOFError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise UserError(
            f"{name} cannot be had: {str(reason).splitlines()[0].rstrip('.')}. "
            f"Put {source.filename} from {source.url} into {folder}, or give a folder of images "
            "with train/ and test/ in place of the name."
        ) from None
    images = [torch.from_numpy(x.data).permute(0, 3, 1, 2).contiguous() for x in (train, test)]
    labels = [torch.tensor(part.targets) for part in (train, test)]
    content = tensor_hash(images[0], labels[0], images[1], labels[1])
    splits = [Split(_resize(x, image_size), y) for x, y in zip(images, labels, strict=True)]
    return build_data(
        name,
        list(train.classes),
        splits[0],
        None,
        splits[1],
        validation=validation,
        content=content,
    )


def _resize(images: torch.Tensor, size: int | None) -> torch.Tensor:
    """Bring square uint8 images (N, C, H, W) to ``size``; in parts, as resizing works in floats."""
    if size is None or size == images.shape[-1]:
        return images
    check_fits(len(images), images.shape[1], size)
    return torch.cat([fit_square(chunk, size) for chunk in images.split(1024)])


def _open_or_download(source: Any, folder: Path, progress: bool) -> Any:
    try:
        return source(folder, train=True)
    except RuntimeError:  # torchvision's word for files that are missing or damaged
        folder.mkdir(parents=True, exist_ok=True)
    # Several processes may get here together: one downloads, the others then find it done.
    lock = FileLock(folder / f".{source.base_folder}.lock")
    # torchvision's progress bar has no switch.
    stderr = contextlib.redirect_stderr(sys.stderr if progress else io.StringIO())
    with lock, stderr, _socket_timeout(SILENCE):
        return source(folder, train=True, download=True)


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Make torchvision's downloads give up on a silent server; they set no timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
