"""A drawn data set for LibreYOLO: bright squares of two classes on noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Return the YAML of 8 images for training, 4 for validation and 4 for the test."""
    root, random = tmp_path / "squares", np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            image = random.integers(0, 60, (96, 128, 3), dtype=np.uint8)
            x, y, kind = random.integers(0, 80), random.integers(0, 48), i % 2
            image[y : y + 48, x : x + 48, kind] = 230
            Image.fromarray(image).save(root / "images" / split / f"{i}.png")
            center = f"{(x + 24) / 128} {(y + 24) / 96}"
            label = f"{kind} {center} {48 / 128} {48 / 96}\n"
            (root / "labels" / split / f"{i}.txt").write_text(label)
    splits = {split: f"images/{split}" for split in ("train", "val", "test")}
    file = root / "squares.yaml"
    file.write_text(yaml.safe_dump({**splits, "names": ["red", "green"]}))
    return file
