from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ecanet.data.listing import list_images
from ecanet.data.stream import (
    Batch,
    ImageDataset,
    ImageList,
    ShardedBatchSampler,
    _collate,
    make_loader,
)
from ecanet.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        for split, count in (("train", 13), ("val", 3)):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return list_images(str(tmp_path)).splits["train"]  # type: ignore[return-value]


def noisy(image: torch.Tensor) -> torch.Tensor:
    """An augmentation: it draws from torch's generator."""
    return image[:, :16, :16] // 2 + torch.randint(0, 127, (3, 16, 16), dtype=torch.uint8)


def epoch(images: ImageList, order: ShardedBatchSampler, workers: int = 0) -> list[Batch]:
    return list(make_loader(ImageDataset(images, noisy, seed=3), order, workers, pin=False))


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_what_an_epoch_holds(images: ImageList) -> None:
    order = ShardedBatchSampler(len(images), 4, shuffle=True, seed=1)
    assert len(order) == 6
    batches = epoch(images, order)
    assert [tuple(b.images.shape) for b in batches] == [(4, 3, 16, 16)] * 6
    assert batches[0].images.dtype == torch.uint8
    drawn = [index for positions in order for _, index in positions]
    assert len(set(drawn)) == 24
    whole = ShardedBatchSampler(len(images), 4, shuffle=False)
    assert [i for positions in whole for _, i in positions] == list(range(26))


def test_epochs_differ_in_order_and_augmentation(images: ImageList) -> None:
    order = ShardedBatchSampler(len(images), 4, shuffle=True, seed=1)
    first = epoch(images, order)
    assert same(first, epoch(images, order))
    order.seek(1)
    assert not same(first, epoch(images, order))
    files = ImageDataset(images, noisy, seed=3)
    assert torch.equal(files[0, 5][0], files[0, 5][0])
    assert not torch.equal(files[0, 5][0], files[1, 5][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_stopped(images: ImageList, workers: int) -> None:
    order = ShardedBatchSampler(len(images), 4, shuffle=True, seed=1)
    order.seek(2)
    whole = epoch(images, order)
    order.seek(2, 4)
    assert same(whole[4:], epoch(images, order, workers))


def collate_and_look(samples: list[Any]) -> bool:
    return _collate(samples).images.is_shared()


def test_a_reader_makes_its_batches_in_shared_memory(images: ImageList) -> None:
    """Its own heap would hold a second batch, and grow: glibc's holes seldom fit the next one."""
    order = ShardedBatchSampler(len(images), 4, shuffle=False)
    dataset = ImageDataset(images, noisy, seed=3)
    assert all(make_loader(dataset, order, 1, pin=False, collate=collate_and_look))


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_an_epoch(images: ImageList, shuffle: bool) -> None:
    whole = ShardedBatchSampler(len(images), 4, shuffle=shuffle, seed=1)
    shares = [
        ShardedBatchSampler(len(images), 4, shuffle=shuffle, seed=1, process=i, processes=3)
        for i in range(3)
    ]
    together = sorted(p for share in shares for positions in share for p in positions)
    assert together == sorted(p for positions in whole for p in positions)
    # A step's images are the same whatever the number of processes.
    steps = [list(share) for share in shares]
    first = sorted(p for step in steps for p in step[0])
    assert first == sorted(next(iter(whole)))


def test_a_corrupt_image_is_refused_or_replaced(images: ImageList) -> None:
    broken = images.root / images.files[4]
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match=r"04\.png cannot be decoded"):
        ImageDataset(images, noisy, 0)[0, 4]
    files = ImageDataset(images, noisy, 0, corrupt="replace")
    image, _, corrupt = files[0, 4]
    assert corrupt == images.files[4]
    assert image.shape == (3, 16, 16)
    again, _, _ = files[0, 4]
    assert torch.equal(image, again)
    order = ShardedBatchSampler(len(images), 4, shuffle=False)
    batches = list(make_loader(files, order, 0, pin=False))
    assert [b.corrupt for b in batches if b.corrupt] == [[images.files[4]]]
    assert sum(len(b.labels) for b in batches) == len(images)


def test_folders_that_cannot_be_used(images: ImageList) -> None:
    root = images.root
    (root / "val/c").mkdir()
    with pytest.raises(UserError, match="'c' is in"):
        list_images(str(root))
    (root / "train/c").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        list_images(str(root))


@pytest.fixture
def rare() -> torch.Tensor:
    """Labels of 600 images, of which one in twenty is of the second of two classes that occur."""
    return torch.tensor([2 if i % 20 == 0 else 0 for i in range(600)])


def test_balanced_epochs_hold_all_classes_alike(rare: torch.Tensor) -> None:
    order = ShardedBatchSampler(600, 60, shuffle=True, seed=1, balanced=rare)
    drawn = [index for positions in order for _, index, *_ in positions]
    assert len(drawn) == 600
    counts = rare[drawn].bincount()
    # Binomial: five standard deviations are 61.
    assert counts[1] == 0
    assert abs(int(counts[0]) - 300) < 62
    order.seek(1)
    assert [index for positions in order for _, index, *_ in positions] != drawn


def test_balanced_epochs_augment_an_image_anew_each_time(rare: torch.Tensor) -> None:
    order = ShardedBatchSampler(600, 60, shuffle=True, seed=1, balanced=rare)
    positions = [position for batch in order for position in batch]
    assert len(set(positions)) == 600, "no two draws are augmented alike"
    assert {len(position) for position in positions} == {2, 3}


def test_balanced_epochs_are_resumed_and_shared(rare: torch.Tensor) -> None:
    whole = ShardedBatchSampler(600, 60, shuffle=True, seed=1, balanced=rare)
    batches = list(whole)
    whole.seek(0, 7)
    assert list(whole) == batches[7:]
    shares = [
        list(ShardedBatchSampler(
            600, 60, shuffle=True, seed=1, balanced=rare, process=process, processes=2
        ))
        for process in range(2)
    ]  # fmt: skip
    assert [batch[::2] for batch in batches] == shares[0]
    assert [batch[1::2] for batch in batches] == shares[1]
