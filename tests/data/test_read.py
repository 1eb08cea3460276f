"""Which images are trained on, chosen by and tested on, in memory and streamed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.photographs import draw_photographs
from PIL import Image
from torch import Tensor

from ecanet.config import ClassificationSettings
from ecanet.data import Data, DeviceBatches, Split
from ecanet.data.read import read_data
from ecanet.data.stream import ImageDataset, ImageList, ShardedBatchSampler, make_loader
from ecanet.errors import UserError


def read(root: Path, storage: str, alone: bool = False, **settings: object) -> Data:
    values = {"data": str(root), "storage": storage, **settings}
    return read_data(ClassificationSettings(**values), alone=alone)  # type: ignore[arg-type]


def evaluated(data: Data, split: Split | ImageList | None) -> Tensor:
    """Return the images of a split, uint8 (N, C, S, S), as a model is evaluated on them."""
    if isinstance(split, Split):
        batches = list(DeviceBatches(split, data, 7))
    else:
        assert split is not None
        order = ShardedBatchSampler(len(split), 7, shuffle=False)
        batches = list(make_loader(ImageDataset(split, data.preprocessing, 0), order, 0, False))
    return torch.cat([batch.images for batch in batches])


@pytest.mark.parametrize(
    ("splits", "alone", "validation", "sizes"),
    [
        # Two classes, of 12 images in train and 5 in the other splits: sizes of train, val and test.
        (["train", "val"], True, None, (24, 10, None)),
        (["train", "val"], False, None, (22, 2, 10)),
        (["train", "val"], True, 0.25, (18, 6, 10)),
        (["train", "val"], False, 0.0, (24, 10, None)),
        (["train", "test"], True, None, (22, 2, 10)),
        (["train", "test"], False, None, (22, 2, 10)),
        (["train", "test"], False, 0.25, (18, 6, 10)),
        (["train", "val", "test"], True, None, (24, 10, 10)),
        (["train", "val", "test"], False, None, (24, 10, 10)),
        (["train", "val", "test"], False, 0.25, (24, 10, 10)),
    ],
)
def test_what_the_splits_of_a_folder_are_for(
    tmp_path: Path,
    splits: list[str],
    alone: bool,
    validation: float | None,
    sizes: tuple[int | None, ...],
) -> None:
    root = draw_photographs(tmp_path, splits, side=8)
    kept = read(root, "memory", alone, validation=validation)
    streamed = read(root, "stream", alone, validation=validation)
    for name, size in zip(("train", "val", "test"), sizes, strict=True):
        one, other = getattr(kept, name), getattr(streamed, name)
        if size is None:
            assert one is other is None
            continue
        assert len(one) == len(other) == size
        assert one.labels.tolist() == other.labels
        assert torch.equal(evaluated(kept, one), evaluated(streamed, other)), "the same images"
    folders = {name.split("/")[0] for name in streamed.val.files}  # type: ignore[union-attr]
    assert folders == {"val" if sizes[1] == 10 else "train"}


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_auroc_of_one_class_is_refused(tmp_path: Path, storage: str) -> None:
    root = draw_photographs(tmp_path, ["train", "val", "test"], side=8)
    shutil.rmtree(root / "val" / "class1")
    with pytest.raises(UserError, match="--metric auroc: validation has images of only one class"):
        read(root, storage, metric="auroc")
    read(root, storage, metric="balanced_accuracy")


def test_nothing_to_choose_by_is_refused(tmp_path: Path) -> None:
    root = draw_photographs(tmp_path, side=8)
    for storage in ("memory", "stream"):
        with pytest.raises(UserError, match=r"--validation 0: .* has no val/ to choose by"):
            read(root, storage, validation=0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_size": 112},
        {"image_size": 128, "eval_size": 140},
        {"image_size": 40},
        {"image_size": 40, "crop_share": 0.5},
        {"image_size": 112, "crop_share": 1.0},
    ],
)
def test_evaluated_alike_in_memory_and_streamed(tmp_path: Path, settings: dict[str, float]) -> None:
    root = draw_photographs(tmp_path)
    kept, streamed = (read(root, storage, **settings) for storage in ("memory", "stream"))
    assert isinstance(kept.train, Split)
    assert isinstance(streamed.train, ImageList)
    ours, theirs = kept.preprocessing, streamed.preprocessing
    assert (ours.size, ours.resize) == (theirs.size, theirs.resize)
    assert ours.crop_share == settings.get("crop_share", 1.0 if ours.size <= 96 else 0.875)
    for name in ("train", "val", "test"):
        images = evaluated(kept, getattr(kept, name))
        assert images.shape[1:] == (3, ours.size, ours.size)
        assert torch.equal(images, evaluated(streamed, getattr(streamed, name)))


@pytest.mark.parametrize("image_size", [None, 112])
def test_one_channel_and_a_window_in_memory_and_streamed(
    tmp_path: Path, image_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the cache does not mix them up with others."""
    monkeypatch.setenv("ECANET_CACHE", str(tmp_path / "cache"))
    root, chance = draw_photographs(tmp_path / "images", side=40), np.random.default_rng(0)
    for number, file in enumerate(sorted(root.glob("*/*/*.jpg"))[::2]):
        values = chance.uniform(-1000, 400, (40, 40)).astype(np.float32)
        Image.fromarray(values).save(file.parent / f"deep{number}.tif")
    found = {}
    for in_chans in (1, None):
        for window in ([-1000.0, 400.0], [-2000, 2000]):
            kept, streamed = (
                read(root, storage, image_size=image_size, in_chans=in_chans, window=window)
                for storage in ("memory", "stream")
            )
            assert isinstance(kept.train, Split)
            ours, theirs = kept.preprocessing, streamed.preprocessing
            assert ours.pixels == theirs.pixels == (in_chans or 3, tuple(window))
            assert kept.channels == streamed.channels == len(kept.mean) == (in_chans or 3)
            for name in ("train", "val", "test"):
                images = evaluated(kept, getattr(kept, name))
                assert torch.equal(images, evaluated(streamed, getattr(streamed, name)))
            assert images.shape[1] == (in_chans or 3)
            for data in (kept, streamed):
                found[data.fingerprint] = images.float().std().item()
    assert len(found) == 8, "other pixels are other data"
    assert len(set(found.values())) == 4


