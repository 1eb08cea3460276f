"""Batched augmentation against one image at a time."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers.news import news
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from ecanet.config import Augmentation
from ecanet.data import augment

SHAPES = [(6, 3, 8, 8), (5, 1, 8, 8), (4, 3, 7, 10), (1, 3, 5, 5)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(params=itertools.product(SHAPES, LAYOUTS), ids=str)
def images(request: pytest.FixtureRequest) -> Tensor:
    shape, layout = request.param
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return values.contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("classes", "mirrored"),
    [
        (list("0123456789"), False),
        (list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), False),
        ([f"0{digit}" for digit in range(10)], False),
        (["0 - zero", "1 - one"], False),
        (["Seven", "eight", "nine"], False),
        (["digit_3", "digit_8"], False),
        (["class_0", "class_1"], True),
        (["cat", "dog"], True),
        ([str(number) for number in range(100)], True),
    ],
)
def test_images_are_mirrored_unless_of_characters(classes: list[str], mirrored: bool) -> None:
    settings = Augmentation()
    with news() as said:
        assert augment.with_flip(settings, classes, quiet=False).flip is mirrored
    line = f"the classes {classes[0]} to {classes[-1]}"
    assert [line in told for told in said] == [True] * (not mirrored)
    for given in (True, False):
        assert augment.with_flip(replace(settings, flip=given), classes).flip is given


def test_a_few_single_characters_are_mirrored_with_a_line() -> None:
    with news() as said:
        assert augment.with_flip(Augmentation(), ["3", "8"], quiet=False).flip is True
    assert ["images of the classes 3, 8 are mirrored" in line for line in said] == [True]


def test_flip(images: Tensor) -> None:
    mirrored = torch.arange(len(images)) % 2 == 0
    before = images.clone()
    flipped = augment.flip(images, mirrored)
    for i, image in enumerate(images):
        wanted = reference.horizontal_flip(image) if mirrored[i] else image
        assert torch.equal(flipped[i], wanted)
    assert torch.equal(images, before)


@pytest.mark.parametrize("padding", [1, 4, 12])
def test_crop(images: Tensor, padding: int) -> None:
    height, width = images.shape[2:]
    generator = torch.Generator().manual_seed(1)
    top, left = torch.randint(0, 2 * padding + 1, (2, len(images)), generator=generator)
    cropped = augment.crop(images, padding, top, left)
    for i, image in enumerate(images):
        padded = reference.pad(image, [padding])
        wanted = reference.crop(padded, int(top[i]), int(left[i]), height, width)
        assert torch.equal(cropped[i], wanted)


def test_crop_in_the_middle_changes_nothing(images: Tensor) -> None:
    middle = torch.full((len(images),), 4)
    assert torch.equal(augment.crop(images, 4, middle, middle), images)


@pytest.mark.parametrize("side", [1, 2, 3, 6, 50])
def test_cutout(images: Tensor, side: int) -> None:
    count, channels, height, width = images.shape
    fill = torch.arange(channels, dtype=torch.uint8) + 1
    generator = torch.Generator().manual_seed(2)
    row = torch.randint(0, height, (count,), generator=generator)
    column = torch.randint(0, width, (count,), generator=generator)
    row[0], column[0] = 0, width - 1  # a corner
    before = images.clone()
    blanked = augment.cutout(images, side, row, column, fill)
    for i in range(count):
        wanted = images[i].clone()
        for y in range(height):
            for x in range(width):
                inside_y = row[i] - side // 2 <= y < row[i] - side // 2 + side
                inside_x = column[i] - side // 2 <= x < column[i] - side // 2 + side
                if inside_y and inside_x:
                    wanted[:, y, x] = fill
        assert torch.equal(blanked[i], wanted)
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalize(images: Tensor, channels_last: bool) -> None:
    channels = images.shape[1]
    mean, std = torch.rand(channels) * 0.5 + 0.2, torch.rand(channels) * 0.2 + 0.1
    result = augment.normalize(images, mean, std, channels_last)
    wanted = (images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-5)
    assert result.dtype == torch.float32
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=layout)


def test_normalize_takes_the_view_that_cutout_returns(images: Tensor) -> None:
    where = torch.zeros(len(images), dtype=torch.int64)
    fill = torch.zeros(images.shape[1], dtype=torch.uint8)
    blanked = augment.cutout(images, 3, where, where, fill)
    mean = std = torch.ones(images.shape[1])
    for channels_last in (False, True):
        result = augment.normalize(blanked, mean, std, channels_last)
        torch.testing.assert_close(result, blanked / 255 - 1)
