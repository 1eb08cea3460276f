"""Batches of a split that lives on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ecanet.config import Augmentation
from ecanet.data import augment
from ecanet.data.dataset import Data, Split
from ecanet.data.stream import Batch, balanced_order
from ecanet.errors import UserError

# Bytes of images that are augmented at once, as several batches if these are small. The batches are the same;
# a GPU gets the 15 operations once for ten batches of CIFAR's images, and a CPU's cache still holds them.
_AT_ONCE = 2**22


class DeviceBatches:
    """Iterate over a split that lives on the device, in :class:`ecanet.data.stream.Batch` es of uint8 images.

    The images are put on the device once, as uint8. Order and augmentation are drawn on the CPU, each
    from a hash of its name, the seed and the epoch, one draw per image in the order they come: a
    resumed run sees the same batches as an unbroken one, two runs with one seed are paired, the device
    makes no difference, and switching one kind of augmentation off leaves the others as they were.

    Args:
        data: for its classes, mean and size: images are center-cropped to it.
        augmentation: None for images as they are; flip, crop_padding and cutout are applied here.
        shuffle: draw the order anew for each epoch; balanced: with replacement, so that each class is
            equally likely.
        drop_last: leave out a last batch that is not full.
        process, processes: which share of each batch this is, of how many: every ``processes``-th image.

    Raises:
        UserError: a setting out of range, or images that do not fit on the device.
    """

    def __init__(
        self,
        split: Split,
        data: Data,
        batch_size: int,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        shuffle: bool | Literal["balanced"] = False,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        drop_last: bool = False,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"The batch size is {batch_size}: give a positive number.")
        if drop_last and len(split) < batch_size:
            raise UserError(
                f"{len(split)} images are fewer than one batch of {batch_size}: use a smaller one."
            )
        self.batch_size = batch_size
        self.augmentation = augmentation and augment.with_flip(augmentation, data.classes)
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.channels_last = channels_last
        self.process, self.processes = process, processes
        self.epoch, self.start_step = 0, 0
        self.device = torch.device(device)
        self.size = data.image_size
        edge = round((split.images.shape[-1] - self.size) / 2)
        images = split.images[..., edge : edge + self.size, edge : edge + self.size]
        try:
            # Channels last means that the innermost of (N, H, W, C): images stay whole when picked
            images = images.permute(0, 2, 3, 1) if channels_last else images
            self.images = images.to(self.device).contiguous()
            self.labels = split.labels.to(self.device)
        except torch.OutOfMemoryError:
            size = split.images.numel() / 1e9
            raise UserError(
                f"The images take {size:.1f} GB and do not fit on {device}: use a smaller --image-size."
            ) from None
        self.fill = torch.tensor(data.mean, device=self.device).mul(255).round().to(torch.uint8)

    def seek(self, epoch: int, step: int = 0) -> None:
        """Choose what the next iteration yields: ``epoch``, from its batch ``step`` on."""
        self.epoch, self.start_step = epoch, step

    @property
    def steps(self) -> int:
        """Batches of a whole epoch."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > self.process and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(len(self.labels))
        if self.shuffle == "balanced":
            order = balanced_order(self.labels.cpu(), self._generator("order"))
        elif self.shuffle:
            order = torch.randperm(len(order), generator=self._generator("order"))
        own = self._own_places()
        order = order[own].to(self.device)
        draws = {name: draw[own].to(self.device) for name, draw in self._draws().items()}
        share = len(range(self.process, self.batch_size, self.processes))
        at_once = share * max(1, _AT_ONCE // max(1, share * self.images[0].numel()))
        for first in range(0, len(own), at_once):
            part = slice(first, first + at_once)
            images = self.images.index_select(0, order[part])  # several times as fast as [indices]
            if self.channels_last:
                images = images.permute(0, 3, 1, 2)
            images = self._augment(images, {name: draw[part] for name, draw in draws.items()})
            labels = self.labels.index_select(0, order[part])
            yield from map(Batch, images.split(share), labels.split(share))

    def _own_places(self) -> Tensor:
        """Return which places of the epoch's order are this process's, from the first step on."""
        batches = torch.arange(len(self.labels)).split(self.batch_size)
        mine = [b[self.process :: self.processes] for b in batches[self.start_step : self.steps]]
        return torch.cat(mine) if mine else torch.arange(0)

    def _generator(self, purpose: str) -> torch.Generator:
        name = f"{purpose} {self.seed} {self.epoch}"
        digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def _draws(self) -> dict[str, Tensor]:
        """Draw an epoch's augmentation: for each name one number per image, in the order they come."""
        policy = self.augmentation
        limits: dict[str, int] = {}
        if policy and policy.flip:
            limits["flip"] = 2
        if policy and policy.crop_padding:
            limits |= dict.fromkeys(("top", "left"), 2 * policy.crop_padding + 1)
        if policy and policy.cutout:
            limits |= dict.fromkeys(("row", "column"), self.size)
        shape = (len(self.labels),)
        return {
            name: torch.randint(limit, shape, generator=self._generator(name))
            for name, limit in limits.items()
        }

    def _augment(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        policy = self.augmentation
        if "flip" in draws:
            images = augment.flip(images, draws["flip"].bool())
        if policy and "top" in draws:
            images = augment.crop(images, policy.crop_padding, draws["top"], draws["left"])  # type: ignore[arg-type]
        if policy and "row" in draws:
            images = augment.cutout(images, policy.cutout, draws["row"], draws["column"], self.fill)
        return images