def test_a_named_set_is_of_the_channels_asked_for() -> None:
    own, color = (read_data(ClassificationSettings(in_chans=channels)) for channels in (None, 3))
    assert (own.channels, color.channels) == (1, 3)
    assert own.fingerprint != color.fingerprint
    assert isinstance(own.train, Split)
    assert isinstance(color.train, Split)
    assert torch.equal(own.train.images.expand(-1, 3, -1, -1), color.train.images)
    with pytest.raises(UserError, match="--window: the pixels of digits have 8 bits"):
        read_data(ClassificationSettings(window=[0, 100]))


def test_what_does_not_fit_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = draw_photographs(tmp_path, side=8)
    assert isinstance(read(root, "auto").train, Split)
    # 34 images of 8 x 8 pixels in three colors.
    monkeypatch.setattr("ecanet.data.read.MOST_IN_MEMORY", 34 * 3 * 64 - 1)
    assert isinstance(read(root, "auto").train, ImageList)
    assert isinstance(read(root, "memory").train, Split)


def test_what_cannot_be_kept_in_memory_is_refused(tmp_path: Path) -> None:
    root = draw_photographs(tmp_path)
    with pytest.raises(UserError, match=r"--storage memory: .*; use --storage stream"):
        read(root, "memory", image_size=40, eval_size=48)
    with pytest.raises(UserError, match="--storage stream: digits is always kept in memory"):
        read_data(ClassificationSettings(storage="stream"))
