"""Images with objects in COCO's format: read, checked, and given out one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ecanet.data.decode import decode_image, read_file
from ecanet.detection.evaluation import mask_library
from ecanet.detection.shapes import shapes_folder
from ecanet.errors import UserError

# The fewest numbers of a polygon: three corners.
_TRIANGLE = 6


def data_root(data: str) -> Path:
    """Return the folder that ``data`` stands for; that of the name ``shapes`` is drawn when missing."""
    return shapes_folder() if data == "shapes" else Path(data).expanduser()


@dataclass(frozen=True)
class _Object:
    """An annotation in the terms of a detector."""

    box: tuple[float, float, float, float]
    label: int
    area: float
    is_crowd: bool
    segmentation: Any


class CocoFolder(Dataset[tuple[Tensor, dict[str, Any]]]):
    """One split of a folder in COCO's format, sorted by the images' ids.

    ``root/annotations/instances_SPLIT*.json`` beside ``root/SPLIT*/`` (or ``root/images/``), as COCO
    itself has it, or ``root/SPLIT/_annotations.coco.json`` beside the images. Ids of categories may have
    holes: labels go from 1 on in the order of the ids. Masks may be polygons and run lengths, mixed.

    Args:
        root: folder that holds all of it.
        split: ``train``, ``val`` or the full name: ``val2017``.
        limit: take the first images alone.
        keep_empty: keep images without an object.
        say: called with each line of news: what was left out.

    Raises:
        UserError: files are missing, are not whole, or contradict each other.
    """

    annotations: dict[str, Any]
    """COCO's dict of these images: ``images``, ``annotations`` (those with an area), ``categories``."""

    def __init__(
        self,
        root: Path,
        split: str = "train",
        *,
        limit: int | None = None,
        keep_empty: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.file, folders = _find(root, split)
        content = _read(self.file)
        images = sorted(content["images"], key=lambda image: image["id"])[:limit]
        self.category_ids: list[int] = sorted(c["id"] for c in content["categories"])
        names = {category["id"]: category["name"] for category in content["categories"]}
        self.class_names: list[str] = [names[number] for number in self.category_ids]
        kept, objects = self._objects(content, {image["id"]: image for image in images}, say)
        if not keep_empty:
            has_object = {number for number, found in objects.items() if _any_single(found)}
            images = [image for image in images if image["id"] in has_object]
        dropped = len(objects) - len(images)
        if dropped:
            say(f"{self.file}: {dropped} images without an object are left out")
        if not images:
            raise UserError(
                f"{self.file} names no image" + ("" if keep_empty else " with an object")
            )
        self.folder = _folder_of(images, folders, self.file)
        self.images: list[dict[str, Any]] = images
        self.objects = [objects[image["id"]] for image in images]
        self.annotations = {
            "images": images,
            "annotations": [a for a in kept if a["image_id"] in {i["id"] for i in images}],
            "categories": content["categories"],
        }
        self.has_masks = all(o.segmentation for found in self.objects for o in found)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Tensor:
        """Return an image as uint8 RGB (3, H, W).

        Raises:
            UserError: it cannot be read, or has not the size that its annotations have.
        """
        path = self.folder / self.images[index]["file_name"]
        try:
            image = decode_image(read_file(path))
        except ValueError as error:
            raise UserError(f"{path} cannot be decoded: {error}. Repair or remove it.") from None
        width, height = self.images[index]["width"], self.images[index]["height"]
        if image.shape[1:] != (height, width):
            raise UserError(
                f"{path} has {image.shape[2]} x {image.shape[1]} pixels, and {self.file.name} says "
                f"{width} x {height}: is it turned, or from elsewhere?"
            )
        return image

    def target(self, index: int, masks: bool = True) -> dict[str, Any]:
        """Return the objects of an image, crowds too.

        Returns:
            ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` int64 (N,), ``iscrowd``
            bool (N,), ``area`` float32 (N,), ``image_id``, and uint8 ``masks`` (N, H, W) if wanted.
        """
        image, objects = self.images[index], self.objects[index]
        target = {
            "boxes": torch.tensor([o.box for o in objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([o.label for o in objects], dtype=torch.int64),
            "iscrowd": torch.tensor([o.is_crowd for o in objects], dtype=torch.bool),
            "area": torch.tensor([o.area for o in objects], dtype=torch.float32),
            "image_id": image["id"],
        }
        if masks:
            size = (image["height"], image["width"])
            drawn = [torch.from_numpy(_decode(o.segmentation, *size)) for o in objects]
            target["masks"] = torch.stack(drawn) if drawn else torch.zeros(0, *size).byte()
        return target

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return self.image(index), self.target(index, masks=self.has_masks)

    def _objects(
        self,
        content: dict[str, Any],
        images: dict[int, dict[str, Any]],
        say: Callable[[str], None],
    ) -> tuple[list[dict[str, Any]], dict[int, list[_Object]]]:
        """Return the annotations of ``images`` with an area, and the objects of each image."""
        labels = {number: label for label, number in enumerate(self.category_ids, 1)}
        known = {image["id"] for image in content["images"]}
        kept: list[dict[str, Any]] = []
        objects: dict[int, list[_Object]] = {number: [] for number in images}
        without_area = []
        for annotation in content["annotations"]:
            number = annotation["image_id"]
            if number not in known:
                raise UserError(
                    f"{self.file}: annotation {annotation.get('id')} is of image {number}, which the "
                    "file does not list"
                )
            if annotation["category_id"] not in labels:
                raise UserError(
                    f"{self.file}: annotation {annotation.get('id')} is of category "
                    f"{annotation['category_id']}, which the file does not list"
                )
            if number not in images:
                continue
            try:
                box = _clipped(annotation["bbox"], images[number])
            except (TypeError, ValueError):
                raise UserError(
                    f"{self.file}: annotation {annotation.get('id')} has the box {annotation['bbox']}, "
                    "and not four numbers"
                ) from None
            segmentation = _checked_mask(annotation, images[number], self.file)
            if box is None or (annotation.get("segmentation") and not segmentation):
                without_area.append(annotation.get("id"))
                continue
            kept.append(annotation)
            objects[number].append(
                _Object(
                    box,
                    labels[annotation["category_id"]],
                    float(annotation.get("area", (box[2] - box[0]) * (box[3] - box[1]))),
                    bool(annotation.get("iscrowd", 0)),
                    segmentation,
                )
            )
        if without_area:
            say(
                f"{self.file}: {len(without_area)} objects have no area and are left out, the first "
                f"is annotation {without_area[0]}"
            )
        return kept, objects


def _any_single(objects: list[_Object]) -> bool:
    return any(not o.is_crowd for o in objects)


def _find(root: Path, split: str) -> tuple[Path, list[Path]]:
    """Return the annotation file of a split, and the folders where its images may be."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: name one in COCO's layout, or the data shapes")
    places = root / "annotations"
    exact = places / f"instances_{split}.json"
    found = [exact] if exact.is_file() else sorted(places.glob(f"instances_{split}[0-9]*.json"))
    if len(found) > 1:
        names = ", ".join(path.stem.removeprefix("instances_") for path in found)
        raise UserError(f"{places} has several files for {split}: name one of {names}")
    if found:
        name = found[0].stem.removeprefix("instances_")
        return found[0], [root / name, root / split, root / "images" / name, root / "images", root]
    for name in (split, "valid" if split == "val" else split):
        beside = root / name / "_annotations.coco.json"
        if beside.is_file():
            return beside, [beside.parent]
    raise UserError(
        f"{root} has no annotations of {split}: neither annotations/instances_{split}*.json nor "
        f"{split}/_annotations.coco.json"
    )


def _read(file: Path) -> dict[str, Any]:
    """Read COCO's JSON and check its form."""
    try:
        content = json.loads(read_file(file))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no whole JSON ({error}): copy or write it again") from None
    needed = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for part, names in needed.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{file} is not in COCO's format: it has no list of {part}")
        for entry in content[part]:
            lacking = [n for n in names if not isinstance(entry, dict) or n not in entry]
            if lacking:
                raise UserError(
                    f"{file}: an entry of {part} lacks {lacking[0]}: {str(entry)[:100]}"
                )
    if not content["categories"]:
        raise UserError(f"{file} lists no categories")
    for part in ("images", "categories"):
        numbers = [entry["id"] for entry in content[part]]
        if len(set(numbers)) < len(numbers):
            raise UserError(f"{file}: two of its {part} have one id")
    return content


def _folder_of(images: list[dict[str, Any]], folders: list[Path], file: Path) -> Path:
    """Return the folder that holds the images; all of them must be there."""
    names = [image["file_name"] for image in images]
    lacking = {folder: [n for n in names if not (folder / n).is_file()] for folder in folders}
    best = min(folders, key=lambda folder: len(lacking[folder]))
    if lacking[best]:
        raise UserError(
            f"{file} names {len(lacking[best])} of {len(names)} images that are not in {best}: "
            f"{', '.join(lacking[best][:3])}. Add them, or take them out of the file."
        )
    return best


def _clipped(box: Any, image: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Return COCO's x, y, width, height as corners inside the image, None if no area is left."""
    x, y, width, height = map(float, box)
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, image["width"]), min(y + height, image["height"])
    if not (right > left and bottom > top and math.isfinite(x + y + width + height)):
        return None
    return left, top, right, bottom


def _checked_mask(annotation: dict[str, Any], image: dict[str, Any], file: Path) -> Any:
    """Return the polygons with an area, or the run lengths; None if there is neither."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        size = [image["height"], image["width"]]
        if "counts" not in segmentation or list(segmentation.get("size", [])) != size:
            raise UserError(
                f"{file}: the run lengths of annotation {annotation.get('id')} are not of an image of "
                f"{image['width']} x {image['height']}"
            )
        return segmentation
    return [polygon for polygon in segmentation or [] if len(polygon) >= _TRIANGLE] or None


def _decode(segmentation: Any, height: int, width: int) -> Any:
    """Return COCO's polygons or run lengths as uint8 (H, W)."""
    masks = mask_library()
    if isinstance(segmentation, list):
        return masks.decode(masks.merge(masks.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        segmentation = masks.frPyObjects(segmentation, height, width)
    return masks.decode(segmentation)
