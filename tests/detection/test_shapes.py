"""The drawn shapes: the same each time, and annotated as they are seen."""

import json
from pathlib import Path

import numpy as np
import pytest

from ecanet.detection import shapes
from ecanet.detection.dataset import CocoFolder, data_root


def test_masks_and_boxes_are_of_what_is_seen() -> None:
    overlaps = 0
    labels = set()
    for number in range(30):
        pixels, objects = shapes.draw_image(96, np.random.default_rng(number))
        assert pixels.shape == (96, 96, 3)
        seen = sum(mask.astype(int) for _, mask in objects)
        assert np.max(seen) == 1  # a pixel belongs to one object
        for label, mask in objects:
            labels.add(label)
            outside = pixels[~(np.asarray(seen) > 0)].astype(float).mean(0)
            assert np.abs(pixels[mask].astype(float).mean(0) - outside).max() > 5
            down, right = np.nonzero(mask)
            overlaps += mask.sum() < 0.55 * (np.ptp(down) + 1) * (np.ptp(right) + 1)
    assert labels == {1, 2, 3, 4}
    assert overlaps


def test_the_same_seed_draws_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        shapes.draw_split(tmp_path / name, "train", 5)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    shapes.draw_split(tmp_path / "other", "val", 5)
    one, other = "one/train/000001.png", "other/val/000001.png"
    assert (tmp_path / other).read_bytes() != (tmp_path / one).read_bytes()


def test_they_are_drawn_once_and_read_as_coco(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "COUNTS", {"train": 4, "val": 2})
    root = data_root("shapes")
    stamp = (root / "train/000001.png").stat().st_mtime_ns
    assert data_root("shapes") == root
    assert (root / "train/000001.png").stat().st_mtime_ns == stamp
    data = CocoFolder(root, "train")
    assert data.class_names == list(shapes.SHAPES)
    assert len(data) == 4
    content = json.loads((root / "annotations/instances_train.json").read_text())
    for index in range(4):
        target = data.target(index)
        for mask, box, area in zip(target["masks"], target["boxes"], target["area"], strict=True):
            assert mask.sum() == area
            left, top, right, bottom = map(int, box)
            assert mask[top:bottom, left:right].sum() == area
            assert mask[top, left:right].any()
            assert mask[top:bottom, right - 1].any()
    assert len(content["annotations"]) == sum(len(data.objects[i]) for i in range(4))
    assert not [p for p in root.parent.iterdir() if p.name.startswith(".shapes")]


def test_a_drawing_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shapes, "draw_split", fails)
    with pytest.raises(OSError, match="No space"):
        data_root("shapes")
    folder = shapes.cache_folder()
    assert [p.name for p in folder.iterdir()] == ["shapes-1.lock"]
