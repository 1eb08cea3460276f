"""COCO's JSON, read once into checked values.

Tools that export it differ in what they write. Numbers written as text, missing areas, polygons without
their outer list and the like are read as what they mean, and each kind is counted and named in a line.
What has no certain meaning, or would take memory without bound, is refused in one line.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ecanet.data.decode import read_file
from ecanet.errors import UserError

# No image is as large, and rasterizing a polygon takes memory in proportion to its outline.
_LARGEST_PIXELS = 1_000_000
# The fewest numbers of a polygon: three corners.
_TRIANGLE = 6
# Ids are 64-bit integers in COCO's tools.
_LARGEST_ID = 2**63 - 1
_NUMBER = re.compile(r"\s*[-+]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][-+]?\d{1,2})?\s*", re.ASCII)
_INTEGER = re.compile(r"\s*[-+]?\d{1,20}\s*", re.ASCII)
_TRUTH = {"": False, "false": False, "no": False, "true": True, "yes": True}
_NEEDED = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


@dataclass
class CocoImage:
    """An image of the file."""

    id: int
    file_name: str
    """Path below the folder of the images."""
    width: int | None
    """Pixels; None where the file has none."""
    height: int | None


@dataclass
class CocoObject:
    """An annotation of the file."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    """Left, top, width, height in pixels, as they stand in the file: parts may be outside the image."""
    area: float
    """Square pixels."""
    is_crowd: bool
    segmentation: Any
    """Polygons with three corners or more, x and y by turns; or run lengths as ``{"size": [H, W],
    "counts": ...}``, a list of integers or compressed; or None. An empty list where no polygon has three
    corners."""


class Notes:
    """What was left out, computed or read otherwise than it is written: counted by kind."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, where: str) -> None:
        """Count one of ``kind``, a phrase with a verb that follows its number."""
        count, first = self._kinds.get(kind, (0, where))
        self._kinds[kind] = (count + 1, first)

    def say(self, say: Callable[[str], None]) -> None:
        """Say a line for each kind, and forget them."""
        for kind, (count, first) in self._kinds.items():
            say(f"{self.file}: {count} {kind}, the first is {first}")
        self._kinds = {}


