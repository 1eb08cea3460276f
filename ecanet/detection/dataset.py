"""Images with objects in COCO's format: reads, checks and serves them."""

from __future__ import annotations

import logging
import operator
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ecanet.data.decode import UPRIGHT, decode_image, image_header, read_file
from ecanet.detection.coco import CocoImage, CocoObject, CocoReader, Notes
from ecanet.detection.evaluation import mask_library
from ecanet.detection.shapes import shapes_folder
from ecanet.errors import UserError, first_of
from ecanet.inputs import check_coco

log = logging.getLogger(__name__)

# Files that a message names one by one.
_NAMED = 100
# Of all masks of one image, which take a byte per pixel and object.
_MAX_MASK_BYTES = 8 * 2**30


def data_root(data: str) -> Path:
    """Return the folder ``data``; the shapes are drawn when missing if that is its name."""
    return shapes_folder() if data == "shapes" else Path(data).expanduser()


class CocoFolder(Dataset[tuple[Tensor, dict[str, Any]]]):
    """One split of a folder in COCO's format, sorted by the images' ids.

    It is ``root/annotations/instances_SPLIT*.json`` with ``root/SPLIT*/`` (or ``root/images/``), as COCO
    itself, or ``root/SPLIT/_annotations.coco.json`` among the images. Category ids may have gaps: labels
    count from 1 in the order of the ids. Masks may be polygons or run lengths, also mixed.

    Args:
        root: the folder.
        split: ``train``, ``val`` or the full name: ``val2017``.
        limit: use only the first images.
        keep_empty: keep images without objects.
        keep_classes: names of categories that are classes even if they have no objects and are the
            supercategory of others.
        ignore_exif: use the images as they are stored, without applying their EXIF orientation.

    Raises:
        UserError: files are missing, incomplete, or contradict each other.
    """

    annotations: dict[str, Any]
    """COCO's dict of these images: ``images``, ``annotations`` (those with an area), ``categories``."""
    objects: list[list[CocoObject]]
    """The annotations with an area, by image."""

    def __init__(
        self,
        root: Path,
        split: str = "train",
        *,
        limit: int | None = None,
        keep_empty: bool = True,
        keep_classes: Collection[str] = (),
        ignore_exif: bool = False,
    ) -> None:
        self.file, folders = _find(root, split)
        notes = Notes(self.file)
        reader = CocoReader(self.file, notes)
        images = reader.images()
        categories = reader.categories(keep_classes)
        self.category_ids, self.class_names = list(categories), list(categories.values())
        objects = reader.objects({image.id for image in images}, categories)
        images = images[:limit]
        count = len(images)
        of_image: dict[int, list[CocoObject]] = {image.id: [] for image in images}
        for one in objects:
            if one.image_id in of_image:
                of_image[one.image_id].append(one)
        if not keep_empty:
            images = [image for image in images if _any_single(of_image[image.id])]
        self.folder = _folder_of(images, folders, self.file)
        self._orientations: dict[str, int] = {}
        self._measure(images, ignore_exif, notes)
        for image in images:
            of_image[image.id] = self._with_area(image, of_image[image.id], notes)
        if not keep_empty:
            images = [image for image in images if _any_single(of_image[image.id])]
        if len(images) < count:
            log.info(f"{self.file}: {count - len(images)} images without objects are skipped")
        if not images:
            raise UserError(
                f"{self.file} names no image" + ("" if keep_empty else " with an object")
            )
        notes.report()
        self._label_of = {number: label for label, number in enumerate(self.category_ids, 1)}
        self.images: list[dict[str, Any]] = [vars(image) for image in images]
        self.objects = [of_image[image.id] for image in images]
        self.annotations = {
            "images": self.images,
            "annotations": [_as_coco(one) for found in self.objects for one in found],
            "categories": [{"id": number, "name": name} for number, name in categories.items()],
        }
        self.has_masks = all(one.segmentation for found in self.objects for one in found)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Tensor:
        """Return an image as uint8 RGB (3, H, W).

        Raises:
            UserError: it cannot be read, or its size is not that of its annotations.
        """
        name = self.images[index]["file_name"]
        path = self.folder / name
        try:
            image = decode_image(read_file(path))
        except ValueError as error:
            raise UserError(f"{path} cannot be decoded: {error}. Repair or remove it.") from None
        image = _as_stored(image, self._orientations.get(name, UPRIGHT))
        width, height = self.images[index]["width"], self.images[index]["height"]
        if image.shape[1:] != (height, width):
            raise UserError(
                f"{path} has {image.shape[2]} x {image.shape[1]} pixels, and {self.file.name} says "
                f"{width} x {height}: is it rotated, or a different image?"
            )
        return image

    def target(self, index: int, masks: bool = True) -> dict[str, Any]:
        """Return the objects of an image, including crowds.

        Returns:
            ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` int64 (N,), ``iscrowd``
            bool (N,), ``area`` float32 (N,), ``image_id``, and with ``masks`` uint8 ``masks`` (N, H, W).
        """
        image, objects = self.images[index], self.objects[index]
        boxes = [_clipped(o.bbox, image) for o in objects]
        labels = [self._label_of[o.category_id] for o in objects]
        target = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
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

    def check_masks(self) -> None:
        """Refuse data that Mask R-CNN cannot be trained on.

        Raises:
            UserError: an object has no mask, or those of one image would fill the memory.
        """
        if not self.has_masks:
            raise UserError(
                f"{self.file} has objects without a segmentation: train --detector faster_rcnn or "
                "retinanet, which need only boxes"
            )
        for image, objects in zip(self.images, self.objects, strict=True):
            if len(objects) * image["width"] * image["height"] > _MAX_MASK_BYTES:
                raise UserError(
                    f"{self.file}: the masks of the {len(objects)} objects of image {image['id']} "
                    f"({image['width']} x {image['height']}) need over {_MAX_MASK_BYTES >> 30} GB: "
                    "split it into smaller images, or train --detector faster_rcnn"
                )

    def _measure(self, images: list[CocoImage], ignore_exif: bool, notes: Notes) -> None:
        """Compare the images' sizes with those in the headers of their files; fill in missing ones."""
        paths = [self.folder / image.file_name for image in images]
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            warnings.simplefilter("ignore")  # about odd metadata
            headers = list(pool.map(image_header, paths))
        unreadable, turned, other = [], [], []
        for image, path, header in zip(images, paths, headers, strict=True):
            if isinstance(header, str):
                unreadable.append(f"{path} cannot be decoded: {header}. Repair or remove it.")
                continue
            stored, orientation = header[:2], header[2]
            upright = stored[::-1] if orientation >= 5 else stored
            size, swapped = (stored, upright) if ignore_exif else (upright, stored)
            if ignore_exif:
                self._orientations[image.file_name] = orientation
            if not image.width or not image.height:
                notes.add("image", "without width or height, read from the file", path.name)
                image.width, image.height = size
            if (image.width, image.height) == size:
                if orientation != UPRIGHT and stored == upright and not ignore_exif:
                    notes.add(
                        "image",
                        "rotated by EXIF without a change of size, annotations taken to match the "
                        "rotated image (--ignore-exif: the stored one)",
                        image.file_name,
                    )
            elif (image.width, image.height) == swapped:
                turned.append(image.file_name)
            else:
                other.append(
                    f"{path} has {size[0]} x {size[1]} pixels, and {self.file.name} says "
                    f"{image.width} x {image.height}: is it rotated, or a different image?"
                )
        if turned:
            which, advice = ("rotated", "leave out") if ignore_exif else ("stored", "give")
            raise UserError(
                f"{self.file}: EXIF rotates {len(turned)} of {len(images)} images, and their "
                f"annotations are for the {which} image: "
                f"{advice} --ignore-exif, or repair {first_of(turned, _NAMED)}"
            )
        for problems in (unreadable, other):
            if problems:
                more = f" ({len(problems) - 1} more like it)" if len(problems) > 1 else ""
                raise UserError(problems[0] + more)

    def _with_area(
        self, image: CocoImage, annotations: Sequence[CocoObject], notes: Notes
    ) -> list[CocoObject]:
        """Return the annotations whose boxes have an area inside the image."""
        size = [image.height, image.width]
        kept = []
        for annotation in annotations:
            mask, where = annotation.segmentation, f"annotation {annotation.id}"
            if isinstance(mask, dict) and mask["size"] != size:
                raise UserError(
                    f"{self.file}: the run lengths of {where} are not of an image of {image.width} x "
                    f"{image.height}"
                )
            left, top, right, bottom = box = _clipped(annotation.bbox, vars(image))
            if not (right > left and bottom > top) or mask == []:
                notes.add("object", "without area, skipped", where)
                continue
            if max(map(abs, map(operator.sub, box, _corners(annotation.bbox)))) > 1:
                notes.add("object", "with a box more than a pixel beyond the image, clipped", where)
            kept.append(annotation)
        return kept


