"""COCO's JSON, read once into checked values.

Export tools differ in what they write. Numbers written as text, missing areas, polygons without their
outer list and the like are read as what they mean, and reported in a line for each kind. What is ambiguous,
or would take unbounded memory, is refused in one line.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ecanet.data.decode import read_file
from ecanet.errors import UserError, counted, shown

log = logging.getLogger(__name__)

# Larger than any image; rasterizing a polygon takes memory in proportion to its outline.
_LARGEST_PIXELS = 1_000_000
# Numbers in the smallest polygon: three corners.
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
    """An image entry of the file."""

    id: int
    file_name: str
    """Path relative to the folder of the images."""
    width: int | None
    """Pixels; None where the file has none."""
    height: int | None


@dataclass
class CocoObject:
    """An annotation entry of the file."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    """Left, top, width, height in pixels, as in the file: parts may be outside the image."""
    area: float
    """Square pixels."""
    is_crowd: bool
    segmentation: Any
    """Polygons of three or more corners, alternating x and y; or run lengths ``{"size": [H, W], "counts":
    ...}`` as a list of integers or compressed; or None. An empty list if no polygon has three corners."""


class Notes:
    """What was skipped, computed or reinterpreted, counted by kind."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._kinds: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, noun: str, what: str, where: str) -> None:
        """Count one ``noun``, and what was done with it: ``area``, ``missing, computed from the box``."""
        count, first = self._kinds.get((noun, what), (0, where))
        self._kinds[noun, what] = (count + 1, first)

    def report(self) -> None:
        """Log a line for each kind, and reset the counts."""
        for (noun, what), (count, first) in self._kinds.items():
            log.info(f"{self.file}: {counted(count, noun)} {what} (first: {first})")
        self._kinds = {}


