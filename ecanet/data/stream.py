"""Image folders too large for memory: read, augmented and batched as they are needed.

Whatever is random is a function of the seed, the epoch and the image's index, never of a process or
of what was drawn before. So a run that resumes in the middle of an epoch sees what it would have seen,
with any number of workers, and any number of devices share one order.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ecanet.data.decode import Window, decode_image, read_file
from ecanet.errors import UserError
from ecanet.heap import keep_freed_memory, release_freed_memory

Transform: TypeAlias = Callable[[Tensor], Tensor]
# A position in the data: the epoch, which seeds the augmentation, and the image's index; of an image that the
# epoch has had before, how often.
Position: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class ImageList:
    """The image files of one split, relative to ``root``, with their labels."""

    root: Path
    files: list[str]
    labels: list[int]
    classes: list[str]
    left_out: list[str] = field(default_factory=list, kw_only=True)
    """What else is in the folder and no image by its name."""
    window: Window | None = field(default=None, kw_only=True)
    """With which images are decoded."""

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, indices: Sequence[int]) -> ImageList:
        """Return the list of the images at ``indices``."""
        files, labels = [self.files[i] for i in indices], [self.labels[i] for i in indices]
        return replace(self, files=files, labels=labels)

    def image(self, index: int) -> Tensor:
        """Return an image, uint8 (1 or 3, H, W).

        Raises:
            ValueError: it cannot be decoded; the message is a short reason.
            UserError: it cannot be read.
        """
        return decode_image(self.read(index), self.window)

    def read(self, index: int) -> bytes:
        """Return an image's file as it is.

        Raises:
            ValueError: it is no image's, by its size or kind; the message is a short reason.
            UserError: it cannot be read.
        """
        return read_file(self.root / self.files[index])

    def length(self, index: int) -> int:
        """Return the bytes of an image's file.

        Raises:
            OSError: there is no such file.
        """
        return os.stat(self.root / self.files[index]).st_size


@dataclass(frozen=True)
class Batch:
    """Images uint8 (N, C, H, W), labels int64 (N,), and the files that could not be read."""

    images: Tensor
    labels: Tensor
    corrupt: list[str] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.corrupt)


class ImageDataset(Dataset[tuple[Tensor, int, str | None]]):
    """Reads, decodes and transforms the images of a list; indexed by a :data:`Position`.

    Args:
        images: what to read.
        transform: uint8 (3, H, W) to uint8 (3, S, S). What it draws from torch's global generator,
            it draws anew for each epoch and image.
        seed: of these draws.
        corrupt: ``refuse`` raises for an image that cannot be read; ``replace`` takes another one in
            its place, the same in each epoch; ``skip`` gives a black one with label -1, not to be counted.
    """

    def __init__(
        self, images: ImageList, transform: Transform, seed: int, corrupt: str = "refuse"
    ) -> None:
        self.images, self.transform, self.seed, self.corrupt = images, transform, seed, corrupt

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: Position) -> tuple[Tensor, int, str | None]:
        epoch, index, *times = position
        corrupt = None
        for attempt in range(100):
            file = self.images.files[index]
            try:
                image = self.images.image(index)
                break
            except ValueError as error:
                if self.corrupt == "refuse":
                    raise UserError(
                        f"{self.images.root / file} cannot be decoded: {error}. Repair or remove it, "
                        "or leave such images out: --corrupt skip."
                    ) from None
                if self.corrupt == "skip":
                    black = torch.zeros(3, 1, 1, dtype=torch.uint8)
                    return self.transform(black), -1, file
                corrupt = corrupt or file
                index = derived_seed("replace", self.seed, index, attempt) % len(self.images)
        else:
            raise UserError(f"{self.images.root}: a hundred images in a row cannot be decoded")
        # torch.manual_seed asks every kind of device: 0.13 ms, a twentieth of the time of an image.
        torch.default_generator.manual_seed(
            derived_seed("augment", self.seed, epoch, index, *times)
        )
        return self.transform(image), self.images.labels[index], corrupt


class ShardedBatchSampler(Sampler[list[Position]]):
    """Batches of positions for one of several processes; together they go over all images once.

    Args:
        count: images in all.
        batch_size: images a step, over all processes; each takes every ``processes``-th of them.
        shuffle: draw the order anew for each epoch, and leave out a last batch that is not full;
            else in order, all of them.
        groups: a group for each image, such as tall and wide: batches are of one group as far as
            there are enough, and mixed where some are left over.
        balanced: labels (count,), where an epoch is drawn with replacement and all classes alike, as by
            :func:`balanced_order`; only with ``shuffle``.

    :meth:`seek` says what the next iteration yields.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        groups: Sequence[int] | None = None,
        balanced: Tensor | None = None,
    ) -> None:
        self.groups, self.balanced = groups, balanced
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.process, self.processes = process, processes
        self.epoch, self.step = 0, 0

    def seek(self, epoch: int, step: int = 0) -> None:
        """Go to a batch of an epoch: the next iteration yields from there to the epoch's end."""
        self.epoch, self.step = epoch, step

    @property
    def steps(self) -> int:
        """Batches of a whole epoch."""
        full, rest = divmod(self.count, self.batch_size)
        return full if self.shuffle else full + bool(rest)

    def __len__(self) -> int:
        return self.steps - self.step

    def __iter__(self) -> Iterator[list[Position]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
            if self.balanced is None:
                order = torch.randperm(self.count, generator=generator).tolist()
            else:
                order = balanced_order(self.balanced, generator).tolist()
            if self.groups is not None:
                order = self._grouped(order, self.groups, generator)
        else:
            order = list(range(self.count))
        positions: list[Position] = [(self.epoch, index) for index in order]
        if self.balanced is not None:
            seen: Counter[int] = Counter()
            for place, index in enumerate(order):
                if times := seen[index]:
                    # Augmented in another way each time.
                    positions[place] = (self.epoch, index, times)
                seen[index] += 1
        for step in range(self.step, self.steps):
            batch = positions[step * self.batch_size : (step + 1) * self.batch_size]
            mine = batch[self.process :: self.processes]
            if mine:
                yield mine

    def _grouped(
        self, order: list[int], groups: Sequence[int], generator: torch.Generator
    ) -> list[int]:
        """Return ``order`` as batches of one group each, and of what is left of all groups."""
        of_group: dict[int, list[int]] = {}
        for index in order:
            of_group.setdefault(groups[index], []).append(index)

        def full(indices: list[int]) -> list[list[int]]:
            starts = range(0, len(indices) - self.batch_size + 1, self.batch_size)
            return [indices[start : start + self.batch_size] for start in starts]

        batches = [batch for _, found in sorted(of_group.items()) for batch in full(found)]
        # In the order drawn, so that what does not fill a batch is of any group.
        left = set(order).difference(*batches)
        batches += full([index for index in order if index in left])
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [index for number in shuffled for index in batches[number]]


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many images as there are, with replacement, so that each class is equally likely.

    Args:
        labels: (N,), int64.

    Returns:
        Indices of images, int64 (N,).
    """
    chances = labels.bincount().double().reciprocal()[labels]
    return torch.multinomial(chances, len(labels), replacement=True, generator=generator)


class Loader(DataLoader[Any]):
    """A DataLoader over a :class:`ShardedBatchSampler`; :meth:`seek` says where the next iteration starts.

    It passes a worker's :class:`UserError` on as it was, without its traceback.
    """

    batch_sampler: ShardedBatchSampler

    @property
    def steps(self) -> int:
        """Batches of a whole epoch."""
        return self.batch_sampler.steps

    def seek(self, epoch: int, step: int = 0) -> None:
        self.batch_sampler.seek(epoch, step)

    def __iter__(self) -> Any:
        if self.num_workers and self._iterator is None:
            release_freed_memory()
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def make_loader(
    dataset: Dataset[Any],
    order: ShardedBatchSampler,
    workers: int,
    pin: bool,
    collate: Callable[[list[Any]], Any] | None = None,
    forks: bool = True,
) -> Loader:
    """Return a loader over the dataset in the given order. Its workers outlive an epoch, and read ahead.

    Args:
        dataset: indexed by :data:`Position`.
        order: of the positions.
        workers: processes that read; 0: none.
        pin: put batches where a GPU copies them from without waiting.
        collate: makes a batch of samples; by default a :class:`Batch` of those of :class:`ImageDataset`.
        forks: whether workers may be forks of this process. Those of a process that is connected to others
            can hang, as its threads hold locks.
    """
    context = None
    if workers and not forks and "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    return Loader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate or _collate,
        pin_memory=pin,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=prepare_worker,
        multiprocessing_context=context,
    )


def derived_seed(*parts: object) -> int:
    """Return a seed of 63 bits that follows from all of ``parts``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _collate(samples: list[tuple[Tensor, int, str | None]]) -> Batch:
    images, labels, corrupt = zip(*samples, strict=True)
    return Batch(stack(images), torch.tensor(labels), [name for name in corrupt if name])


def stack(images: Sequence[Tensor]) -> Tensor:
    """Stack images of one size; in a reader in the shared memory that the batch is passed on in.

    So its heap does not grow by batches, and nothing is copied twice.
    """
    stacked: Tensor = default_collate(list(images))
    return stacked


def prepare_worker(worker: int) -> None:
    """Make a process that reads images ready: it is one of many, and each has one core."""
    # Signals to the run's process group, as from timeout, do not reach it: the run needs it to be saved.
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    # torch looks for the end of the parent, which of a fork server's child is the server.
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()


def _exit_with(process: Any) -> None:
    process.join()
    os._exit(1)
