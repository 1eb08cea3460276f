"""Batches: what is in them, and that nothing but seed, epoch and place decides it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ecanet.config import Augmentation
from ecanet.data import Data, DeviceBatches, Split, load_data
from ecanet.data.dataset import channel_statistics
from ecanet.errors import UserError

ALL = Augmentation(flip=True, crop_padding=2, cutout=3)
NONE = Augmentation(flip=False, crop_padding=0, cutout=0)


def make_data(count: int = 50, channels: int = 3, height: int = 8, width: int = 8) -> Data:
    """Images of which each is recognised by its first pixel and label."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 2
    split = Split(images, labels, [str(i) for i in range(len(labels))])
    mean, std = channel_statistics(images)
    return Data("made", ["a", "b"], split, split, split, mean, std, width, channels, "")


def collect(batches: DeviceBatches) -> tuple[Tensor, Tensor]:
    found = list(batches)
    return torch.cat([b.images for b in found]), torch.cat([b.labels for b in found])


def train(data: Data, **options: object) -> DeviceBatches:
    settings: dict[str, object] = {"augmentation": ALL, "seed": 3, "shuffle": True, **options}
    return DeviceBatches(data.train, data, 16, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("augmentation", [None, NONE])
def test_plain_batches_are_the_split(
    channels: int, channels_last: bool, augmentation: Augmentation | None
) -> None:
    data = make_data(channels=channels, height=6, width=9)
    batches = DeviceBatches(
        data.test, data, 16, augmentation=augmentation, seed=0, channels_last=channels_last
    )
    images, labels = collect(batches)
    assert torch.equal(images, data.test.images)
    assert torch.equal(labels, data.test.labels)
    assert [len(batch.labels) for batch in batches] == [16, 16, 16, 2]
    assert batches.steps == 4
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(batch.images.is_contiguous(memory_format=layout) for batch in batches)


def test_drop_last_leaves_out_the_rest() -> None:
    batches = train(make_data(), drop_last=True)
    assert batches.steps == 3
    assert [len(batch.labels) for batch in batches] == [16, 16, 16]
    exact = train(make_data(48), drop_last=True)
    assert exact.steps == len(list(exact)) == 3


def test_shuffled_batches_hold_every_image_once_in_another_order_each_epoch() -> None:
    data = make_data()
    batches = train(data, augmentation=None)
    first, labels = collect(batches)
    assert torch.equal(first, collect(batches)[0]), "iterating again repeats the epoch"
    batches.seek(1)
    second, _ = collect(batches)
    plain, _ = collect(DeviceBatches(data.train, data, 16))
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)
    for images in (first, second):
        found = (images[:, None] == plain[None]).all(dim=(2, 3, 4))
        assert torch.equal(found.sum(0), torch.ones(50, dtype=torch.int64))
    order = (first[:, None] == plain[None]).all(dim=(2, 3, 4)).int().argmax(1)
    assert torch.equal(labels, data.train.labels[order])


def test_two_runs_with_one_seed_are_paired_whatever_else_draws() -> None:
    data = make_data()
    torch.manual_seed(1)
    one = train(data)
    one.seek(4)
    torch.manual_seed(2)
    two = train(data, channels_last=True)
    two.seek(4)
    torch.rand(10)
    for batch, other in zip(one, two, strict=True):
        torch.rand(1)
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.labels, other.labels)
    unpaired = train(data, seed=4)
    unpaired.seek(4)
    assert not torch.equal(collect(unpaired)[0], collect(one)[0])


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    collect(train(make_data()))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_goes_on_at_any_step() -> None:
    batches = train(make_data())
    batches.seek(2)
    whole = list(batches)
    batches.seek(2, 2)
    assert batches.steps == 4
    for batch, wanted in zip(batches, whole[2:], strict=True):
        assert torch.equal(batch.images, wanted.images)
        assert torch.equal(batch.labels, wanted.labels)
    batches.seek(3)
    assert len(list(batches)) == 4


