"""Drawn detections, read back from the pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from ecanet.detection.predict.drawing import (
    MASK_OPACITY,
    draw_detections,
    enlargement,
    object_color,
    write_caption,
)

NAMES = ["dog", "traffic light with a name that is far too long for a small image"]


def detections(*boxes: tuple[int, int, int, int], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return objects whose masks are discs in their boxes."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    masks = []
    for left, top, right, bottom in boxes:
        x, y = (columns - (left + right) / 2) * 2, (rows - (top + bottom) / 2) * 2
        masks.append((x / (right - left)) ** 2 + (y / (bottom - top)) ** 2 < 0.8)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.5, len(boxes)),
        "masks": torch.stack(masks)[:, None].float() if masks else torch.zeros(0, 1, *size),
    }


@pytest.mark.parametrize("ground", [0, 90, 255])
def test_the_mask_s_color_is_where_the_mask_is_and_nowhere_else(ground: int) -> None:
    image = torch.full((3, 300, 400), ground, dtype=torch.uint8)
    found = detections((150, 100, 350, 260), size=(300, 400))
    pixels = np.asarray(draw_detections(image, found, NAMES)).astype(int)
    tint = np.round((1 - MASK_OPACITY) * ground + MASK_OPACITY * np.array(object_color(0)))
    mask = found["masks"][0, 0].bool().numpy()
    inner = mask & np.roll(mask, 4, 0) & np.roll(mask, -4, 0) & np.roll(mask, 4, 1)
    inner &= np.roll(mask, -4, 1)
    assert (pixels[inner] == tint).all()
    edge = mask & ~np.roll(mask, 1, 1)
    assert (pixels[edge] == object_color(0)).all()
    # Outside the object and away from box and name, the image is as it was.
    outside = ~mask
    outside[70:264, 146:354] = False
    assert (pixels[outside] == ground).all()


def test_red_is_red() -> None:
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    image[0] = 200
    drawn = draw_detections(image, detections(size=(300, 300)), NAMES)
    assert drawn.getpixel((5, 5)) == (200, 0, 0)


def test_one_class_has_one_color_and_objects_can_have_their_own() -> None:
    image = torch.zeros(3, 300, 600, dtype=torch.uint8)
    found = detections((20, 100, 120, 200), (300, 100, 400, 200), size=(300, 600))
    centres = [(70, 150), (350, 150)]
    by_class = draw_detections(image, found, NAMES)
    assert by_class.getpixel(centres[0]) == by_class.getpixel(centres[1])
    by_object = draw_detections(image, found, NAMES, color_by="object")
    assert by_object.getpixel(centres[0]) != by_object.getpixel(centres[1])


def test_small_objects_are_seen_on_large_ones() -> None:
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    large, small = (20, 20, 380, 380), (180, 180, 230, 230)
    for order in ((large, small), (small, large)):
        found = detections(*order, size=(400, 400))
        found["labels"] = torch.tensor([1 if box[0] == 20 else 2 for box in order])
        alone = np.array(object_color(0)) * MASK_OPACITY
        over = (1 - MASK_OPACITY) * alone.round() + MASK_OPACITY * np.array(object_color(1))
        drawn = draw_detections(image, found, ["large", "small"]).getpixel((205, 205))
        assert drawn == tuple(over.round().astype(int))


@pytest.mark.parametrize(
    "size", [(8, 8), (20, 300), (60, 40), (480, 640), (1500, 2000), (40, 3000)]
)
def test_any_size_any_place_any_name(size: tuple[int, int]) -> None:
    height, width = size
    image = torch.full((3, *size), 127, dtype=torch.uint8)
    boxes = [
        (0, 0, width, height), (-5, -9, 3, 4), (width - 2, height - 2, width + 9, height + 7),
        (width // 2, height // 2, width // 2, height // 2),
    ]  # fmt: skip
    found = detections(*boxes[:1], size=size)
    found["boxes"] = torch.tensor(boxes, dtype=torch.float32)
    found["labels"] = torch.tensor([2, 1, 2, 1])
    found["scores"] = torch.rand(4)
    found["masks"] = found["masks"].repeat(4, 1, 1, 1)
    drawn = draw_detections(image, found, NAMES)
    factor = enlargement(image)
    assert drawn.size == (factor * width, factor * height)
    assert max(drawn.size) >= 256
    assert (factor == 1) == (max(size) >= 256)


def test_a_name_stays_inside_and_is_black_on_its_color() -> None:
    image = torch.zeros(3, 200, 300, dtype=torch.uint8)
    found = detections((250, 0, 299, 60), size=(200, 300))
    del found["masks"]
    pixels = np.asarray(draw_detections(image, found, NAMES))
    label = (pixels == object_color(0)).all(2)
    rows, columns = np.nonzero(label)
    assert columns.min() < 246, "it begins left of the box, to end inside the image"
    assert label.sum() > 300
    # Black letters in it.
    patch = pixels[rows.min() + 1 : rows.min() + 13, columns.min() + 1 : columns.min() + 50]
    assert (patch.max(2) < 100).sum() > 30


def test_colors_differ_and_carry_black_letters() -> None:
    colors = [object_color(n) for n in range(300)]
    assert len(set(colors)) == 300
    for red, green, blue in colors:
        luminance = np.dot((0.2126, 0.7152, 0.0722), (np.array([red, green, blue]) / 255) ** 2.2)
        assert (luminance + 0.05) / 0.05 > 4.5  # WCAG 2, AA
    for first, second in itertools.pairwise(colors):
        assert np.abs(np.array(first) - second).sum() > 100


def test_a_caption_stands_above() -> None:
    image = Image.new("RGB", (320, 200), (10, 200, 30))
    captioned = write_caption(image, "epoch 3, box AP 41.2")
    strip = captioned.height - 200
    assert strip > 10
    assert np.array_equal(np.asarray(captioned)[strip:], np.asarray(image))
    assert (np.asarray(captioned)[:strip] > 200).any()
