"""Attacks: files, folders and addresses that were made to do harm. None gets in.

Each test is one attack. The commands run as processes of their own whose writes, requests and programs
are recorded (``isolated.py``).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from isolated import Isolated

# ---- The tools that watch are themselves watched


def test_what_a_command_touches_is_seen(isolated: Isolated, tmp_path: Path) -> None:
    """The recorder records: else every test below would pass in silence."""
    code = (
        "import socket, subprocess, sys\n"
        "open('here', 'w'); open('/dev/null', 'w')\n"
        "subprocess.run([sys.executable, '-c', ''])\n"
        "socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
    )
    seen = isolated.call(code, tmp_path)
    assert seen.code == 1
    assert "ConnectionRefusedError" in seen.err
    assert str(tmp_path / "here") in seen.wrote
    assert seen.wrote_outside(tmp_path) == []
    assert seen.wrote_outside(tmp_path / "there") != []
    assert any("127.0.0.1" in address for address in seen.contacted)
    assert len(seen.started) == 1


# ---- A weight file


# ---- The current folder


# ---- A study, recipe or plugin from elsewhere


# ---- Secrets


# ---- Images and shards


# ---- Annotations


def _annotated(folder: Path, part: str, **changes: object) -> Path:
    """Make two images of 64 x 48 with a box and an outline each, and change the first of ``part``."""
    import json

    from PIL import Image

    (folder / "data/images").mkdir(parents=True)
    (folder / "data/annotations").mkdir()
    square = {"bbox": [5, 5, 20, 16], "segmentation": [[5, 5, 25, 5, 25, 21, 5, 21]]}
    content: dict[str, list[dict[str, object]]] = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 2)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, **square} for n in (1, 2)],
        "categories": [{"id": 1, "name": "box"}],
    }
    content[part][0].update(changes)
    for number in (1, 2):
        Image.new("RGB", (64, 48)).save(folder / f"data/images/{number}.png")
    (folder / "data/annotations/instances_train.json").write_text(json.dumps(content))
    return folder / "data"


def _is_refused(isolated: Isolated, data: Path) -> None:
    """Train on such annotations: one line, at once, in little memory, and nothing is written."""
    seen = isolated.run(
        "detect", "train", data, "--eval-split", "train", "--batch-size", 2, "--out", "run",
        folder=data.parent,
    )  # fmt: skip
    assert seen.is_one_line(), seen.err
    assert seen.seconds < 10
    assert seen.memory < 1.2e9
    assert seen.wrote_outside(data.parent.with_name(f"{data.parent.name}.home")) == []


@pytest.mark.parametrize(
    "name", ["../../secret.png", "/etc/hostname", "a/../../b.png", r"..\..\b.png", r"C:\b.png"]
)
def test_an_image_outside_the_data(isolated: Isolated, tmp_path: Path, name: str) -> None:
    """The ``file_name`` leaves the folder of the data: a file of the user's would be read."""
    _is_refused(isolated, _annotated(tmp_path, "images", file_name=name))


@pytest.mark.parametrize("corner", [float("nan"), float("inf"), -float("inf"), 1e9, 1e308, 10**400])
def test_a_polygon_without_end(isolated: Isolated, tmp_path: Path, corner: float) -> None:
    """Rasterizing a polygon takes memory in proportion to its outline: 12 GB for 1e9 pixels."""
    polygon = [0, 0, corner, 0, corner, corner]
    _is_refused(isolated, _annotated(tmp_path, "annotations", segmentation=[polygon]))


def test_a_polygon_that_goes_to_and_fro(isolated: Isolated, tmp_path: Path) -> None:
    """Each corner is inside the image, and the outline is millions of pixels long."""
    polygon = [0, 0, 64, 48] * 250_000
    _is_refused(isolated, _annotated(tmp_path, "annotations", segmentation=[polygon]))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e9, 10**400])
def test_a_box_without_end(isolated: Isolated, tmp_path: Path, number: float) -> None:
    """A box of numbers that are none, or that no image has."""
    _is_refused(isolated, _annotated(tmp_path, "annotations", bbox=[0, 0, number, 5]))


@pytest.mark.parametrize(
    "runs",
    [
        {"size": [48, 64], "counts": [10**12]},
        {"size": [48, 64], "counts": [0, 4000]},
        {"size": [48, 64], "counts": [-1, 3073]},
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [48, 64], "counts": "oooooooooo1"},
        {"size": [48, 64], "counts": "1" * 100_000},
    ],
)
def test_run_lengths_of_another_mask(
    isolated: Isolated, tmp_path: Path, runs: dict[str, object]
) -> None:
    """Decoded as they are, they would be written beyond the mask's memory."""
    _is_refused(isolated, _annotated(tmp_path, "annotations", segmentation=runs))


def test_an_image_size_that_is_claimed(isolated: Isolated, tmp_path: Path) -> None:
    """The file claims a million pixels a side; masks of that size would take a terabyte."""
    _is_refused(isolated, _annotated(tmp_path, "images", width=10**6, height=10**6))


@pytest.mark.parametrize("value", [10**30, 1e30, float("nan"), "9" * 5000, [[[]]], {"a": 1}, True])
def test_an_id_that_is_none(isolated: Isolated, tmp_path: Path, value: object) -> None:
    """COCO's tools count in 64 bits, and use ids as keys."""
    _is_refused(isolated, _annotated(tmp_path, "images", id=value))


@pytest.mark.parametrize("text", ["[" * 1_000_000, '{"images":' * 100_000, "9" * 1_000_000])
def test_annotations_nested_without_end(isolated: Isolated, tmp_path: Path, text: str) -> None:
    """Readers that call themselves for each level, or compute each digit, end in a crash."""
    data = _annotated(tmp_path, "images")
    (data / "annotations/instances_train.json").write_text(text)
    _is_refused(isolated, data)


def test_masks_that_fill_the_memory(isolated: Isolated, tmp_path: Path) -> None:
    """Thousands of objects of one large image: each mask is small, all of them are not."""
    import json

    from PIL import Image

    data = _annotated(tmp_path, "images", width=4000, height=4000)
    Image.new("1", (4000, 4000)).save(data / "images/1.png")
    file = data / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": content["annotations"][:1] * 1000}))
    _is_refused(isolated, data)


# ---- Checkpoints that are structures without end


# ---- YAML, sweeps and settings


# ---- Names shown in a terminal