class CocoReader:
    """Reads the parts of one annotation file.

    Args:
        file: COCO's JSON.
        notes: collects what was read otherwise than it is written.

    Raises:
        UserError: the file cannot be read or is not in COCO's format.
    """

    def __init__(self, file: Path, notes: Notes) -> None:
        self.file, self.notes = file, notes
        try:
            self._content = json.loads(read_file(file))
        # A damaged or forged file: cut short, not UTF-8, numbers of 10,000 digits, nested without end.
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file} is no whole JSON ({str(error)[:100]}): copy or write it again"
            ) from None
        for part, names in _NEEDED.items():
            content = self._content
            if not isinstance(content, dict) or not isinstance(content.get(part), list):
                raise UserError(f"{file} is not in COCO's format: it has no list of {part}")
            for entry in content[part]:
                lacking = [n for n in names if not isinstance(entry, dict) or n not in entry]
                if lacking:
                    raise UserError(
                        f"{file}: an entry of {part} lacks {lacking[0]}: {_short(entry)}"
                    )
        if not self._content["categories"]:
            raise UserError(f"{file} lists no categories")

    def images(self) -> list[CocoImage]:
        """Return the images by their ids.

        Raises:
            UserError: an id, name or size cannot be used, or two images have one id.
        """
        images = []
        for entry in self._content["images"]:
            number = self._id(entry["id"], "image")
            where = f"image {number}"
            images.append(
                CocoImage(
                    number,
                    self._file_name(entry["file_name"], where),
                    self._pixels(entry.get("width"), "width", where),
                    self._pixels(entry.get("height"), "height", where),
                )
            )
        self._check_ids([image.id for image in images], "images")
        return sorted(images, key=lambda image: image.id)

    def categories(self, keep: Collection[str] = ()) -> dict[int, str]:
        """Return the names of the categories by their ids, in the order of the ids.

        A category without an object that is the supercategory of others is left out: Roboflow writes one
        over all classes.

        Args:
            keep: names of categories that are not left out.

        Raises:
            UserError: an id or name cannot be used, or two categories have the same.
        """
        categories: dict[int, str] = {}
        parents: dict[int, Any] = {}
        for entry in self._content["categories"]:
            number = self._id(entry["id"], "category")
            name = entry["name"]
            if type(name) in (int, float):
                self.notes.add("category names are numbers and were read as text", repr(name))
                name = str(name)
            if not isinstance(name, str) or not name.strip():
                raise self._error(f"category {number} has the name {_short(name)}: give it one")
            if number in categories:
                raise self._error("two of its categories have one id")
            categories[number], parents[number] = name, entry.get("supercategory")
        of_name: dict[str, int] = {}
        for number, name in categories.items():
            other = of_name.setdefault(name, number)
            if other != number:
                raise self._error(
                    f"categories {other} and {number} are both named {_short(name)}: rename or merge "
                    "them"
                )
        used = {_plain(entry["category_id"]) for entry in self._content["annotations"]}
        above_others = {
            parent
            for number, parent in parents.items()
            if isinstance(parent, str) and parent != categories[number]
        }
        for name in above_others.intersection(of_name) - set(keep):
            if of_name[name] not in used:
                self.notes.add(
                    "categories without objects are the supercategory of others and are left out",
                    _short(name),
                )
                del categories[of_name[name]]
        return dict(sorted(categories.items()))

    def objects(self, images: Collection[int], categories: Collection[int]) -> list[CocoObject]:
        """Return the annotations.

        Args:
            images, categories: ids that the file lists.

        Raises:
            UserError: an annotation cannot be used.
        """
        return [
            self._object(entry, number, images, categories)
            for number, entry in enumerate(self._content["annotations"], 1)
        ]

    def _object(
        self,
        entry: dict[str, Any],
        position: int,
        images: Collection[int],
        categories: Collection[int],
    ) -> CocoObject:
        given = entry.get("id", position)
        # COCO's tools number annotations anew, and so do we: for messages any id will do.
        number = given if type(given) is int and abs(given) <= _LARGEST_ID else position
        where = f"annotation {_short(given)}"
        image = self._id(entry["image_id"], "image", where)
        if image not in images:
            raise self._error(f"{where} is of image {image}, which the file does not list")
        category = self._id(entry["category_id"], "category", where)
        if category not in categories:
            raise self._error(f"{where} is of category {category}, which the file does not list")
        bbox = self._box(entry["bbox"], where)
        return CocoObject(
            number,
            image,
            category,
            bbox,
            self._area(entry.get("area"), bbox, where),
            self._is_crowd(entry.get("iscrowd", 0), where),
            self._segmentation(entry.get("segmentation"), where),
        )

    def _error(self, message: str) -> UserError:
        return UserError(f"{self.file}: {message}")

    def _number(self, value: Any, where: str) -> float:
        """Return a number of up to 64 bits, also one written as text.

        Raises:
            ValueError: it is none.
        """
        if type(value) is str and _NUMBER.fullmatch(value):
            self.notes.add(
                "numbers are written as text and were read as numbers", f"one of {where}"
            )
            value = int(value) if _INTEGER.fullmatch(value) else float(value)
        if type(value) not in (int, float) or not abs(value) <= _LARGEST_ID:
            raise ValueError("no number")
        return value

    def _id(self, value: Any, what: str, where: str = "") -> int:
        try:
            number = self._number(value, where or f"{what} {_short(value)}")
            if number != int(number):
                raise ValueError("no id")
        except ValueError:
            of = f"{where} has" if where else "there is"
            raise self._error(
                f"{of} the {what} id {_short(value)}, and not a whole number"
            ) from None
        return int(number)

    def _check_ids(self, ids: list[int], part: str) -> None:
        if len(set(ids)) < len(ids):
            raise self._error(f"two of its {part} have one id")

    def _file_name(self, name: Any, where: str) -> str:
        if not isinstance(name, str) or not name or "\0" in name:
            raise self._error(f"{where} has the file_name {_short(name)}")
        parts = re.split(r"[/\\]", name)
        # An empty first part is the root, and a colon a drive of Windows.
        if ".." in parts or not parts[0] or re.fullmatch(r"[A-Za-z]:", parts[0]):
            raise self._error(
                f"{where} has the file_name {_short(name)}, which leaves the folder of the data: "
                "name files below it"
            )
        return name

    def _pixels(self, value: Any, name: str, where: str) -> int | None:
        if value is None or value == "":
            return None
        try:
            number = self._number(value, where)
            if number != int(number) or number > _LARGEST_PIXELS:
                raise ValueError("no size")
        except ValueError:
            raise self._error(
                f"{where} has the {name} {_short(value)}, and not a whole number of pixels"
            ) from None
        return int(number) if number > 0 else None

    def _box(self, value: Any, where: str) -> list[float]:
        try:
            if not isinstance(value, list) or len(value) != 4:
                raise ValueError("no box")
            box = [self._number(number, where) for number in value]
            if max(map(abs, box)) > _LARGEST_PIXELS:
                raise ValueError("too large")
        except ValueError:
            raise self._error(
                f"{where} has the box {_short(value)}, and not four numbers up to {_LARGEST_PIXELS:,}"
            ) from None
        return box

    def _area(self, value: Any, bbox: list[float], where: str) -> float:
        if value is not None and value != "":
            try:
                number = self._number(value, where)
            except ValueError:
                raise self._error(
                    f"{where} has the area {_short(value)}, and not a number"
                ) from None
            if number >= 0:
                return float(number)
        self.notes.add("areas are missing and were computed from the boxes", f"that of {where}")
        return float(bbox[2] * bbox[3])

    def _is_crowd(self, value: Any, where: str) -> bool:
        if type(value) in (bool, int) and value in (0, 1):
            return bool(value)
        if value is None:
            self.notes.add("iscrowd are null and were read as 0", f"that of {where}")
            return False
        if isinstance(value, str) and value.strip().lower() in _TRUTH:
            self.notes.add("iscrowd are text and were read as 0 or 1", f"that of {where}")
            return _TRUTH[value.strip().lower()]
        try:
            number = self._number(value, where)
            if number not in (0, 1):
                raise ValueError("no truth")
        except ValueError:
            raise self._error(f"{where} has the iscrowd {_short(value)}: write 0 or 1") from None
        return bool(number)

    # ---- segmentations

    def _segmentation(self, value: Any, where: str) -> Any:
        try:
            return self._outline(value, where)
        except ValueError:
            raise self._error(
                f"the segmentation of {where} is neither polygons nor run lengths: {_short(value)}"
            ) from None

    def _outline(self, value: Any, where: str) -> Any:
        if isinstance(value, str) and value.strip():
            self.notes.add("segmentations are JSON within text and were read", f"that of {where}")
            try:
                value = json.loads(value)
            except RecursionError:
                raise ValueError("nested without end") from None
        if value is None or value in ("", [], {}):
            return None
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            self.notes.add("run lengths are in a list and were taken out", f"those of {where}")
            value = value[0]
        if isinstance(value, dict):
            return self._run_lengths(value, where)
        if not isinstance(value, list):
            raise ValueError("no polygons")
        return self._polygons(value, where)

    def _polygons(self, value: list[Any], where: str) -> list[list[float]]:
        if not any(isinstance(part, (list, dict)) for part in value):
            self.notes.add(
                "segmentations are flat lists and were read as one polygon each", f"that of {where}"
            )
            value = [value]
        elif len(value) >= _TRIANGLE // 2 and _are_points(value):
            value = [value]
        polygons, longest = [], 0.0
        for polygon in value:
            if isinstance(polygon, list) and _are_points(polygon):
                self.notes.add(
                    "polygons are lists of points and were read as such", f"one of {where}"
                )
                polygon = [number for point in polygon for number in point]
            if not isinstance(polygon, list):
                raise ValueError("no polygon")
            numbers, bound = self._corners(polygon, where)
            longest += bound
            if len(numbers) >= _TRIANGLE:
                polygons.append(numbers)
            elif numbers:
                self.notes.add(
                    "polygons have fewer than three corners and are left out", f"one of {where}"
                )
        if longest > _LARGEST_PIXELS and sum(map(_perimeter, polygons)) > _LARGEST_PIXELS:
            raise self._error(f"{where} has polygons of outlines over {_LARGEST_PIXELS:,} pixels")
        return polygons

    def _corners(self, polygon: list[Any], where: str) -> tuple[list[float], float]:
        """Return the numbers of a polygon, and pixels that its outline cannot exceed."""
        numbers = polygon
        if not set(map(type, polygon)) <= {int, float}:
            numbers = [self._number(number, where) for number in polygon]
        if not numbers:
            return numbers, 0.0
        low, high = min(numbers), max(numbers)
        # Not a number compares as false, and can hide from min and max: it makes the sum one.
        if not (-_LARGEST_PIXELS <= low <= high <= _LARGEST_PIXELS and sum(numbers) < math.inf):
            raise self._error(
                f"{where} has a polygon with corners that are no numbers up to {_LARGEST_PIXELS:,}"
            )
        if len(numbers) % 2:
            raise self._error(
                f"{where} has a polygon of {len(numbers)} numbers, and x and y are two"
            )
        return numbers, (high - low) * len(numbers) / 2

    def _run_lengths(self, value: dict[str, Any], where: str) -> dict[str, Any]:
        size, counts = value.get("size"), value.get("counts")
        if not isinstance(size, list) or len(size) != 2:
            raise ValueError("no size")
        height, width = (self._number(side, where) for side in size)
        if (height, width) != (int(height), int(width)):
            raise ValueError("no size")
        if isinstance(counts, str):
            runs = _decompressed(counts)
        elif isinstance(counts, list) and counts:
            if set(map(type, counts)) != {int}:
                counts = self._whole_counts(counts, where)
            runs = counts
        else:
            raise ValueError("no counts")
        # COCO's decoder would write beyond the mask.
        if min(runs) < 0 or sum(runs) != height * width:
            raise self._error(
                f"the run lengths of {where} are not of a mask of {_short(width)} x {_short(height)}"
            )
        return {"size": [int(height), int(width)], "counts": counts}

    def _whole_counts(self, counts: list[Any], where: str) -> list[int]:
        numbers = [self._number(number, where) for number in counts]
        whole = list(map(int, numbers))
        if whole != numbers:
            raise ValueError("no whole numbers")
        self.notes.add("run lengths are not written as whole numbers, but are", f"those of {where}")
        return whole


