"""What tools that write COCO's JSON do differently, what is forged or damaged, and what becomes of it."""

from __future__ import annotations

import copy
import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz_kinds import changed_tree
from helpers.news import news
from PIL import Image

from ecanet.data.decode import decode_image
from ecanet.detection.coco import CocoReader, Notes, _decompressed
from ecanet.detection.dataset import CocoFolder, _as_stored
from ecanet.errors import UserError

Change = Callable[[dict[str, Any]], Any]
RED, BLUE = [5, 5, 20, 16], [30, 20, 24, 20]
RED_OUTLINE = [5, 5, 25, 5, 25, 21, 5, 21]
RED_RUNS = [245, *[16, 32] * 19, 16, 48 * 64 - 245 - 20 * 16 - 19 * 32]


def content() -> dict[str, Any]:
    """Two images of 64 x 48 with a red and a blue box each."""
    boxes = [(1, 1, RED), (1, 2, BLUE), (2, 1, RED), (2, 2, BLUE)]
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 2)
        ],
        "annotations": [
            {
                "id": number, "image_id": image, "category_id": category, "bbox": [x, y, w, h],
                "area": w * h, "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            for number, (image, category, (x, y, w, h)) in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    for number in (1, 2):
        pixels = np.full((48, 64, 3), 200, np.uint8)
        for (x, y, w, h), color in ((RED, (255, 0, 0)), (BLUE, (0, 0, 255))):
            pixels[y : y + h, x : x + w] = color
        Image.fromarray(pixels).save(root / f"images/{number}.png")
    return root


def draw_turned(root: Path, pixels: np.ndarray, *orientations: int) -> None:
    """Write 1.png and so on, each turned by EXIF."""
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    for number, orientation in enumerate(orientations, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(root / f"images/{number}.png", exif=exif)


def read(root: Path, data: Any, **options: Any) -> tuple[CocoFolder, list[str]]:
    text = data if isinstance(data, str) else json.dumps(data)
    (root / "annotations/instances_train.json").write_text(text)
    with news() as said:
        return CocoFolder(root, "train", **options), said


def everywhere(part: str, key: str, value: Any) -> Change:
    return lambda c: [entry.update({key: copy.deepcopy(value)}) for entry in c[part]]


def first(part: str, key: str, value: Any) -> Change:
    return lambda c: c[part][0].update({key: value})


def as_text(part: str, key: str) -> Change:
    def change(c: dict[str, Any]) -> None:
        for entry in c[part]:
            value = entry[key]
            is_list = isinstance(value, list)
            entry[key] = [str(v) for v in value] if is_list else str(value)

    return change


def red_outline(value: Any) -> Change:
    """Give the red boxes another segmentation."""
    return lambda c: [a.update(segmentation=value) for a in c["annotations"] if a["bbox"] == RED]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (everywhere("annotations", "area", None), "4 areas missing, computed"),
        (everywhere("annotations", "area", ""), "4 areas missing, computed"),
        (as_text("annotations", "area"), "numbers written as text"),
        (everywhere("annotations", "iscrowd", None), "4 iscrowd values null, read as 0"),
        (everywhere("annotations", "iscrowd", "0"), "4 numbers written as text") ,
        (everywhere("annotations", "iscrowd", "false"), "4 iscrowd values written as text, read"),
        (everywhere("annotations", "iscrowd", False), None),
        (everywhere("annotations", "iscrowd", 0.0), None),
        (first("annotations", "iscrowd", "0"), "1 number written as text"),
        (lambda c: c["annotations"][0].pop("iscrowd"), None),
        (as_text("annotations", "bbox"), "16 numbers written as text and converted"),
        (as_text("annotations", "category_id"), "4 numbers written as text"),
        (as_text("annotations", "image_id"), "4 numbers written as text"),
        (as_text("images", "id"), "2 numbers written as text"),
        (as_text("categories", "id"), "2 numbers written as text"),
        (first("images", "id", "1"), "(first: image '1')"),
        (red_outline(RED_OUTLINE), "2 segmentations given as a flat list, read as one polygon"),
        (red_outline([[[5, 5], [25, 5], [25, 21], [5, 21]]]), "2 polygons given as a list of points"),
        (red_outline([[5, 5], [25, 5], [25, 21], [5, 21]]), "2 polygons given as a list of points"),
        (red_outline([[str(n) for n in RED_OUTLINE]]), "16 numbers written as text"),
        (red_outline(json.dumps([RED_OUTLINE])), "2 segmentations stored as JSON in a string"),
        (red_outline({"size": [48, 64], "counts": RED_RUNS}), None),
        (red_outline({"size": [48, 64], "counts": [float(n) for n in RED_RUNS]}),
         "2 masks with run lengths not written as whole numbers"),
        (red_outline([{"size": [48, 64], "counts": RED_RUNS}]), "2 masks with run lengths inside a list"),
        (everywhere("images", "width", 64.0), None),
        (as_text("images", "height"), "2 numbers written as text"),
        (everywhere("images", "width", None), "2 images without width or height"),
        (everywhere("images", "height", -1), "2 images without width or height"),
        (everywhere("images", "height", 0), "2 images without width or height"),
        (lambda c: [image.pop("width") for image in c["images"]], "2 images without width or height"),
        (lambda c: c["categories"].append({"id": 0, "name": "colors", "supercategory": "none"})
         or everywhere("categories", "supercategory", "colors")({"categories": c["categories"][:2]}),
         "1 category name without objects, used only as a supercategory, skipped"),
    ],
)  # fmt: skip
def test_what_tools_write_differently(pictures: Path, change: Change, says: str | None) -> None:
    plain, said = read(pictures, content())
    assert said == []
    changed = content()
    change(changed)
    data, said = read(pictures, changed)
    assert data.annotations["annotations"] == plain.annotations["annotations"] or (
        # Run lengths stay what they are; their masks are compared below.
        [a["area"] for a in data.annotations["annotations"]]
        == [a["area"] for a in plain.annotations["annotations"]]
    )
    assert (data.images, data.class_names) == (plain.images, ["red", "blue"])
    for index in range(2):
        for ours, theirs in zip(data[index][1].values(), plain[index][1].values(), strict=True):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    assert len(said) == (says is not None), said
    assert says is None or says in said[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (first("annotations", "iscrowd", "perhaps"), "annotation 1 has the iscrowd 'perhaps'"),
        (first("annotations", "iscrowd", 2), "annotation 1 has the iscrowd 2"),
        (first("annotations", "iscrowd", [0]), "annotation 1 has the iscrowd"),
        (first("annotations", "area", "large"), "annotation 1 has the area 'large'"),
        (first("annotations", "area", float("nan")), "annotation 1 has the area nan"),
        (first("annotations", "area", 10**400), "annotation 1 has the area 1000"),
        (first("annotations", "bbox", [1, 2, float("nan"), 4]), "annotation 1 has the box"),
        (first("annotations", "bbox", [1, 2, float("inf"), 4]), "annotation 1 has the box"),
        (first("annotations", "bbox", [1e9, 2, 3, 4]), "annotation 1 has the box"),
        (first("annotations", "bbox", [1, 2, 3]), "annotation 1 has the box"),
        (first("annotations", "bbox", [1, 2, "x", 4]), "annotation 1 has the box"),
        (first("annotations", "bbox", None), "annotation 1 has the box None"),
        (first("annotations", "bbox", [[1], 2, 3, 4]), "annotation 1 has the box"),
        (first("annotations", "segmentation", [[0, 0, 1e9, 0, 1e9, 1e9]]), "no numbers up to"),
        (first("annotations", "segmentation", [[0, 0, float("nan"), 0, 5, 5]]), "no numbers up to"),
        (first("annotations", "segmentation", [[0, 0, float("inf"), 0, 5, 5]]), "no numbers up to"),
        (first("annotations", "segmentation", [[0, 0, 9, 0, 5, 5, 7]]), "a polygon of 7 numbers"),
        (first("annotations", "segmentation", [[0, 0, "x", 0, 5, 5]]), "neither polygons nor run"),
        (first("annotations", "segmentation", [[0, 0], 5, 5, 5]), "neither polygons nor run"),
        (first("annotations", "segmentation", 7), "of annotation 1 is neither polygons nor run"),
        (first("annotations", "segmentation", "a mask"), "neither polygons nor run lengths"),
        (first("annotations", "segmentation", "[" * 5000), "neither polygons nor run lengths"),
        (first("annotations", "segmentation", {"size": [48, 64]}), "neither polygons nor run"),
        (first("annotations", "segmentation", {"size": [48, 64], "counts": [10**12]}),
         "the run lengths of annotation 1 are not of a mask of 64 x 48"),
        (first("annotations", "segmentation", {"size": [48, 64], "counts": [-5, 3077]}), "not of a mask"),
        (first("annotations", "segmentation", {"size": [48, 64], "counts": [1.5, 3070.5]}), "neither"),
        (first("annotations", "segmentation", {"size": [48, 64], "counts": "oooo"}), "neither"),
        (first("annotations", "segmentation", {"size": [48, 64], "counts": "1" * 9}), "not of a mask"),
        (first("annotations", "segmentation", {"size": [10**9, 10**9], "counts": [10**18]}),
         "annotation 1 are not of an image of 64 x 48"),
        (first("annotations", "category_id", None), "annotation 1 has the category id None"),
        (first("annotations", "category_id", [1]), "annotation 1 has the category id"),
        (first("annotations", "image_id", "one"), "annotation 1 has the image id 'one'"),
        (first("annotations", "image_id", 10**30), "annotation 1 has the image id 1000"),
        (first("images", "id", "a-b-c"), "there is the image id 'a-b-c', not a whole number"),
        (first("images", "id", True), "there is the image id True"),
        (first("images", "width", 64.5), "image 1 has the width 64.5"),
        (first("images", "width", "wide"), "image 1 has the width 'wide'"),
        (first("images", "width", 10**9), "image 1 has the width 1000000000"),
        (first("images", "width", 100000), "has 64 x 48 pixels, and instances_train.json says 100000"),
        (first("images", "file_name", None), "image 1 has the file_name None"),
        (first("images", "file_name", "../1.png"), "which leaves the folder of the data"),
        (first("images", "file_name", "x" * 10000), "that are not in"),
        (first("images", "file_name", "\ud800"), "that are not in"),
        (first("categories", "name", "blue"), "categories 1 and 2 are both named 'blue'"),
        (first("categories", "name", None), "category 1 has the name None"),
        (first("categories", "name", []), "category 1 has the name []"),
        (first("categories", "id", 2), "two of its categories share an id"),
    ],
)  # fmt: skip
def test_what_has_no_certain_meaning_is_refused(pictures: Path, change: Change, says: str) -> None:
    changed = content()
    change(changed)
    with pytest.raises(UserError) as error:
        read(pictures, changed)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"images": ' * 2000,
        '{"images": [' + "9" * 10_000 + "]}",
        "nul",
        "[]",
        "7",
        '{"images": {}, "annotations": [], "categories": []}',
        '{"images": [1], "annotations": [], "categories": []}',
    ],
)
def test_a_file_that_is_no_coco_is_refused_in_one_line(pictures: Path, text: str) -> None:
    with pytest.raises(UserError):
        read(pictures, text)


