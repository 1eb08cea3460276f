"""Real COCO images as Ultralytics reads them."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

VERSIONS = [
    "yolov5n.yaml", "yolov8n.yaml", "yolo11n.yaml", "yolo12n.yaml", "yolo26n.yaml",
    "yolo11n-seg.yaml", "yolo26n-seg.yaml", "yolo11n-cls.yaml", "rtdetr-l.yaml",
]  # fmt: skip


def open_yolo(name: str):
    """Return Ultralytics' object for a YAML or a file of weights."""
    from ultralytics import RTDETR, YOLO

    return (RTDETR if name.startswith("rtdetr") else YOLO)(name)


def coco_as_yolo(source: Path, root: Path, train: int = 16, val: int = 16, test: int = 0) -> Path:
    """Write a data set of real images with boxes and masks; return its YAML.

    Args:
        source: coco128.
        root: of what is written, which is made.
        train: number of images, the first ones.
        val: number of images that follow them; 0 for the same images.
        test: number of images that follow those.
    """
    from ultralytics.data.converter import convert_coco

    annotations = source / "annotations" / "instances_train2017.json"
    table = json.loads(annotations.read_text())
    convert_coco(str(annotations.parent), str(root), use_segments=True)
    images = sorted(table["images"], key=lambda image: image["id"])
    lists, start = {}, 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        chosen, start = images[start : start + count], start + count
        paths = [root / "images" / "train2017" / image["file_name"] for image in chosen]
        for path in paths:
            path.parent.mkdir(exist_ok=True, parents=True)
            path.symlink_to(source / "train2017" / path.name)
        lists[split] = paths or (lists["train"] if split == "val" else [])
    for split, paths in lists.items():
        (root / f"{split}.txt").write_text("".join(f"{path}\n" for path in paths))
    content = {"path": str(root), "train": "train.txt", "val": "val.txt", "names": names()}
    if test:
        content["test"] = "test.txt"
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def names() -> dict[int, str]:
    """Return COCO's 80 classes, as Ultralytics counts them."""
    import ultralytics

    file = Path(ultralytics.__file__).parent / "cfg" / "datasets" / "coco.yaml"
    return yaml.safe_load(file.read_text())["names"]


def coco_as_classes(source: Path, root: Path, count: int = 8) -> Path:
    """Write a folder for classification, of images with and without people; return it."""
    table = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    people = {a["image_id"] for a in table["annotations"] if a["category_id"] == 1}
    for name in ("person", "other"):
        images = [i for i in table["images"] if (i["id"] in people) == (name == "person")]
        for split in ("train", "val"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in images[:count]:
                (folder / image["file_name"]).symlink_to(source / "train2017" / image["file_name"])
    return root
