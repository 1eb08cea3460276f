"""What a data set is once loaded, and how validation is drawn from a train split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ecanet.data.decode import Window
from ecanet.data.preprocessing import Preprocessing
from ecanet.environment import available_memory
from ecanet.errors import UserError

if TYPE_CHECKING:
    from ecanet.data.stream import ImageList

# The held-out images are the same in every run of every study: this seed is not the run's.
SPLIT_SEED = 20200319


@dataclass
class Split:
    """Images and what they show."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor
    """int64 (N,), indices into :attr:`Data.classes`."""
    files: list[str]
    """Name of each image: its file relative to the data's folder, or without files ``test/123``."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int]) -> Split:
        """Return a copy of the images at ``indices``."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        files = [self.files[i] for i in indices]
        return Split(self.images[chosen], self.labels[chosen], files)

    def image(self, index: int) -> Tensor:
        """Return an image, uint8 (C, H, W)."""
        return self.images[index]


@dataclass
class Data:
    """A data set, in memory or to be streamed: its splits, and what a model and a report need of them."""

    name: str
    classes: list[str]
    train: Split | ImageList
    val: Split | ImageList
    """For choices and curves; held out of train where the data brings none beside test."""
    test: Split | ImageList | None
    """To be read once, at the end; None where val is all there is beside train."""
    mean: tuple[float, ...]
    """Of the train split, per channel, in 0..1."""
    std: tuple[float, ...]
    """Of the train split, per channel, in 0..1; at least 1/255, so that dividing by it is safe."""
    image_size: int
    """Side of the square that a model gets in evaluation, in pixels."""
    channels: int
    fingerprint: str
    """Hash of the source's content, the image size and the split: equal for equal data."""
    train_size: int = 0
    """Side of training images in pixels; by default image_size."""
    resize: int = 0
    """Short side that the square is cut from; images in memory have this size. By default image_size."""
    interpolation: str = "bilinear"
    """How images are resized."""
    squash: bool = False
    """Resize both sides rather than the short one."""
    skipped: list[str] = field(default_factory=list)
    """Images left out because they cannot be read, relative to the folder."""
    left_out: list[str] = field(default_factory=list)
    """What else is in the folder and no image by its name, relative to it."""
    window: Window | None = None
    """With which images were or are decoded: :func:`ecanet.data.decode.decode_image`."""
    test_fraction: float | None = None
    """Share of all images that was held out as the test split, where the data has no splits."""
    notices: list[str] = field(default_factory=list)
    """Lines on what was held out by name, and on classes that have no image in a split."""
    groups: dict[str, str] = field(default_factory=dict)
    """The group of each image by name, where images belong to groups."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for evaluation, here and by whoever gets the weights."""
        resize = self.resize or self.image_size
        return Preprocessing(
            self.image_size,
            resize,
            self.mean,
            self.std,
            self.interpolation,
            self.squash,
            self.window,
        )

    def images_of(self, split: str) -> Split | ImageList:
        """Return the split named ``train``, ``val`` or ``test``.

        Raises:
            KeyError: the data has no such split.
        """
        images = {"train": self.train, "val": self.val, "test": self.test}[split]
        if images is None:
            raise KeyError(split)
        return images

    def names(self, split: str) -> list[str]:
        """Return the name of each image of a split: its file relative to the data's folder, or ``test/123``
        where there are no files.

        Raises:
            KeyError: the data has no such split.
        """
        return self.images_of(split).files

    def image(self, split: str, index: int) -> Tensor:
        """Return an image as it was decoded, uint8 (C, H, W); of images in memory, as it is kept there.

        Raises:
            KeyError: the data has no such split.
            ValueError: it cannot be decoded; the message is a short reason.
            UserError: it cannot be read.
        """
        return self.images_of(split).image(index)


def check_fits(count: int, channels: int, size: int) -> None:
    """Refuse images that would take more than half of the available memory.

    Half, because the splits are copied once when validation is held out.

    Raises:
        UserError: they would; the message says how much they need.
    """
    needed = count * channels * size**2
    available = available_memory()
    if needed > available / 2:
        raise UserError(
            f"{count:,} images of {size}x{size} pixels take {needed / 1e9:.1f} GB, more than half of the "
            f"{available / 1e9:.1f} GB of memory available: use a smaller --image-size."
        )


def check_fraction(purpose: str, fraction: float) -> None:
    """Raise :class:`UserError` unless ``fraction`` is between 0 and 1, both excluded."""
    if not 0 < fraction < 1:
        raise UserError(
            f"The {purpose} fraction is {fraction:g}: give a number between 0 and 1, such as 0.1."
        )


def hold_out(labels: Tensor, fraction: float, classes: list[str]) -> tuple[Tensor, Tensor]:
    """Draw ``fraction`` of each class by a seed that never changes: at least one image, if it has two.

    Returns:
        The indices that stay and the indices held out, each ascending.

    Raises:
        UserError: the fraction is out of range, or no class has two images.
    """
    check_fraction("validation", fraction)
    # RandomState's stream is frozen by numpy's policy; Generator's may change between versions.
    random = np.random.RandomState(SPLIT_SEED)
    by_class = labels.numpy()
    held = np.zeros(len(by_class), dtype=bool)
    for label in range(len(classes)):
        members = random.permutation(np.flatnonzero(by_class == label))
        count = round(fraction * len(members))
        held[members[: max(min(max(count, 1), len(members) - 1), 0)]] = True
    if not held.any():
        raise UserError(
            "No class has two images in train, one to stay and one for validation: "
            "add images, or give the data a val/ beside test/."
        )
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 ``images`` (N, C, H, W), in 0..1.

    Sums of whole numbers are exact: the same on any number of threads.
    """
    count = images.numel() // images.shape[1]
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for chunk in images.split(1024):  # in parts, as the squares need four times the memory
        values = chunk.transpose(0, 1).flatten(1)
        total += values.sum(1, dtype=torch.int64)
        squares += values.to(torch.int32).square_().sum(1, dtype=torch.int64)
    mean = total.double() / count
    std = (squares.double() / count - mean**2).clamp_min(1).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def tensor_hash(*tensors: Tensor) -> str:
    """Return a hash of the values, shapes and types of ``tensors``."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(memoryview(tensor.contiguous().numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()
