"""Data sets in memory: decoded once, kept in a cache on disk, and resized to one square size."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ecanet.config import Splitting
from ecanet.data.cache import cache_folder, content_key, load_images, save_images
from ecanet.data.dataset import Data, Split, channel_statistics, check_fits, check_fraction
from ecanet.data.decode import (
    COLOR,
    Pixels,
    Window,
    as_channels,
    decode_files,
    decode_image,
    fit_square,
)
from ecanet.data.listing import list_images
from ecanet.data.splits import VALIDATION, Images, Listing, divide
from ecanet.data.stream import ImageList
from ecanet.errors import UserError

# Square images that all have one size up to this side in pixels keep it; others are resized.
NATIVE_LIMIT = 96
DEFAULT_SIZE = 224
# To be raised whenever decoding or resizing gives other pixels, so that old caches are not used.
DECODING = 2

# An image and the list it is in.
Place: TypeAlias = tuple[ImageList, int]


def load_listing(
    listing: Listing,
    *,
    image_size: int | None = None,
    pixels: Pixels | None = None,
    interpolation: str = "bilinear",
    skip_corrupt: bool = False,
    cache: Path | None = None,
    **division: Any,
) -> Data:
    """Load the images of a data set and divide them; files are decoded once and then read from ``cache``.

    Args:
        listing: of the data set.
        image_size: side in pixels that images are brought to; by default their own where all are square,
            alike and small, else 224.
        pixels: what becomes of them; by default color, and arrays keep their channels.
        interpolation: bilinear or bicubic: how arrays are resized.
        skip_corrupt: leave out images that cannot be decoded.
        cache: folder; by default that of the user.
        division: arguments of :func:`ecanet.data.splits.divide`.

    Raises:
        UserError: an image cannot be read, or they do not fit in memory; or as :func:`divide`.
    """
    skipped: list[str] = []
    if listing.in_memory:
        splits, content = _converted(listing, image_size, pixels, interpolation)
    else:
        # What is wrong is found before the long decoding.
        divide(listing, listing.splits, **division)
        pixels, cache = pixels or COLOR, cache or cache_folder() / "decoded"
        images, failed, content = _decoded(listing, image_size, pixels, cache)
        splits, skipped = _parted(listing, images, failed, skip_corrupt)
    divided = divide(listing, splits, **division)
    train = divided.train
    assert isinstance(train, Split)
    assert isinstance(divided.val, Split)
    size = train.images.shape[-1]
    identity = repr((content, listing.classes, size, divided.identity, skipped))
    mean, std = channel_statistics(train.images)
    return Data(
        name=listing.name,
        classes=listing.classes,
        train=train,
        val=divided.val,
        test=divided.test,
        mean=mean,
        std=std,
        image_size=size,
        channels=train.images.shape[1],
        fingerprint=hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
        skipped=skipped,
        left_out=listing.left_out,
        window=pixels.window if pixels else None,
        test_fraction=divided.test_fraction,
        notices=divided.notices,
        groups=listing.groups,
    )


def _converted(
    listing: Listing, image_size: int | None, pixels: Pixels | None, interpolation: str
) -> tuple[dict[str, Images], str]:
    """Return arrays in another size and number of channels, and the hash of their content."""
    splits: dict[str, Images] = {}
    changes: list[str] = []
    for name, split in listing.splits.items():
        assert isinstance(split, Split)
        images, channels = split.images, split.images.shape[1]
        changes = []
        # In parts, as luma is computed in int32, and resizing in floats.
        if pixels is not None and pixels.channels != channels:
            channels = pixels.channels
            images = torch.cat([as_channels(part, channels) for part in images.split(1024)])
            changes.append(f"{channels} channels")
        if image_size is not None and image_size != images.shape[-1]:
            check_fits(len(images), channels, image_size)
            resized = functools.partial(fit_square, size=image_size, interpolation=interpolation)
            images = torch.cat([resized(part) for part in images.split(1024)])
            changes += [interpolation] if interpolation != "bilinear" else []
        splits[name] = Split(images, split.labels, split.files)
    return splits, " ".join([listing.content, *changes])


def _decoded(
    listing: Listing, image_size: int | None, pixels: Pixels, cache: Path
) -> tuple[Tensor, dict[int, str], str]:
    """Return all images, the reasons of those that failed, and the hash of their content; from the cache if
    they are there.

    They keep their own size if there is no ``image_size`` and all of them have it.
    """
    lists = [images for images in listing.splits.values() if isinstance(images, ImageList)]
    native = native_size(lists[0], pixels.window) if image_size is None else None
    count = sum(map(len, lists))
    # Before reading all of them.
    check_fits(count, pixels.channels, image_size or native or DEFAULT_SIZE)
    places = [(images, index) for images in lists for index in range(len(images))]
    content = _content(places, cache)
    if pixels != COLOR:
        content = f"{content} {pixels}"
    identity = repr((content, image_size, NATIVE_LIMIT, DEFAULT_SIZE, DECODING))
    key = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    cached = load_images(cache, key, count)
    if cached is not None:
        return *cached, content

    decode = functools.partial(decode_files, places, pixels=pixels, read=_read, length=_length)
    result = decode(native, native=True) if native else None
    if result is None:
        size = image_size or DEFAULT_SIZE
        check_fits(count, pixels.channels, size)
        result = decode(size)
        assert result is not None  # only native=True can return None
    save_images(cache, key, *result)
    return *result, content


def _read(place: Place) -> bytes:
    images, index = place
    return images.read(index)


def _length(place: Place) -> int:
    images, index = place
    return images.length(index)


def _content(places: list[Place], cache: Path) -> str:
    """Return a hash of the names of images and of their bytes."""
    first = places[0][0]
    if all(type(images) is ImageList for images, _ in places):
        return content_key(first.root, [images.files[i] for images, i in places], cache)
    found = hashlib.blake2b(digest_size=16)
    for images, index in places:
        try:
            image = images.read(index)
        except ValueError as error:  # no image, so its content makes no difference
            image = str(error).encode()
        found.update(os.fsencode(images.files[index]) + b"\0")
        found.update(hashlib.blake2b(image, digest_size=16).digest())
    return found.hexdigest()


def _parted(
    listing: Listing, images: Tensor, failed: dict[int, str], skip_corrupt: bool
) -> tuple[dict[str, Images], list[str]]:
    """Return the splits of the decoded images, and the names of those that cannot be decoded.

    Raises:
        UserError: there are such, and they are not to be skipped.
    """
    splits: dict[str, Images] = {}
    unreadable: list[str] = []
    start = 0
    for name, listed in listing.splits.items():
        assert isinstance(listed, ImageList)
        stop = start + len(listed)
        bad = [i - start for i in range(start, stop) if i in failed]
        if bad and not skip_corrupt:
            more = f" (and {len(failed) - 1} more like it)" if len(failed) > 1 else ""
            raise UserError(
                f"{listed.root / listed.files[bad[0]]} cannot be decoded: {failed[start + bad[0]]}{more}. "
                "Repair or remove it, or skip such images with --corrupt skip."
            )
        split = Split(images[start:stop], torch.tensor(listed.labels), listed.files)  # a view
        if bad:
            split = split.subset([i for i in range(len(listed)) if start + i not in failed])
        splits[name] = split
        unreadable += [listed.files[i] for i in bad]
        start = stop
    return splits, unreadable


def native_size(images: ImageList, window: Window | None = None) -> int | None:
    """Return the side of images that are square, alike and small, as far as 64 of them show, or None."""
    sides = set()
    for index in range(0, len(images), max(1, len(images) // 64)):
        try:
            _, height, width = decode_image(images.read(index), window).shape
        except ValueError:
            continue
        sides.add(height if height == width <= NATIVE_LIMIT else None)
        if len(sides) > 1 or None in sides:
            return None
    return sides.pop() if sides else None


def load_data(
    name_or_path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    in_chans: int | None = None,
    window: Window | None = None,
    validation: float = VALIDATION,
    test: float | None = None,
    group_by: str | None = None,
    columns: Sequence[str] = (),
    skip_corrupt: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    download_dir: str | os.PathLike[str] | None = None,
) -> Data:
    """Load a data set into memory.

    Args:
        name_or_path: ``digits``, ``cifar10``, ``cifar100``, ``torchvision/NAME``, ``hf:NAME``, a CSV or
            Parquet file, or a folder with a folder per class, in train/, val/ and test/ or by themselves. A
            name wins over a folder of that name: write ``./digits``.
        image_size: side in pixels that images are brought to (short side resized, center cut). By
            default the data's own where all images are square, alike and at most 96 wide, else 224.
        in_chans: 1 for grey images, 3 for color; by default the data's own, of files 3.
        window: the values of deep pixels in files that become black and white, in place of the rule of
            :func:`ecanet.data.decode.decode_image`.
        validation: fraction of train held out where the data has no val/ beside test/. With 0, val/ takes its
            place if there is no test/.
        test: fraction of all images held out as the test split of data without splits; by default 0.2.
        group_by: pattern that names an image's group: :func:`ecanet.data.splits.grouped`.
        columns: of a table, as in ``["path=file", "label=species"]``: usual names are found.
        skip_corrupt: leave out images that cannot be decoded, and name them in ``Data.skipped``.
        cache_dir: where decoded images are kept; by default $ECANET_CACHE/decoded, or ecanet/decoded
            in the user's cache.
        download_dir: where torchvision's archives are kept; by default ``downloads`` beside ``decoded``.

    Raises:
        UserError: the data is unknown, incomplete, damaged, too large for memory, or not to be had.
    """
    name = os.fspath(name_or_path)
    if validation != 0:
        check_fraction("validation", validation)
    if image_size is not None and image_size < 1:
        raise UserError(f"The image size is {image_size}: give a number of pixels, such as 64.")
    if in_chans not in (None, 1, 3):
        raise UserError(f"in_chans is {in_chans}: give 1 or 3")
    how = Splitting(group_by=group_by, columns=list(columns))
    downloads = Path(download_dir) if download_dir else None
    listing = list_images(name, how, downloads=downloads)
    if listing.in_memory:
        if window is not None:
            raise UserError(f"--window: the pixels of {name} have 8 bits, so leave it out")
        check_fraction("validation", validation)
    pixels = Pixels(in_chans or 3, window) if in_chans or not listing.in_memory else None
    return load_listing(
        listing,
        image_size=image_size,
        pixels=pixels,
        skip_corrupt=skip_corrupt,
        cache=Path(cache_dir).expanduser() if cache_dir else None,
        validation=validation,
        test=test,
    )
