"""Batches of a split that lives on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ecanet.config import Augmentation
from ecanet.data import augment
from ecanet.data.dataset import Data, Split
from ecanet.errors import UserError


class Batches:
    """Iterate over a split in batches of normalised float32 images (N, C, H, W) and int64 labels (N,).

    The images are put on the device once, as uint8. Order and augmentation are drawn on the CPU, each
    from a hash of its name, the seed and the epoch, one draw per image in the order they come: a
    resumed run sees the same batches as an unbroken one, two runs with one seed are paired, the device
    makes no difference, and switching one kind of augmentation off leaves the others as they were.

    Args:
        data: for its mean and standard deviation, those of train whatever the split.
        augmentation: None for images as they are.
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
        shuffle: bool = False,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        drop_last: bool = False,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"The batch size is {batch_size}: give a positive number.")
        if augmentation and (augmentation.crop_padding < 0 or augmentation.cutout < 0):
            raise UserError("crop_padding and cutout are numbers of pixels: give 0 or more.")
        if drop_last and len(split) < batch_size:
            raise UserError(
                f"{len(split)} images are fewer than one batch of {batch_size}: use a smaller one."
            )
        self.batch_size = batch_size
        self.augmentation = augmentation and augment.with_flip(augmentation, data.classes)
        self.seed = seed
        self.shuffle = shuffle
        self.channels_last = channels_last
        self.drop_last = drop_last
        self.process, self.processes = process, processes
        self.epoch = 0
        self.start_step = 0
        self.device = torch.device(device)
        self.height, self.width = split.images.shape[2:]
        try:
            # Channels last means that the innermost of (N, H, W, C): images stay whole when picked
            images = split.images.permute(0, 2, 3, 1) if channels_last else split.images
            self.images = images.to(self.device).contiguous()
            self.labels = split.labels.to(self.device)
        except torch.OutOfMemoryError:
            size = split.images.numel() / 1e9
            raise UserError(
                f"The images take {size:.1f} GB and do not fit on {device}: use a smaller --image-size."
            ) from None
        self.mean = torch.tensor(data.mean, dtype=torch.float32, device=self.device)
        self.std = torch.tensor(data.std, dtype=torch.float32, device=self.device)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose what the next iteration yields: ``epoch``, from its batch ``start_step`` on."""
        self.epoch = epoch
        self.start_step = start_step

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > self.process and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order().to(self.device)
        draws = {name: draw.to(self.device) for name, draw in self._draws().items()}
        for step in range(self.start_step, len(self)):
            first = step * self.batch_size
            part = slice(first + self.process, first + self.batch_size, self.processes)
            indices = order[part]
            images = self.images.index_select(0, indices)  # several times as fast as [indices]
            if self.channels_last:
                images = images.permute(0, 3, 1, 2)
            images = self._augment(images, {name: draw[part] for name, draw in draws.items()})
            images = augment.normalize(images, self.mean, self.std, self.channels_last)
            yield images, self.labels.index_select(0, indices)

    def _generator(self, purpose: str) -> torch.Generator:
        digest = hashlib.blake2b(
            f"{purpose} {self.seed} {self.epoch}".encode(), digest_size=4
        ).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def _order(self) -> Tensor:
        count = len(self.labels)
        if self.shuffle:
            return torch.randperm(count, generator=self._generator("order"))
        return torch.arange(count)

    def _draws(self) -> dict[str, Tensor]:
        """Draw an epoch's augmentation: for each name one number per image, in the order they come."""
        policy = self.augmentation
        limits: dict[str, int] = {}
        if policy and policy.flip:
            limits["flip"] = 2
        if policy and policy.crop_padding:
            limits |= dict.fromkeys(("top", "left"), 2 * policy.crop_padding + 1)
        if policy and policy.cutout:
            limits |= {"row": self.height, "column": self.width}
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
            images = augment.crop(images, policy.crop_padding, draws["top"], draws["left"])
        if policy and "row" in draws:
            fill = self.mean.mul(255).round().to(torch.uint8)
            images = augment.cutout(images, policy.cutout, draws["row"], draws["column"], fill)
        return images