def _any_single(objects: Sequence[CocoObject]) -> bool:
    return any(not o.is_crowd for o in objects)


def _find(root: Path, split: str) -> tuple[Path, list[Path]]:
    """Return the annotation file of a split, and the folders that may hold its images."""
    check_coco(root)
    places = root / "annotations"
    exact = places / f"instances_{split}.json"
    found = [exact] if exact.is_file() else sorted(places.glob(f"instances_{split}[0-9]*.json"))
    if len(found) > 1:
        names = ", ".join(path.stem.removeprefix("instances_") for path in found)
        raise UserError(f"{places} has several files for {split}: choose one of {names}")
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


def _folder_of(images: list[CocoImage], folders: list[Path], file: Path) -> Path:
    """Return the folder that holds all of the images."""
    names = [image.file_name for image in images]
    # os.path's: for a name of 10,000 letters, Path's raises.
    lacking = {f: [n for n in names if not os.path.isfile(f / n)] for f in folders}
    best = min(folders, key=lambda folder: len(lacking[folder]))
    if lacking[best]:
        raise UserError(
            f"{file} names {len(lacking[best])} of {len(names)} images that are not in {best}: "
            f"{', '.join(name[:200] for name in lacking[best][:3])}. Add them, or take them out of the file."
        )
    return best