class CocoReader:
    """Reads the parts of one annotation file.

    Args:
        file: COCO's JSON.
        notes: collects what was reinterpreted.

    Raises:
        UserError: the file cannot be read or is not in COCO's format.
    """

    def __init__(self, file: Path, notes: Notes) -> None:
        self.file, self.notes = file, notes
        try:
            self._content = json.loads(read_file(file))
        # A damaged or forged file: cut short, not UTF-8, numbers of 10,000 digits, endless nesting.
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file} is not complete JSON ({str(error)[:100]}): copy or write it again"
            ) from None
        for part, names in _NEEDED.items():
            content = self._content
            if not isinstance(content, dict) or not isinstance(content.get(part), list):
                raise UserError(f"{file} is not in COCO's format: it has no list of {part}")
            for entry in content[part]:
                lacking = [n for n in names if not isinstance(entry, dict) or n not in entry]
                if lacking:
                    raise UserError(
                        f"{file}: an entry of {part} lacks {lacking[0]}: {shown(entry)}"
                    )
        if not self._content["categories"]:
            raise UserError(f"{file} lists no categories")

    def images(self) -> list[CocoImage]:
        """Return the images, sorted by id.

        Raises:
            UserError: an id, name or size cannot be used, or two images have one id.
        """
        images = []
        for entry in self._content["images"]:
            number = self._id(entry["id"], "image")
            where = f"image {number}"
            name = self._file_name(entry["file_name"], where)
            sides = (self._pixels(entry.get(side), side, where) for side in ("width", "height"))
            images.append(CocoImage(number, name, *sides))
        if len({image.id for image in images}) < len(images):
            raise self._error("two of its images share an id")
        return sorted(images, key=lambda image: image.id)

    def categories(self, keep: Collection[str] = ()) -> dict[int, str]:
        """Return the names of the categories by id, sorted by id.

        A category without objects that is the supercategory of others is skipped: Roboflow writes one above
        all classes.

        Args:
            keep: names of categories that are not skipped.

        Raises:
            UserError: an id or name cannot be used, or two categories have the same.
        """
        categories: dict[int, str] = {}
        above_others: set[str] = set()
        for entry in self._content["categories"]:
            number = self._id(entry["id"], "category")
            name = entry["name"]
            if type(name) in (int, float):
                self.notes.add("category name", "written as a number, read as text", repr(name))
                name = str(name)
            if not isinstance(name, str) or not name.strip():
                raise self._error(f"category {number} has the name {shown(name)}: give it one")
            if number in categories:
                raise self._error("two of its categories share an id")
            categories[number], parent = name, entry.get("supercategory")
            if isinstance(parent, str) and parent != name:
                above_others.add(parent)
        of_name: dict[str, int] = {}
        for number, name in categories.items():
            other = of_name.setdefault(name, number)
            if other != number:
                raise self._error(
                    f"categories {other} and {number} are both named {shown(name)}: rename or merge "
                    "them"
                )
        used = {_plain(entry["category_id"]) for entry in self._content["annotations"]}
        for name in above_others.intersection(of_name) - set(keep):
            if of_name[name] not in used:
                self.notes.add(
                    "category name",
                    "without objects, used only as a supercategory, skipped",
                    shown(name),
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
        # Annotations are renumbered, as by COCO's tools: any id will do for messages.
        number = given if type(given) is int and abs(given) <= _LARGEST_ID else position
        where = f"annotation {shown(given)}"
        image = self._id(entry["image_id"], "image", where)
        if image not in images:
            raise self._error(f"{where} is for image {image}, which the file does not list")
        category = self._id(entry["category_id"], "category", where)
        if category not in categories:
            raise self._error(f"{where} is for category {category}, which the file does not list")
        bbox = self._parse(
            self._box,
            entry["bbox"],
            where,
            f"{{where}} has the box {{value}}, and not four numbers up to {_LARGEST_PIXELS:,}",
        )
        return CocoObject(
            number,
            image,
            category,
            bbox,
            self._area(entry.get("area"), bbox, where),
            self._parse(
                self._is_crowd,
                entry.get("iscrowd", 0),
                where,
                "{where} has the iscrowd {value}: write 0 or 1",
            ),
            self._parse(
                self._segmentation,
                entry.get("segmentation"),
                where,
                "the segmentation of {where} is neither polygons nor run lengths: {value}",
            ),
        )

    def _error(self, message: str) -> UserError:
        return UserError(f"{self.file}: {message}")

    def _parse(self, parse: Callable[[Any, str], Any], value: Any, where: str, problem: str) -> Any:
        """Return ``parse(value, where)``; a ValueError becomes a UserError with the text ``problem``."""
        try:
            return parse(value, where)
        except ValueError:
            raise self._error(problem.format(where=where, value=shown(value))) from None

    # Each of the following raises a ValueError for a value that it cannot read.

    def _number(self, value: Any, where: str) -> float:
        number = _plain(value)
        if number is None or not abs(number) <= _LARGEST_ID:
            raise ValueError("no number")
        if number is not value:
            self.notes.add("number", "written as text and converted", where)
        return number

    def _whole(self, value: Any, where: str) -> int:
        number = self._number(value, where)
        if number != int(number):
            raise ValueError("no whole number")
        return int(number)

    def _side(self, value: Any, where: str) -> int:
        number = self._whole(value, where)
        if number > _LARGEST_PIXELS:
            raise ValueError("too large")
        return number

    def _box(self, value: Any, where: str) -> list[float]:
        if not isinstance(value, list) or len(value) != 4:
            raise ValueError("no box")
        box = [self._number(number, where) for number in value]
        if max(map(abs, box)) > _LARGEST_PIXELS:
            raise ValueError("too large")
        return box

    def _is_crowd(self, value: Any, where: str) -> bool:
        if value is None:
            self.notes.add("iscrowd value", "null, read as 0", where)
            return False
        if isinstance(value, str) and value.strip().lower() in _TRUTH:
            self.notes.add("iscrowd value", "written as text, read as 0 or 1", where)
            return _TRUTH[value.strip().lower()]
        number = value if type(value) is bool else self._number(value, where)
        if number not in (0, 1):
            raise ValueError("no truth value")
        return bool(number)

    def _segmentation(self, value: Any, where: str) -> Any:
        if isinstance(value, str) and value.strip():
            self.notes.add("segmentation", "stored as JSON in a string, parsed", where)
            try:
                value = json.loads(value)
            except RecursionError:
                raise ValueError("endless nesting") from None
        if value is None or value in ("", [], {}):
            return None
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            self.notes.add("mask", "with run lengths inside a list, unpacked", where)
            value = value[0]
        if isinstance(value, dict):
            return self._run_lengths(value, where)
        if not isinstance(value, list):
            raise ValueError("no polygons")
        return self._polygons(value, where)

    # And these a UserError.

    def _id(self, value: Any, what: str, where: str = "") -> int:
        return self._parse(
            self._whole,
            value,
            where or f"{what} {shown(value)}",
            f"{'{where} has' if where else 'there is'} the {what} id {{value}}, not a whole number",
        )

    def _file_name(self, name: Any, where: str) -> str:
        if not isinstance(name, str) or not name or "\0" in name:
            raise self._error(f"{where} has the file_name {shown(name)}")
        parts = re.split(r"[/\\]", name)
        # An empty first part is the root, and a colon a drive of Windows.
        if ".." in parts or not parts[0] or re.fullmatch(r"[A-Za-z]:", parts[0]):
            raise self._error(
                f"{where} has the file_name {shown(name)}, which leaves the folder of the data: "
                "name files below it"
            )
        return name

    def _pixels(self, value: Any, name: str, where: str) -> int | None:
        if value is None or value == "":
            return None
        problem = f"{{where}} has the {name} {{value}}, not a whole number of pixels"
        pixels = self._parse(self._side, value, where, problem)
        return pixels if pixels > 0 else None

    def _area(self, value: Any, bbox: list[float], where: str) -> float:
        if value is not None and value != "":
            problem = "{where} has the area {value}, not a number"
            area = self._parse(self._number, value, where, problem)
            if area >= 0:
                return float(area)
        self.notes.add("area", "missing, computed from the box", where)
        return float(bbox[2] * bbox[3])

    # ---- segmentations

    def _polygons(self, value: list[Any], where: str) -> list[list[float]]:
        if not any(isinstance(part, (list, dict)) for part in value):
            self.notes.add("segmentation", "given as a flat list, read as one polygon", where)
            value = [value]
        elif len(value) >= _TRIANGLE // 2 and _are_points(value):
            value = [value]
        polygons, longest = [], 0.0
        for polygon in value:
            if isinstance(polygon, list) and _are_points(polygon):
                self.notes.add("polygon", "given as a list of points, flattened", where)
                polygon = [number for point in polygon for number in point]
            if not isinstance(polygon, list):
                raise ValueError("no polygon")
            numbers, bound = self._corners(polygon, where)
            longest += bound
            if len(numbers) >= _TRIANGLE:
                polygons.append(numbers)
            elif numbers:
                self.notes.add("polygon", "with fewer than three corners, skipped", where)
        if longest > _LARGEST_PIXELS and sum(map(_perimeter, polygons)) > _LARGEST_PIXELS:
            raise self._error(f"{where} has polygons of outlines over {_LARGEST_PIXELS:,} pixels")
        return polygons

    def _corners(self, polygon: list[Any], where: str) -> tuple[list[float], float]:
        """Return the numbers of a polygon, and an upper bound of its outline in pixels."""
        numbers = polygon
        if not set(map(type, polygon)) <= {int, float}:
            numbers = [self._number(number, where) for number in polygon]
        if not numbers:
            return numbers, 0.0
        low, high = min(numbers), max(numbers)
        # min and max can miss a NaN, but the sum becomes NaN, which compares as false.
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
        height, width = (self._whole(side, where) for side in size)
        if isinstance(counts, str):
            runs = _decompressed(counts)
        elif isinstance(counts, list) and counts:
            if set(map(type, counts)) != {int}:
                counts = [self._whole(count, where) for count in counts]
                self.notes.add(
                    "mask", "with run lengths not written as whole numbers, converted", where
                )
            runs = counts
        else:
            raise ValueError("no counts")
        # COCO's decoder would write past the end of the mask.
        if min(runs) < 0 or sum(runs) != height * width:
            raise self._error(
                f"the run lengths of {where} are not of a mask of {shown(width)} x {shown(height)}"
            )
        return {"size": [height, width], "counts": counts}


def _perimeter(polygon: list[float]) -> float:
    """Return the number of pixels visited in drawing a polygon's outline."""
    corners = np.array(polygon, dtype=float).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _are_points(value: list[Any]) -> bool:
    """Whether these are pairs, rather than alternating x and y."""
    return bool(value) and all(isinstance(part, list) and len(part) == 2 for part in value)


def _decompressed(text: str) -> list[int]:
    """Return the run lengths encoded in COCO's compressed ``text``.

    A number is groups of 5 bits, the lowest first, in characters starting at ``0``; a sixth bit is set if
    more groups follow. From the fourth number on they are differences to the last but one. A ValueError
    says what is not of that form.
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
    """Return a number as it is or parsed from its text, and None for anything else."""
    if type(value) is str and _NUMBER.fullmatch(value):
        return int(value) if _INTEGER.fullmatch(value) else float(value)
    return value if type(value) in (int, float) else None
