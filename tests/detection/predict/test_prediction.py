"""`ecanet detect predict` and `evaluate`: what they write, and what they refuse."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Refuse, Run
from helpers.detectors import small_detector
from helpers.news import news
from PIL import Image
from scipy.ndimage import binary_erosion

from ecanet.detection import save_detector
from ecanet.detection.inference import match_classes
from ecanet.detection.predict.drawing import MASK_OPACITY, object_color
from ecanet.detection.shapes import draw_split
from ecanet.errors import UserError

CLASSES = ("circle", "square", "triangle", "ring")


@pytest.fixture
def run(run: Run) -> Run:
    """Run ``ecanet detect ARGUMENTS``."""
    return functools.partial(run, "detect")


@pytest.fixture
def predict(run: Run, tmp_path: Path, weights: Path) -> Run:
    """Run ``ecanet detect predict ARGUMENTS`` with the weights; it writes into ``out``."""
    return functools.partial(run, "predict", "--weights", weights, "--out", tmp_path / "out")


def detector(kind: str = "mask_rcnn", names: tuple[str, ...] = CLASSES, seed: int = 0) -> Any:
    """Return a small detector that finds many things, none of them there."""
    ids = [3 * n + 2 for n in range(len(names))]
    classes = {"num_classes": len(names), "class_names": names, "category_ids": ids}
    return small_detector(
        kind, seed=seed, std=2.0, max_size=128, width=16, anchor_size=16, **classes
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mask_rcnn.safetensors"
    save_detector(path, detector())
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with a wide image, a turned one and a text that says it is an image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    image = Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)
    image.save(folder / "a.jpg", quality=95)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter to the right
    image.save(folder / "b.png", exif=turned)
    (folder / "c.jpeg").write_text("not an image")
    (folder / "notes.txt").write_text("nor this")
    return folder


def test_images_are_drawn_and_described(predict: Run, tmp_path: Path, photos: Path) -> None:
    before = {path: path.read_bytes() for path in photos.iterdir()}
    out, flags = tmp_path / "out", ("--top", 3, "--threshold", 0.3)
    code, printed, err = predict(photos, *flags)
    assert code == 1, "one of them is no image"
    assert err.splitlines()[-1].startswith("ecanet: ")
    assert "c.jpeg cannot be read as an image" in err.splitlines()[-1]
    assert printed.split() == [str(out / "a.png"), str(out / "b.png")]
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    for name, size in (("a", (400, 300)), ("b", (300, 400))):
        told = json.loads((out / f"{name}.json").read_text())
        assert (told["width"], told["height"]) == size == Image.open(out / f"{name}.png").size
        assert 1 <= len(told["detections"]) <= 3
        for found in told["detections"]:
            assert found["name"] in CLASSES
            assert found["category_id"] == 3 * CLASSES.index(found["name"]) + 2
            assert 0.3 <= found["score"] <= 1
            left, top, right, bottom = found["box"]
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            assert found["mask"]["size"] == [size[1], size[0]]
    # The same again, of a file and a pattern; nothing else is in the way.
    code, printed, _ = predict(photos / "a.jpg", photos / "*.png", *flags)
    assert (code, len(printed.split())) == (0, 2)


def test_every_unreadable_image_is_named_and_others_are_done(predict: Run, photos: Path) -> None:
    for number in range(5):
        (photos / f"0{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(number))
    (photos / "d.jpg").mkdir()
    code, printed, err = predict(photos)
    assert (code, len(printed.split())) == (1, 2)
    named = [line for line in err.splitlines() if line.startswith("ecanet: ")]
    bad = ["00.png", "01.png", "02.png", "03.png", "04.png", "c.jpeg", "d.jpg"]
    assert len(named) == 7
    assert all(name in line for name, line in zip(bad, named, strict=True))
    for name in ("a.jpg", "b.png"):
        (photos / name).unlink()
    code, printed, err = predict(photos)
    assert (code, printed) == (2, "")
    assert err.splitlines()[-1] == "ecanet: none of the 7 files could be read"


def test_the_mask_of_the_json_has_its_color(predict: Run, tmp_path: Path, photos: Path) -> None:
    from faster_coco_eval.core import mask

    # In float pixels of a JPEG there is nothing to compare with: the wide image without loss.
    clean = tmp_path / "clean.png"
    Image.open(photos / "a.jpg").save(clean)
    out = tmp_path / "out"
    predict(clean, "--top", 1, "--threshold", 0.1)
    found = json.loads((out / "clean.json").read_text())["detections"][0]
    inside = binary_erosion(mask.decode(found["mask"]), iterations=2)  # without its edge
    drawn = np.asarray(Image.open(out / "clean.png")).astype(float)
    plain = np.asarray(Image.open(clean)).astype(float)
    color = np.array(object_color(CLASSES.index(found["name"])))
    tint = (1 - MASK_OPACITY) * plain + MASK_OPACITY * color
    left, top, right, bottom = map(round, found["box"])
    window = np.s_[top + 25 : bottom - 4, left + 4 : right - 4]  # without box and name
    assert inside[window].sum() > 20
    assert np.abs(drawn - tint)[window][inside[window]].max() <= 0.5


def test_two_images_of_one_name_are_both_kept(predict: Run, tmp_path: Path, photos: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").write_bytes((photos / "a.jpg").read_bytes())
    code, printed, _ = predict(photos / "a.jpg", other)
    assert code == 0
    assert [Path(line).name for line in printed.split()] == ["a.png", "a-2.png"]


def test_a_large_image_is_seen_reduced(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_fabric import Fabric

    from ecanet.config import PredictSettings
    from ecanet.detection.predict import predictor

    settings = PredictSettings(weights=str(weights), threshold=0.1, top=4)
    one = predictor.Predictor(Fabric(accelerator="cpu", devices=1), weights, settings)
    image = torch.randint(0, 255, (3, 24, 32), dtype=torch.uint8)
    image = image.repeat_interleave(20, 1).repeat_interleave(20, 2)
    whole = one.find(image)
    monkeypatch.setattr(predictor, "_MAX_PIXELS", 240 * 320)
    reduced = one.find(image)
    assert reduced["masks"].shape[2:] == (480, 640)
    assert reduced["masks"].dtype == torch.bool
    # The detector brings both to 64 pixels: it sees nearly the same.
    assert torch.allclose(whole["boxes"][0], reduced["boxes"][0], atol=20)


def test_a_video_is_drawn_frame_by_frame(predict: Run, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (320, 256))
    for shade in (0, 60, 120, 180):
        frame = np.zeros((256, 320, 3), np.uint8)
        frame[:, :, 2] = shade  # red, in OpenCV's order
        writer.write(frame)
    writer.release()
    out = tmp_path / "out"
    code, printed, err = predict(clip, "--threshold", 0.99, "--frames", 3)
    assert code == 0, err
    assert printed.split() == [str(out / "clip.mp4")]
    lines = [json.loads(line) for line in (out / "clip.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["seconds"]) for line in lines] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    capture = cv2.VideoCapture(str(out / "clip.mp4"))
    frames = [capture.read()[1] for _ in range(3)]
    assert capture.read()[0] is False
    corner = frames[2][-6:, -6:].mean((0, 1))
    assert corner[2] > 100 > 30 > corner[0], "red has stayed red"
    assert sorted(path.name for path in out.iterdir()) == ["clip.jsonl", "clip.mp4"]


@pytest.mark.slow
def test_a_run_s_epochs_become_an_animation(run: Run, tmp_path: Path, photos: Path) -> None:
    trained = tmp_path / "run"
    rows = []
    for epoch in range(3):
        file = trained / "epochs" / f"epoch{epoch + 1:04d}.safetensors"
        save_detector(file, detector(seed=epoch))
        rows.append({"epoch": epoch, "box_AP": 0.1 * epoch, "mask_AP": 0.05, "box_AP50": 0.9})
    with open(trained / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    flags = ("--checkpoints", trained, "--out", tmp_path / "out", "--threshold", 0.2)
    images = (photos / "a.jpg", photos / "b.png")
    code, printed, err = run("predict", *images, *flags, "--gif")
    assert (code, printed.split()) == (0, [str(tmp_path / "out" / "progress.gif")])
    assert err.splitlines()[2] == "epoch 3, box AP 20.0, mask AP 5.0"
    with Image.open(tmp_path / "out" / "progress.gif") as animation:
        assert animation.n_frames == 3
        assert animation.width == 800
        frames = []
        for number in range(3):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert np.abs(frames[0] - frames[2])[40:].max() > 50, "each epoch's weights see something else"
    code, printed, _ = run("predict", images[0], *flags)
    folders = [Path(line).parent.name for line in printed.split()]
    assert folders == ["epoch0001", "epoch0002", "epoch0003"]
    code, printed, err = run("predict", images[0], photos / "c.jpeg", *flags)
    assert (code, len(printed.split())) == (1, 3)
    assert "c.jpeg cannot be read as an image" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("predict", "which images?"),
        ("predict photos", "which weights?"),
        ("predict nowhere.jpg --weights W", "there is no image nowhere.jpg"),
        ("predict photos/*.webp --weights W", "there is no image photos/*.webp"),
        ("predict photos/c.jpeg --weights W", "photos/c.jpeg cannot be read as an image"),
        ("predict photos/a.jpg --weights nowhere.pth", "there is no weight file nowhere.pth"),
        ("predict photos/a.jpg --weights photos/b.png", "not a weight file"),
        ("predict photos --weights W --out photos", "holds the images themselves"),
        ("predict photos/a.jpg --weights W --out photos/a.jpg", "is a file"),
        ("predict photos/a.jpg --weights W --threshold 50", "from 0 to 1"),
        ("predict photos/a.jpg --weights W --top 0", "--top 0"),
        ("predict photos/a.jpg --weights W --frames 3", "leave it out for images"),
        ("predict photos/a.jpg --weights W --gif", "give --checkpoints"),
        ("predict photos/a.jpg --weights W --checkpoints photos", "which weights?"),
        ("predict photos/a.jpg --checkpoints photos", "--keep-epochs"),
        ("predict photos/a.jpg --weights W --color-by shape", "expected one of 'class', 'object'"),
        ("predict webcam:x --weights W", "webcam:1"),
        ("evaluate", "which images?"),
        ("evaluate photos", "which weights?"),
        ("evaluate photos --weights W", "has no annotations of val"),
        ("evaluate photos --weights W --batch-size 0", "--batch-size"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    refuse: Refuse, workdir: Path, photos: Path, weights: Path, arguments: str, says: str
) -> None:
    refuse(says, "detect", *arguments.replace(" W", f" {weights}").split())
    assert [path.name for path in workdir.iterdir()] == ["photos"], "nothing is left behind"


def test_a_broken_video_is_one_line(refuse: Refuse, tmp_path: Path, weights: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    flags = ("--weights", weights, "--out", tmp_path / "out")
    refuse("is not a video that can be read", "detect", "predict", tmp_path / "clip.mp4", *flags)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    draw_split(root, "val", 6)
    return root


def test_evaluation_prints_24_metrics_and_writes_what_the_official_tools_read(
    run: Run, tmp_path: Path, shapes: Path, weights: Path
) -> None:
    flags = ("--weights", weights, "--workers", 0, "--out", tmp_path, "--per-class")
    code, printed, err = run("evaluate", shapes, *flags)
    assert code == 0, err
    lines = printed.splitlines()
    assert lines[0].split()[:3] == ["AP", "AP50", "AP75"]
    assert [line.split()[0] for line in lines[1:3]] == ["box", "mask"]
    assert len(lines[2].split()) == 13
    assert any(line.startswith("ring (") for line in lines)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["metrics"]) == {"bbox", "segm"}
    assert len(metrics["classes"]) == 4
    truth = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    ids = {category["id"] for category in truth["categories"]}
    for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
        results = json.loads((tmp_path / f"detections.{kind}.json").read_text())
        assert results
        assert {result["category_id"] for result in results} <= ids, "the data's own"
        assert all(key in result for result in results)


def test_batches_and_bf16_find_the_same_boxes(run: Run, tmp_path: Path, shapes: Path) -> None:
    file = tmp_path / "retinanet.safetensors"
    save_detector(file, detector("retinanet"))
    flags = ("--weights", file, "--workers", 0, "--limit", 4)
    ways = ((), ("--batch-size", 3), ("--precision", "bf16"))
    printed = [run("evaluate", shapes, *flags, *more)[1] for more in ways]
    assert printed[0] == printed[1]
    assert all("mask" not in text and "box" in text for text in printed)


def test_weights_for_other_classes_are_refused(run: Run, tmp_path: Path, shapes: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_detector(file, detector(names=("dog", "cat", "circle")))
    code, _, err = run("evaluate", shapes, "--weights", file)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "the weights are for other classes (dog, cat, circle)" in err
    assert "square, triangle, ring" in err


def test_classes_are_matched_by_name(shapes: Path) -> None:
    from ecanet.detection.dataset import CocoFolder

    data = CocoFolder(shapes, "val")
    more = detector(names=("ring", "dog", "triangle", "square", "circle"))
    ids = dict(zip(data.class_names, data.category_ids, strict=True))
    ring, triangle, square, circle = (ids[n] for n in ("ring", "triangle", "square", "circle"))
    assert match_classes(more, data) == [ring, None, triangle, square, circle]
    nameless = detector(names=("1", "2", "3", "4"))
    with news() as said:
        assert match_classes(nameless, data) == data.category_ids
    assert "the weights do not name their classes" in said[0]
    twice = detector(names=("ring", "square", "triangle", "circle", "ring"))
    with pytest.raises(UserError, match="several classes of the name ring"):
        match_classes(twice, data)
