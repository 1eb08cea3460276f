"""Folders in COCO's format: what is read, and each thing that can be wrong with one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.news import news
from PIL import Image

from ecanet.detection.dataset import CocoFolder
from ecanet.errors import UserError

Change = Callable[[dict[str, Any]], Any]


def content() -> dict[str, Any]:
    """Two images of 20 x 10; categories 3 and 7; a polygon, both kinds of run lengths, a crowd."""
    square = [2, 2, 8, 2, 8, 6, 2, 6]
    return {
        "images": [
            {"id": 9, "file_name": "b.png", "width": 20, "height": 10},
            {"id": 4, "file_name": "a.png", "width": 20, "height": 10},
        ],
        "annotations": [
            {
                "id": 1, "image_id": 4, "category_id": 7, "iscrowd": 0, "area": 24.0,
                "bbox": [2, 2, 6, 4], "segmentation": [square],
            },
            {
                "id": 2, "image_id": 4, "category_id": 3, "iscrowd": 1, "area": 30.0,
                "bbox": [3, 0, 3, 10], "segmentation": {"size": [10, 20], "counts": [30, 30, 140]},
            },
            {
                "id": 3, "image_id": 4, "category_id": 3, "iscrowd": 0, "area": 30.0,
                # The same run lengths, compressed: 30, 30, and 140 - 30 as a difference of two back.
                "bbox": [3, 0, 3, 10], "segmentation": {"size": [10, 20], "counts": "n0n0\\4"},
            },
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "train2017").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png")):
        pixels = np.full((10, 20, 3), 40 + 100 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "train2017" / name)
    write(root, content())
    return root


def write(root: Path, annotations: Any) -> Path:
    file = root / "annotations/instances_train2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(annotations))
    return file


def test_images_go_by_id_and_labels_by_category(folder: Path) -> None:
    data = CocoFolder(folder, "train")
    assert (data.class_names, data.category_ids) == (["cat", "dog"], [3, 7])
    assert [image["id"] for image in data.images] == [4, 9]
    image, target = data[0]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 10, 20)
    assert image.unique().tolist() == [40]
    assert target["labels"].tolist() == [2, 1, 1]
    assert target["iscrowd"].tolist() == [False, True, False]
    assert target["boxes"].tolist() == [[2, 2, 8, 6], [3, 0, 6, 10], [3, 0, 6, 10]]
    masks = target["masks"]
    assert masks.shape == (3, 10, 20)
    assert masks[0, 2:6, 2:8].sum() == masks[0].sum() == 24
    assert masks[1, :, 3:6].sum() == masks[1].sum() == 30
    assert torch.equal(masks[1], masks[2])
    _, empty = data[1]
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 10, 20)
    assert data.annotations["annotations"] == content()["annotations"]


def test_empty_images_and_limits(folder: Path) -> None:
    with news() as said:
        data = CocoFolder(folder, "train", keep_empty=False)
    assert [image["id"] for image in data.images] == [4]
    assert "1 images without objects are skipped" in said[0]
    assert len(CocoFolder(folder, "train", limit=1)) == 1
    annotations = content()
    annotations["annotations"] = annotations["annotations"][1:2]  # a crowd alone
    write(folder, annotations)
    with pytest.raises(UserError, match="names no image with an object"):
        CocoFolder(folder, "train", keep_empty=False)


def test_boxes_without_area_are_left_out_and_told(folder: Path) -> None:
    annotations = content()
    annotations["annotations"] += [
        {"id": 10, "image_id": 9, "category_id": 3, "bbox": [5, 5, 0, 3], "segmentation": []},
        {"id": 11, "image_id": 9, "category_id": 3, "bbox": [25, 5, 4, 3], "segmentation": []},
        {"id": 12, "image_id": 9, "category_id": 3, "bbox": [15, 5, 9, 3],
         "segmentation": [[15, 5, 24, 5, 24, 8]]},
        {"id": 13, "image_id": 9, "category_id": 3, "bbox": [1, 1, 3, 3], "segmentation": [[1, 1, 3, 3]]},
    ]  # fmt: skip
    write(folder, annotations)
    with news() as said:
        data = CocoFolder(folder, "train")
    assert "4 areas missing, computed from the box (first: " in said[0]
    assert "1 polygon with fewer than three corners, skipped" in said[1]
    assert "3 objects without area, skipped (first: annotation 10)" in said[2]
    assert "1 object with a box more than a pixel beyond the image, clipped" in said[3]
    assert len(said) == 4
    assert data[1][1]["boxes"].tolist() == [[15, 5, 20, 8]]
    assert [a["id"] for a in data.annotations["annotations"]] == [1, 2, 3, 12]


def test_other_layouts(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "train2017").rename(folder / "images/train2017")
    assert len(CocoFolder(folder, "train2017")) == 2
    beside = folder / "valid"
    (folder / "images/train2017").rename(beside)
    (folder / "annotations/instances_train2017.json").rename(beside / "_annotations.coco.json")
    assert len(CocoFolder(folder, "val")) == 2


def no(part: str, key: str) -> Change:
    return lambda c: c[part][0].pop(key)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["images"].append({"id": 1, "file_name": "c.png", "width": 1, "height": 1}),
         r"names 1 of 3 images that are not in .*train2017: c\.png"),
        (lambda c: c["annotations"][0].update(image_id=77), "annotation 1 is for image 77"),
        (lambda c: c["annotations"][0].update(category_id=5), "annotation 1 is for category 5"),
        (lambda c: c["images"][0].update(id=4), "two of its images share an id"),
        (lambda c: c.pop("categories"), "has no list of categories"),
        (lambda c: c.update(categories=[]), "lists no categories"),
        (lambda c: c.update(images=[], annotations=[]), "names no image"),
        (no("annotations", "bbox"), "an entry of annotations lacks bbox"),
        (no("images", "file_name"), "an entry of images lacks file_name"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(folder: Path, change: Change, says: str) -> None:
    annotations = content()
    change(annotations)
    write(folder, annotations)
    with pytest.raises(UserError, match=says) as error:
        list(map(CocoFolder(folder, "train").__getitem__, range(2)))
    assert "\n" not in str(error.value)


def test_a_file_cut_in_half_and_a_picture_that_is_none(folder: Path, tmp_path: Path) -> None:
    (folder / "train2017/a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png cannot be decoded: not an image"):
        CocoFolder(folder, "train")[0]
    file = write(folder, content())
    file.write_text(file.read_text()[:300])
    with pytest.raises(UserError, match="is not complete JSON"):
        CocoFolder(folder, "train")
    with pytest.raises(UserError, match="has no annotations of val"):
        CocoFolder(folder, "val")
    with pytest.raises(UserError, match="there is no folder"):
        CocoFolder(tmp_path / "nowhere", "train")
    for year in ("2014", "2017"):
        (folder / f"annotations/instances_val{year}.json").write_text("{}")
    with pytest.raises(UserError, match="choose one of val2014, val2017"):
        CocoFolder(folder, "val")


def test_cocos_own_images(real_data: Path) -> None:
    data = CocoFolder(real_data / "coco128", "train")
    assert len(data) == 128
    assert len(data.class_names) == 80
    crowds = 0
    for index in range(0, 128, 16):
        image, target = data[index]
        crowds += int(target["iscrowd"].sum())
        assert target["masks"].shape[1:] == image.shape[1:]
        for mask, box in zip(target["masks"], target["boxes"], strict=True):
            down, right = torch.nonzero(mask, as_tuple=True)
            inner = torch.tensor([right.min(), down.min(), right.max() + 1, down.max() + 1])
            assert (inner - box).abs().max() < 3
