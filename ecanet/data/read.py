"""The images that a classifier's settings ask for: in memory or to be streamed, behind one interface.

What the splits of a data set are used for is :func:`ecanet.data.splits.divide`. Small images are those of up
to :data:`SMALL` pixels.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ecanet.config import ClassificationSettings
from ecanet.data.augment import with_flip
from ecanet.data.dataset import Data
from ecanet.data.decode import COLOR, Pixels, Window, as_window
from ecanet.data.folder import left_out_line
from ecanet.data.listing import list_images
from ecanet.data.memory import DEFAULT_SIZE, NATIVE_LIMIT, load_listing, native_size
from ecanet.data.preprocessing import Preprocessing
from ecanet.data.shards import ShardedImages
from ecanet.data.splits import Division, Images, Listing, divide, present
from ecanet.data.stream import ImageList
from ecanet.data.survey import look_at
from ecanet.errors import UserError

log = logging.getLogger(__name__)

SMALL = NATIVE_LIMIT
# Bytes of decoded images that are kept in memory unless a flag says otherwise. A number of no machine, so
# that all workers of a study and a run that resumes elsewhere agree.
MOST_IN_MEMORY = 2**31


def read_data(
    settings: ClassificationSettings, *, alone: bool = False, weights: Preprocessing | None = None
) -> Data:
    """Read the images that ``settings`` ask for, or list them where they are to be streamed.

    Args:
        settings: of a run or of all runs of a study.
        alone: for a single run, to which val/ without test/ is the validation split; a comparison
            takes it for the test split.
        weights: how images were prepared for the weights that the run starts from, which it keeps to: mean,
            deviation, interpolation and window, and of photographs the size.

    Raises:
        UserError: the images cannot be read, or not be kept as the settings say.
    """
    log.info("reading %s", settings.data)
    listing = list_images(settings.data, settings)
    division = {"validation": settings.validation, "test": settings.test, "alone": alone}
    if listing.in_memory:
        data = _read_arrays(listing, settings, weights, division)
    else:
        data = _read_files(listing, settings, weights, division)
    if settings.metric == "auroc":
        _check_ranked({"validation": data.val, "test": data.test})
    if weights is not None:
        own = weights.for_channels(data.channels)
        data.mean, data.std = own.mean, own.std
        data.interpolation, data.squash = own.interpolation, own.squash
    if data.skipped:
        log.info(
            "skipped %d images that cannot be read (first: %s)", len(data.skipped), data.skipped[0]
        )
    if data.left_out:
        log.info("%s", left_out_line(data.left_out))
    with_flip(settings.augmentation, data.classes, quiet=False)
    return data


def _check_ranked(splits: Mapping[str, Images | None]) -> None:
    """Refuse splits with images of one class alone: there is no second to rank them against."""
    for split, images in splits.items():
        if images is not None and len(present(images)) < 2:
            raise UserError(
                f"--metric auroc: {split} has images of only one class, and AUROC needs two or "
                f"more: choose another metric, or add images of other classes"
            )


def _read_arrays(
    listing: Listing,
    settings: ClassificationSettings,
    weights: Preprocessing | None,
    division: dict[str, Any],
) -> Data:
    if settings.storage == "stream":
        raise UserError(
            f"--storage stream: {settings.data} is always kept in memory, so leave it out"
        )
    if settings.window:
        raise UserError(f"--window: the pixels of {settings.data} have 8 bits, so leave it out")
    data = load_listing(
        listing,
        image_size=settings.image_size,
        pixels=Pixels(settings.in_chans) if settings.in_chans else None,
        interpolation=weights.interpolation if weights else "bilinear",
        **division,
    )
    for name, value in {"eval_size": data.image_size, "crop_share": 1.0}.items():
        if getattr(settings, name) not in (None, value):
            raise UserError(
                f"--{name.replace('_', '-')}: {settings.data} is evaluated whole, at the size of training: "
                "leave it out"
            )
    return data


def _read_files(
    listing: Listing,
    settings: ClassificationSettings,
    weights: Preprocessing | None,
    division: dict[str, Any],
) -> Data:
    window = _window(settings, weights)
    lists: dict[str, Images] = {
        split: replace(images, window=window)
        for split, images in listing.splits.items()
        if isinstance(images, ImageList)
    }
    listing = replace(listing, splits=lists)
    divided = divide(listing, lists, **division)
    assert isinstance(divided.train, ImageList)
    look_at(divided.train, settings.in_chans)
    sharded = isinstance(divided.train, ShardedImages)
    first = lists["train"]
    assert isinstance(first, ImageList)
    guess = None if sharded else native_size(first, window)
    size = settings.image_size or guess or (weights.size if weights else DEFAULT_SIZE)
    prepared = preprocessing_of(settings, size, weights)
    policy = settings.augmentation
    resizes = policy.scale is not None or (size > SMALL and policy.crop_padding is None)
    # Why the images cannot be kept in memory, if so: there, they are resized once.
    reason = None
    if sharded:
        reason = "the images are in shards"
    elif guess != prepared.resize and (prepared.squash or prepared.interpolation != "bilinear"):
        reason = "the weights are of images that were resized otherwise than those in memory are"
    elif prepared.size != size and not resizes:
        reason = "--eval-size differs from --image-size, and no random crop is resized"
    elif (prepared.resize - prepared.size) % 4:
        reason = "--crop-share leaves an edge that is not a multiple of 4 pixels"
    if settings.storage == "memory" and reason:
        raise UserError(f"--storage memory: {reason}; use --storage stream")
    count = len(listing) * prepared.channels * prepared.resize**2
    in_memory = not reason and count <= MOST_IN_MEMORY
    if settings.storage == "memory" or (settings.storage == "auto" and in_memory):
        load = functools.partial(
            load_listing, listing, pixels=Pixels(prepared.channels, window),
            skip_corrupt=settings.corrupt == "skip", **division,
        )  # fmt: skip
        native = settings.image_size is None and guess == prepared.resize
        data = load(image_size=None if native else prepared.resize)
        if native and data.image_size != guess:
            log.info("images that are not %d x %d pixels are resized to that", guess, guess)
            data = load(image_size=guess)
        data.train_size, data.image_size, data.resize = size, prepared.size, prepared.resize
        if size > SMALL:
            data.mean, data.std = prepared.mean, prepared.std
        return data
    return Data(
        name=listing.name,
        classes=listing.classes,
        train=divided.train,
        val=divided.val,
        test=divided.test,
        mean=prepared.mean,
        std=prepared.std,
        image_size=prepared.size,
        channels=prepared.channels,
        train_size=size,
        resize=prepared.resize,
        fingerprint=_fingerprint(lists, divided, prepared.pixels),
        window=prepared.window,
        left_out=listing.left_out,
        test_fraction=divided.test_fraction,
        notices=divided.notices,
        groups=listing.groups,
    )


def preprocessing_of(
    settings: ClassificationSettings, size: int, weights: Preprocessing | None = None
) -> Preprocessing:
    """Return how images are evaluated that are trained on at ``size`` pixels, of ``weights`` or afresh."""
    share = settings.crop_share or (
        1.0 if size <= SMALL else weights.crop_share if weights else 0.875
    )
    prepared = Preprocessing.of_crop(settings.eval_size or size, share)
    if weights:
        prepared = replace(weights, size=prepared.size, resize=prepared.resize)
    prepared = replace(prepared, window=_window(settings, weights))
    return prepared.for_channels(settings.in_chans or 3)


def _window(settings: ClassificationSettings, weights: Preprocessing | None) -> Window | None:
    """Return the window of a run: its own, or that of the weights it starts from."""
    return as_window(settings.window) or (weights.window if weights else None)


def _fingerprint(lists: Mapping[str, Images], divided: Division, pixels: Pixels) -> str:
    """Return a hash of the names and sizes of all files: their content is read as the run needs it."""
    # None was 0.0 where nothing is held out, and what has been computed of it stays valid.
    special = () if pixels == COLOR else (pixels,)
    parts = (0.0 if divided.identity is None else divided.identity, *special)
    found = hashlib.blake2b(" ".join(map(repr, parts)).encode(), digest_size=16)
    for images in lists.values():
        if isinstance(images, ShardedImages):
            sizes = [(file, os.stat(images.root / file).st_size) for file in images.shards]
        else:
            assert isinstance(images, ImageList)
            sizes = [(file, images.length(index)) for index, file in enumerate(images.files)]
        for file, size in sizes:
            found.update(f"{file} {size}\n".encode(errors="surrogateescape"))
    return found.hexdigest()
