from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ecanet.data.folder import find_splits
from ecanet.data.listing import list_splits
from ecanet.data.stream import Batch, ImageDataset, ImageList, ShardedBatchSampler, make_loader
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
    return list_splits(tmp_path, ["train", "val"])["train"]


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
    (root / "val").rename(root / "valid")
    with pytest.raises(UserError, match=r"needs the folders train/ and test/ \(or val/\)"):
        find_splits(root)
    (root / "valid").rename(root / "val")
    (root / "val/c").mkdir()
    with pytest.raises(UserError, match="'c' is in"):
        list_splits(root, ["train", "val"])
    (root / "train/c").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        list_splits(root, ["train", "val"])
