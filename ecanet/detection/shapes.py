"""Images of overlapping shapes with boxes and masks: a data set without a download.

Circles, squares, triangles and rings of several sizes and colors on a textured background. They occlude
each other, and the masks are of the visible parts. The same seed gives the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from PIL import Image

from ecanet.data.cache import cache_folder
from ecanet.detection.evaluation import encode_masks
from ecanet.files import temporary_folder, write_json

SHAPES = ("circle", "square", "triangle", "ring")
SIDE = 128
"""Pixels of an image."""
COUNTS = {"train": 1000, "val": 200}
"""Images of each split."""

# Part of the folder's name: to be raised whenever the images change.
_VERSION = 1
_RADII = (7.0, 28.0)
_MAX_OBJECTS = 5
# No object is covered so far that less than this share stays visible.
_VISIBLE = 0.5


def shapes_folder() -> Path:
    """Return the folder of the shapes in COCO's format; draw it in ecanet's cache if missing.

    Raises:
        UserError: faster-coco-eval is not installed.
        OSError: the disk is full; nothing half-written is left.
    """
    folder = cache_folder() / f"shapes-{_VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with temporary_folder(folder.parent) as drawn:
                for split, count in COUNTS.items():
                    draw_split(drawn, split, count)
                drawn.rename(folder)
    return folder


def draw_split(root: Path, split: str, count: int, side: int = SIDE, seed: int = 0) -> None:
    """Write ``count`` images of ``side`` pixels and their annotations in COCO's format.

    Args:
        root: gets ``SPLIT/`` with the images, and ``annotations/instances_SPLIT.json``.
        split: name, which is part of the seed.
        seed: of everything that is drawn.
    """
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(SHAPES, 1)],
    }
    (root / split).mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        pixels, objects = draw_image(side, np.random.default_rng([seed, *split.encode(), number]))
        name = f"{number:06d}.png"
        Image.fromarray(pixels).save(root / split / name)
        image = {"id": number, "file_name": name, "width": side, "height": side}
        content["images"].append(image)
        for label, mask in objects:
            entry = {"image_id": number, "category_id": label, "iscrowd": 0, **_outline(mask)}
            content["annotations"].append({"id": len(content["annotations"]) + 1, **entry})
    write_json(root / "annotations" / f"instances_{split}.json", content)


def draw_image(
    side: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one image.

    Returns:
        uint8 (side, side, 3), and for each object its label (1 is the first of :data:`SHAPES`) and
        the boolean mask (side, side) of its visible part.
    """
    pixels = _background(side, rng)
    objects: list[tuple[int, np.ndarray]] = []
    whole: list[int] = []
    for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
        label = int(rng.integers(len(SHAPES)))
        mask = _mask(SHAPES[label], side, rng)
        left = [seen & ~mask for _, seen in objects]
        if any(seen.sum() < _VISIBLE * area for seen, area in zip(left, whole, strict=True)):
            continue
        objects = [(old, seen) for (old, _), seen in zip(objects, left, strict=True)]
        objects.append((label + 1, mask))
        whole.append(int(mask.sum()))
        _paint(pixels, mask, rng)
    noise = rng.normal(0, 6, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8), objects


def _background(side: int, rng: np.random.Generator) -> np.ndarray:
    """A color with patches of light and color at two scales."""
    pixels = np.broadcast_to(rng.uniform(40, 215, 3), (side, side, 3)).copy()
    for cells, strength in ((4, 30), (16, 15)):
        patches = rng.normal(0, strength, (cells, cells, 3)).clip(-80, 80)
        small = Image.fromarray((patches + 128).astype(np.uint8))
        pixels += np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), float) - 128
    return pixels


def _mask(shape: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """The pixels of a shape of random size, place and rotation, entirely inside the image."""
    radius = np.exp(rng.uniform(*np.log(_RADII))) * side / SIDE
    x, y = rng.uniform(radius, side - radius, 2)
    turn = rng.uniform(0, 2 * np.pi)
    down, right = np.mgrid[:side, :side] + 0.5
    u = (right - x) * np.cos(turn) + (down - y) * np.sin(turn)
    v = (down - y) * np.cos(turn) - (right - x) * np.sin(turn)
    distance = np.hypot(u, v)
    if shape == "circle":
        return distance < radius
    if shape == "ring":
        return (distance < radius) & (distance > 0.55 * radius)
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < radius / np.sqrt(2)
    # An equilateral triangle: inside of three lines at half the radius from its center.
    angles = np.arange(3) * 2 * np.pi / 3
    return np.max([u * np.cos(a) + v * np.sin(a) for a in angles], axis=0) < radius / 2


def _paint(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Fill a shape with a color distinct from what it covers, lighter to one side."""
    covered = pixels[mask].mean(0)
    color = rng.uniform(0, 255, 3)
    while np.abs(color - covered).max() < 60:
        color = rng.uniform(0, 255, 3)
    side = len(pixels)
    slope = rng.uniform(-25, 25, 2) / side
    down, right = np.nonzero(mask)
    shade = (down - down.mean()) * slope[0] + (right - right.mean()) * slope[1]
    pixels[mask] = color + shade[:, None]


def _outline(mask: np.ndarray) -> dict[str, Any]:
    """Return COCO's run lengths, box and area of a mask."""
    down, right = np.nonzero(mask)
    left, top = int(right.min()), int(down.min())
    return {
        "segmentation": encode_masks(torch.from_numpy(mask)[None, None])[0],
        "bbox": [left, top, int(right.max()) + 1 - left, int(down.max()) + 1 - top],
        "area": int(mask.sum()),
    }