def _perimeter(polygon: list[float]) -> float:
    """Return the pixels that drawing a polygon's outline visits."""
    corners = np.array(polygon, dtype=float).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _are_points(value: list[Any]) -> bool:
    """Whether these are pairs, which x and y by turns are not."""
    return bool(value) and all(isinstance(part, list) and len(part) == 2 for part in value)


def _decompressed(text: str) -> list[int]:
    """Return the run lengths that COCO's compressed ``text`` stands for.

    Each number is groups of 5 bits, the lowest first, in characters from ``0`` on; a sixth bit says that
    more follow; from the fourth number on they are differences to the last but one.

    Raises:
        ValueError: it is not of that form.
    """
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63:
        raise ValueError("not compressed run lengths")
    ends = np.flatnonzero(codes & 32 == 0)
    if not ends.size or ends[-1] != len(codes) - 1:
        raise ValueError("cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # more than 32 bits
        raise ValueError("too large")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    values -= ((codes[ends] & 16) != 0) * (1 << (5 * lengths))
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values.tolist()


def _plain(value: Any) -> Any:
    """Return an id as a number if it is one or its text, else None."""
    if type(value) is str and _NUMBER.fullmatch(value):
        return int(value) if _INTEGER.fullmatch(value) else float(value)
    return value if type(value) in (int, float) else None


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxlong, _REPR.maxlist = 3, 80, 40, 8


def _short(value: Any) -> str:
    """Return ``repr`` of a value, of bounded length however large the value is."""
    return _REPR.repr(value)