def _as_stored(image: Tensor, orientation: int) -> Tensor:
    """Undo the EXIF ``orientation`` that was applied to an image (3, H, W)."""
    if orientation in (6, 8):
        return image.rot90(1 if orientation == 6 else -1, (1, 2))
    if orientation in (5, 7):
        image = image.transpose(1, 2)
    axes = {2: (2,), 3: (1, 2), 4: (1,), 7: (1, 2)}.get(orientation)
    return image.flip(axes) if axes else image


def _corners(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = map(float, bbox)
    return x, y, x + width, y + height


def _clipped(bbox: Sequence[float], image: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return COCO's x, y, width, height as corners inside the image."""
    left, top, right, bottom = _corners(bbox)
    return max(left, 0.0), max(top, 0.0), min(right, image["width"]), min(bottom, image["height"])


def _as_coco(annotation: CocoObject) -> dict[str, Any]:
    """Return an annotation as COCO's tools read it."""
    values = {**vars(annotation), "iscrowd": int(annotation.is_crowd)}
    del values["is_crowd"]
    if annotation.segmentation is None:
        del values["segmentation"]
    return values


def _decode(segmentation: Any, height: int, width: int) -> Any:
    """Return COCO's polygons or run lengths as uint8 (H, W)."""
    masks = mask_library()
    if isinstance(segmentation, list):
        return masks.decode(masks.merge(masks.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        segmentation = masks.frPyObjects(segmentation, height, width)
    return masks.decode(segmentation)
