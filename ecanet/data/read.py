"""The images that a classifier's settings ask for: in memory or to be streamed, behind one interface.

What a folder's splits are used for is :func:`ecanet.data.folder.split_roles`; named data sets bring train
and test. Small images are those of up to :data:`SMALL` pixels.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from pathlib import Path

import torch

from ecanet.aliases import SOURCES
from ecanet.config import ClassificationSettings
from ecanet.data.augment import with_flip
from ecanet.data.dataset import Data, hold_out
from ecanet.data.folder import (
    DEFAULT_SIZE,
    NATIVE_LIMIT,
    find_splits,
    left_out_line,
    native_size,
    split_roles,
)
from ecanet.data.listing import list_splits
from ecanet.data.preprocessing import MEAN, STD, Preprocessing
from ecanet.data.shards import ShardedImages
from ecanet.data.sources import load_data
from ecanet.data.stream import ImageList
from ecanet.errors import UserError

log = logging.getLogger(__name__)

SMALL = NATIVE_LIMIT
# Bytes of decoded images that are kept in memory unless a flag says otherwise. A number of no machine, so
# that all workers of a study and a run that resumes elsewhere agree.
MOST_IN_MEMORY = 2**31
_VALIDATION = 0.1


def read_data(settings: ClassificationSettings, *, alone: bool = False) -> Data:
    """Read the images that ``settings`` ask for, or list them where they are to be streamed.

    Args:
        settings: of a run or of all runs of a study.
        alone: for a single run, to which val/ without test/ is the validation split; a comparison
            takes it for the test split.

    Raises:
        UserError: the images cannot be read, or not be kept as the settings say.
    """
    log.info("reading %s", settings.data)
    if settings.data in SOURCES:
        if settings.storage == "stream":
            raise UserError(f"--storage stream: {settings.data} is kept in memory, leave it out")
        validation = _VALIDATION if settings.validation is None else settings.validation
        data = load_data(settings.data, image_size=settings.image_size, validation=validation)
        kept = {"eval_size": data.image_size, "crop_share": 1.0}
        for name, value in kept.items():
            if getattr(settings, name) not in (None, value):
                raise UserError(
                    f"--{name}: {settings.data} is evaluated whole, at the size of training: leave it out"
                )
    else:
        data = _read_folder(Path(settings.data).expanduser(), settings, alone)
    if data.skipped:
        log.info(
            "left out %d images that cannot be read, %s first", len(data.skipped), data.skipped[0]
        )
    if data.left_out:
        log.info("%s", left_out_line(data.left_out))
    with_flip(settings.augmentation, data.classes, quiet=False)
    return data


def _read_folder(root: Path, settings: ClassificationSettings, alone: bool) -> Data:
    if not root.is_dir():
        return load_data(root)  # which says what is wrong
    splits = find_splits(root)
    validation = settings.validation
    if validation is None:
        validation = 0.0 if alone and "test" not in splits else _VALIDATION
    lists = list_splits(root, splits)
    sharded = isinstance(lists["train"], ShardedImages)
    guess = None if sharded else native_size([root / f for f in lists["train"].files])
    size = settings.image_size or guess or DEFAULT_SIZE
    prepared = preprocessing_of(settings, size)
    count = sum(map(len, lists.values()))
    policy = settings.augmentation
    resizes = policy.scale is not None or (size > SMALL and policy.crop_padding is None)
    # Why the images cannot be kept in memory, if so: there, they are resized once.
    reason = None
    if sharded:
        reason = "the images are in shards"
    elif prepared.size != size and not resizes:
        reason = "--eval_size differs from --image_size, and no random crop is resized"
    elif (prepared.resize - prepared.size) % 4:
        reason = "--crop_share leaves an edge that is no multiple of 4 pixels"
    if settings.storage == "memory" and reason:
        raise UserError(f"--storage memory: {reason}; take --storage stream")
    in_memory = not reason and count * 3 * prepared.resize**2 <= MOST_IN_MEMORY
    if settings.storage == "memory" or (settings.storage == "auto" and in_memory):
        load = functools.partial(
            load_data, root, validation=validation, skip_corrupt=settings.corrupt == "skip"
        )
        native = settings.image_size is None and guess == prepared.resize
        data = load(image_size=None if native else prepared.resize)
        if native and data.image_size != guess:
            log.info("some images are not of %d x %d pixels, and are resized to that", guess, guess)
            data = load(image_size=guess)
        data.train_size, data.image_size, data.resize = size, prepared.size, prepared.resize
        if size > SMALL:
            data.mean, data.std = MEAN, STD
        return data
    return _streamed(root, lists, validation, prepared, size)


def preprocessing_of(settings: ClassificationSettings, size: int) -> Preprocessing:
    """Return how images are evaluated that are trained on at ``size`` pixels."""
    share = settings.crop_share or (1.0 if size <= SMALL else 0.875)
    return Preprocessing.of_crop(settings.eval_size or size, share)


def _streamed(
    root: Path, lists: dict[str, ImageList], validation: float, prepared: Preprocessing, size: int
) -> Data:
    train, classes = lists["train"], lists["train"].classes
    val_split, test_split, held_out = split_roles(root, list(lists), validation)
    if val_split:
        val = lists[val_split]
    else:
        kept, held = hold_out(torch.tensor(train.labels), held_out, classes)
        train, val = train.subset(kept.tolist()), train.subset(held.tolist())
    return Data(
        name=root.resolve().name,
        classes=classes,
        train=train,
        val=val,
        test=lists[test_split] if test_split else None,
        mean=prepared.mean,
        std=prepared.std,
        image_size=prepared.size,
        channels=3,
        train_size=size,
        resize=prepared.resize,
        fingerprint=_fingerprint(root, lists, held_out),
        left_out=[name for images in lists.values() for name in images.left_out],
    )


def _fingerprint(root: Path, lists: dict[str, ImageList], held_out: float) -> str:
    """Return a hash of the names and sizes of all files: their content is read as the run needs it."""
    found = hashlib.blake2b(repr(held_out).encode(), digest_size=16)
    for images in lists.values():
        files = images.shards if isinstance(images, ShardedImages) else images.files
        for file in files:
            line = f"{file} {os.stat(root / file).st_size}\n"
            found.update(line.encode(errors="surrogateescape"))
    return found.hexdigest()
