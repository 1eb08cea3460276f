"""A folder of small photographs: JPEGs of mixed sizes, two classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def draw_photographs(root: Path, splits: Sequence[str] = ("train", "test"), side: int = 0) -> Path:
    """Write 12 images of each class in train, and 5 in each other split.

    Args:
        root: of the folder.
        splits: train, val, test.
        side: of all images, square; 0 for sides of 70 to 190 pixels.
    """
    chance = np.random.default_rng(0)
    for split in splits:
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(12 if split == "train" else 5):
                shape = (side, side) if side else tuple(chance.integers(70, 190, 2))
                pixels = chance.integers(0, 150, (*shape, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root