@pytest.mark.parametrize("at_once", [1, 16 * 3 * 8 * 8 * 2, 2**30])
@pytest.mark.parametrize("processes", [1, 3])
def test_batches_are_the_same_however_many_are_augmented_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int, processes: int
) -> None:
    batches = train(make_data(100), process=processes - 1, processes=processes)
    batches.seek(1)
    whole = list(batches)
    assert len(whole) == 7
    monkeypatch.setattr("ecanet.data.batches._AT_ONCE", at_once)
    for start in (0, 1, 5):
        batches.seek(1, start)
        for batch, wanted in zip(batches, whole[start:], strict=True):
            assert torch.equal(batch.images, wanted.images)
            assert torch.equal(batch.labels, wanted.labels)


def test_one_kind_of_augmentation_leaves_the_others_as_they_are() -> None:
    data = make_data()
    without = collect(train(data, augmentation=Augmentation(flip=True, crop_padding=2, cutout=0)))
    with_cutout = collect(train(data))
    assert torch.equal(without[1], with_cutout[1])  # the order
    same = (without[0] == with_cutout[0]).float().mean()
    assert 0.8 < same < 1  # all but squares of 3x3 in 8x8


def test_each_switch_changes_something() -> None:
    data = make_data()
    plain = collect(train(data, augmentation=NONE))[0]
    for change in ({"flip": True}, {"crop_padding": 1}, {"cutout": 2}):
        values = {"flip": False, "crop_padding": 0, "cutout": 0, **change}
        changed = collect(train(data, augmentation=Augmentation(**values)))[0]  # type: ignore[arg-type]
        assert not torch.equal(plain, changed), change


def test_digits_are_not_mirrored_by_default() -> None:
    data = load_data("digits")
    policy = Augmentation(crop_padding=0)
    given, _ = collect(DeviceBatches(data.train, data, 64, augmentation=policy, seed=1))
    plain, _ = collect(DeviceBatches(data.train, data, 64))
    assert torch.equal(given, plain)


def test_flips_are_even_and_crops_uniform() -> None:
    data = make_data(4000, 1, 2, 2)
    draws = train(data, augmentation=Augmentation(crop_padding=2, cutout=1))._draws()
    assert abs(draws["flip"].float().mean() - 0.5) < 0.03
    counts = torch.bincount(draws["top"] * 5 + draws["left"], minlength=25)
    assert counts.min() > 100  # of 160 expected
    assert set(draws["row"].tolist()) == {0, 1}


def test_cutout_fills_with_about_the_mean() -> None:
    data = make_data()
    whole = Augmentation(flip=False, crop_padding=0, cutout=30)
    images, _ = collect(train(data, augmentation=whole))
    mean = torch.tensor(data.mean)[:, None, None]
    assert (images / 255 - mean).abs().max() < 0.5 / 255 + 1e-6


def test_bad_settings_are_refused() -> None:
    data = make_data(10)
    with pytest.raises(UserError, match="batch size is 0"):
        DeviceBatches(data.train, data, 0)
    with pytest.raises(UserError, match="fewer than one batch of 16"):
        DeviceBatches(data.train, data, 16, drop_last=True)


def test_images_too_many_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()

    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(UserError, match="do not fit on cpu: use a smaller --image-size"):
        DeviceBatches(data.train, data, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_device_sees_the_same(channels_last: bool) -> None:
    data = load_data("digits")
    batches = [train(data, device=d, channels_last=channels_last) for d in ("cpu", "cuda")]
    for batch, other in zip(*batches, strict=True):
        assert other.images.is_cuda
        assert other.labels.is_cuda
        assert torch.equal(batch.images, other.images.cpu())
        assert torch.equal(batch.labels, other.labels.cpu())


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_each_batch(processes: int) -> None:
    data = make_data()
    for split in ("train", "test"):
        how = {"shuffle": split == "train", "augmentation": ALL if split == "train" else None}
        shares = [
            DeviceBatches(
                getattr(data, split), data, 12, seed=3, process=p, processes=processes, **how
            )  # type: ignore[arg-type]
            for p in range(processes)
        ]
        whole = DeviceBatches(getattr(data, split), data, 12, seed=3, **how)  # type: ignore[arg-type]
        taken = [list(share) for share in shares]
        assert [share.steps for share in shares] == [len(part) for part in taken]
        for step, batch in enumerate(whole):
            parts = [part[step] for part in taken if step < len(part)]
            assert sum(len(part.labels) for part in parts) == len(batch.labels)
            for process, part in enumerate(parts):
                assert torch.equal(part.images, batch.images[process::processes])
                assert torch.equal(part.labels, batch.labels[process::processes])