def test_compressed_run_lengths_are_those_of_cocos_tools() -> None:
    from faster_coco_eval.core import mask

    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 1.0):
        for shape in ((48, 64), (1, 1), (300, 2000)):
            bits = np.asfortranarray((rng.random(shape) < density).astype(np.uint8))
            flat = bits.ravel(order="F")
            edges = [0, *np.flatnonzero(np.diff(flat, prepend=0)).tolist(), flat.size]
            text = mask.encode(bits)["counts"]
            runs = _decompressed(text if isinstance(text, str) else text.decode())
            assert runs == [b - a for a, b in itertools.pairwise(edges) if b > a or not a]


def test_a_million_corners_are_read_and_an_endless_outline_is_not(pictures: Path) -> None:
    changed = content()
    corners = [[n % 64, n // 64 % 48] for n in range(500_000)]
    changed["annotations"][0]["segmentation"] = [[c for corner in corners for c in corner]]
    assert read(pictures, changed)[0][0][1]["masks"].shape == (2, 48, 64)
    changed["annotations"][0]["segmentation"] = [[0, 0, 64, 0] * 50_000]
    began = time.monotonic()
    with pytest.raises(UserError, match="annotation 1 has polygons of outlines over 1,000,000 pix"):
        read(pictures, changed)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turn_is_undone(tmp_path: Path, orientation: int) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    upright = decode_image((tmp_path / "x.png").read_bytes())
    stored = _as_stored(upright, orientation)
    assert np.array_equal(stored.permute(1, 2, 0).numpy(), pixels)


def test_annotations_of_the_stored_image_are_found_before_training(tmp_path: Path) -> None:
    pixels = np.full((48, 64, 3), 90, np.uint8)
    pixels[:24] = 200
    draw_turned(tmp_path, pixels, 6, 8)
    with pytest.raises(UserError) as error:
        read(tmp_path, content())
    assert "EXIF rotates 2 of 2 images" in str(error.value)
    assert "give --ignore-exif, or repair 1.png, 2.png" in str(error.value)
    data, said = read(tmp_path, content(), ignore_exif=True)
    assert said == []
    for index in range(2):
        assert np.array_equal(data[index][0].permute(1, 2, 0).numpy(), pixels)
    changed = content()
    for image in changed["images"]:
        image.update(width=48, height=64)
    data, said = read(tmp_path, changed)
    assert data[0][0].shape == (3, 64, 48)
    with pytest.raises(UserError, match="for the rotated image: leave out --ignore-exif"):
        read(tmp_path, changed, ignore_exif=True)


def test_a_turn_that_sizes_do_not_show_is_told(tmp_path: Path) -> None:
    draw_turned(tmp_path, np.zeros((48, 64, 3), np.uint8), 3, 3)
    _, said = read(tmp_path, content())
    assert "2 images rotated by EXIF without a change of size" in said[0]


def test_roboflows_parent_is_a_class_where_it_is_asked_for(pictures: Path) -> None:
    changed = content()
    changed["categories"].append({"id": 0, "name": "colors", "supercategory": "none"})
    for category in changed["categories"][:2]:
        category["supercategory"] = "colors"
    assert read(pictures, changed, keep_classes=["colors"])[0].category_ids == [0, 1, 2]
    changed["annotations"][0]["category_id"] = 0
    assert read(pictures, changed)[0].class_names == ["colors", "red", "blue"]
    person = content()
    person["annotations"] = []
    person["categories"][0]["supercategory"] = "red"  # as COCO's person is
    assert read(pictures, person)[0].class_names == ["red", "blue"]


# ---- damage at random


def fuzz(root: Path, seed: int, count: int) -> tuple[int, int]:
    """Read changed files; return how many were read, and how many refused."""
    rng = random.Random(seed)
    runs = content()
    runs["annotations"][0]["segmentation"] = {"size": [48, 64], "counts": list(RED_RUNS)}
    text = "d]1d0l" + 46 * "0" + "\\>"
    runs["annotations"][1]["segmentation"] = {"size": [48, 64], "counts": text}
    outcomes = [0, 0]
    for number in range(count):
        text = json.dumps(changed_tree(rng, content() if number % 2 else runs))
        if number % 5 == 0:  # damage to the text itself
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice('{}[]",:0eE-\\\x00') + text[at + rng.randint(0, 3) :]
        try:
            data, _ = read(root, text, keep_empty=rng.random() < 0.5)
            for index in range(len(data)):
                data[index]
            outcomes[0] += 1
        except UserError:
            outcomes[1] += 1
    return outcomes[0], outcomes[1]


def test_a_file_damaged_at_random_is_read_or_refused(pictures: Path) -> None:
    done, refused = fuzz(pictures, seed=1, count=600)
    assert min(done, refused) > 60


def test_reading_does_not_change_what_is_read(pictures: Path) -> None:
    """The figures of an evaluation are those of the file: nothing is rounded or clipped."""
    changed = content()
    changed["annotations"][0]["bbox"] = [-3.25, 5.5, 20.125, 16]
    file = pictures / "annotations/instances_train.json"
    file.write_text(json.dumps(changed))
    notes = Notes(file)
    objects = CocoReader(file, notes).objects({1, 2}, {1, 2})
    assert objects[0].bbox == [-3.25, 5.5, 20.125, 16]
    data, _ = read(pictures, changed)
    assert data.annotations["annotations"][0]["bbox"] == [-3.25, 5.5, 20.125, 16]
    assert data[0][1]["boxes"][0].tolist() == [0, 5.5, 16.875, 21.5]
