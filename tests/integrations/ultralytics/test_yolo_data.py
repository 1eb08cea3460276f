"""Data sets of Ultralytics: what is read of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.yolo_data import coco_as_yolo
from PIL import Image

from ecanet.config import LibreYoloSettings, YoloSettings
from ecanet.errors import UserError
from ecanet.integrations.ultralytics.data import label_file, read_data
from ecanet.training.train import task_of

GOOD = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30)).save(tmp_path / "images" / split / f"{i}.png")
            (tmp_path / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text(GOOD)
    return tmp_path / "data.yaml"


def test_what_is_read(drawn: Path) -> None:
    data = read_data(str(drawn))
    assert (len(data.train), len(data.val), data.test) == (3, 2, None)
    assert data.names == {0: "cat", 1: "dog"}
    found = data.as_dict()
    assert found["nc"] == 2
    assert found["train"] == [str(drawn.parent / "images" / "train")]
    assert "download" not in found


def test_the_fingerprint_follows_labels_and_images(drawn: Path) -> None:
    before = read_data(str(drawn)).fingerprint
    assert read_data(str(drawn)).fingerprint == before
    label = drawn.parent / "labels" / "val" / "0.txt"
    label.write_text("1 0.5 0.5 0.2 0.2\n")
    changed = read_data(str(drawn)).fingerprint
    assert changed != before
    (drawn.parent / "images" / "train" / "2.png").unlink()
    assert read_data(str(drawn)).fingerprint not in (before, changed)


def test_lists_and_labels_are_those_that_ultralytics_reads(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics", reason="needs Ultralytics")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import img2label_paths

    data = read_data(str(coco_as_yolo(real_data / "coco128", tmp_path / "coco", 12, 4, 4)))
    theirs = YOLODataset(img_path=data.origins["train"], data=data.as_dict(), augment=False)
    assert data.train == theirs.im_files
    assert [str(label_file(image)) for image in data.train] == img2label_paths(data.train)
    assert len(data.test or []) == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "train: images/train\nval: images/val\n",
            "has no names, which a data set of Ultralytics needs",
        ),
        (GOOD.replace("val:", "vaal:"), "has no val"),
        (GOOD.replace("images/val", "images/no"), "the images of val are missing, as there is no"),
        (GOOD.replace("images/val", "labels/val"), "val has no images in"),
        (GOOD.replace("[cat, dog]", "{1: cat, 2: dog}"), "names must be a list of the classes"),
        (GOOD.replace("[cat, dog]", "7"), "names must be a list of the classes"),
        (GOOD.replace("images/val", "7"), "val is 7, and not a folder"),
        (GOOD + "channels: x\n", "channels is 'x'"),
        ("- a\n", "give path, train, val and names"),
        ("a: [\n", "data.yaml"),
    ],
)
def test_bad_files_are_refused(drawn: Path, content: str, says: str) -> None:
    drawn.write_text(content)
    with pytest.raises(UserError) as error:
        read_data(str(drawn))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_refused(drawn: Path) -> None:
    with pytest.raises(UserError, match="is a folder: give the YAML of a data set"):
        read_data(str(drawn.parent))


def test_images_without_labels_are_refused(drawn: Path) -> None:
    for label in (drawn.parent / "labels" / "train").iterdir():
        label.unlink()
    with pytest.raises(UserError, match="none of the 3 images of train has a label file"):
        read_data(str(drawn))


def test_code_in_the_file_is_not_run(drawn: Path, tmp_path: Path) -> None:
    """Ultralytics runs what stands behind `download` if images are missing."""
    drawn.write_text(
        GOOD.replace("images/val", "images/no") + f"download: open('{tmp_path}/ran', 'w')\n"
    )
    with pytest.raises(UserError, match="are missing"):
        read_data(str(drawn))
    assert not (tmp_path / "ran").exists()


FAULTS = [
    ("1 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n", "Label class 7 exceeds dataset class count 2"),
    ("0 nan 0.5 0.2 0.2\n", "non-normalized"),
    ("0 0.5 0.5 1.4 0.2\n", "out of bounds coordinates"),
    ("0 0.5 0.5 0.2\n", "labels require 5 columns"),
]


@pytest.mark.parametrize(("label", "why"), FAULTS)
def test_images_that_ultralytics_leaves_out_are_named(drawn: Path, label: str, why: str) -> None:
    pytest.importorskip("ultralytics", reason="needs Ultralytics")
    (drawn.parent / "labels" / "train" / "1.txt").write_text(label)
    settings = YoloSettings(data=str(drawn))
    data = task_of(settings).read(settings)
    (line,) = [line for line in task_of(settings).notices(settings, data) if "leaves" in line]
    assert line.startswith("Ultralytics leaves out 1 of the 3 images of train: ")
    assert "train/1.png" in line
    assert why in line
    assert len(data.skipped) == 1


def test_broken_images_and_repeated_labels_are_named(drawn: Path) -> None:
    pytest.importorskip("ultralytics", reason="needs Ultralytics")
    (drawn.parent / "images" / "val" / "1.png").write_bytes(b"no image")
    (drawn.parent / "labels" / "train" / "1.txt").write_text("1 0.5 0.5 0.2 0.2\n" * 2)
    settings = YoloSettings(data=str(drawn))
    first, second = task_of(settings).read(settings).notices
    assert first.startswith("Ultralytics has remarks on 1 of the 3 images of train: ")
    assert first.endswith("1.png: 1 duplicate labels removed")
    assert second.startswith("Ultralytics leaves out 1 of the 2 images of val: ")


def test_a_split_without_a_readable_image_is_refused(drawn: Path) -> None:
    pytest.importorskip("ultralytics", reason="needs Ultralytics")
    for file in (drawn.parent / "images" / "val").iterdir():
        file.write_bytes(b"no image")
    settings = YoloSettings(data=str(drawn))
    with pytest.raises(UserError, match=r"val: RuntimeError: .*No valid images found"):
        task_of(settings).read(settings)


def test_labels_that_change_but_in_size_are_read_again(drawn: Path) -> None:
    pytest.importorskip("ultralytics", reason="needs Ultralytics")
    from ultralytics.data.dataset import YOLODataset

    from ecanet.integrations.ultralytics.labels import label_cache

    def classes() -> list[int]:
        data = read_data(str(drawn))
        with label_cache(data):
            found = YOLODataset(img_path=data.origins["val"], data=data.as_dict(), augment=False)
        return [int(label["cls"].item()) for label in found.labels]

    assert classes() == [0, 0]
    assert classes() == [0, 0]
    (drawn.parent / "labels" / "val" / "1.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    assert classes() == [0, 1]
    assert not list(drawn.parent.rglob("*.cache"))


@pytest.mark.parametrize(("label", "why"), FAULTS)
def test_labels_that_libreyolo_leaves_out_are_named(drawn: Path, label: str, why: str) -> None:
    pytest.importorskip("libreyolo", reason="needs LibreYOLO")
    file = drawn.parent / "labels" / "train" / "1.txt"
    file.write_text(label)
    settings = LibreYoloSettings(data=str(drawn), model="libreyolo/yolo9-t")
    found = task_of(settings).read(settings)
    if "1.4" in label:  # which it clips
        assert found.notices == []
        return
    (line,) = found.notices
    number = label.count("\n")
    assert line.startswith(f"LibreYOLO leaves out 1 label of train: {file}, line {number}: ")
