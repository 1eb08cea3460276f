"""``ecanet predict``, and the figures per class of ``ecanet evaluate``, as a user meets them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Refuse, Run
from helpers.detectors import small_detector
from helpers.photographs import draw_photographs
from sklearn.metrics import confusion_matrix

from ecanet.config import ClassifySettings
from ecanet.data.preprocessing import Preprocessing
from ecanet.detection import save_detector
from ecanet.errors import UserError
from ecanet.experiments.study.winner import find_weights
from ecanet.models import create_model
from ecanet.models.weights.save import save_weights
from ecanet.predictions import read_predictions
from ecanet.training.predict import predict_images

CPU = ("--device", "cpu", "--workers", "0")
NAMES = ["class0", "class1", "<b>=third"]


def save(path: Path, classes: list[str] | None, outputs: int = 3) -> Path:
    torch.manual_seed(0)
    model = create_model("resnet20", num_classes=outputs)
    save_weights(
        path, model.state_dict(), model="resnet20", attention="none", num_classes=outputs, in_chans=3,
        model_args={}, preprocessing=Preprocessing(32, 36), classes=classes,
    )  # fmt: skip
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save(tmp_path / "weights.safetensors", NAMES)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_photographs(tmp_path / "images", ["val"], side=40)


def test_files_folders_and_patterns(images: Path, weights: Path, tmp_path: Path, run: Run) -> None:
    (images / "val" / "bad.png").write_text("nothing")
    outputs = [tmp_path / f"out.{kind}" for kind in ("csv", "json", "html")]
    flags = [part for path in outputs for part in (f"--{path.suffix[1:]}", path)]
    pattern = images / "val" / "*" / "1.jpg"
    code, printed, err = run(
        "predict", images, pattern, "nowhere", "--weights", weights, *CPU, *flags
    )
    assert code == 1
    assert "there is no image nowhere" in err
    assert "bad.png cannot be read as an image" in err
    assert "2 names could not be read; 10 images predicted" in err.splitlines()[-1]
    assert len(printed.splitlines()) == 10, "an image that is named twice is predicted once"
    with outputs[0].open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    found = json.loads(outputs[1].read_text())
    assert len(rows) == len(found["images"]) == 10
    assert len(found["unreadable"]) == 2
    for row, one, line in zip(rows, found["images"], printed.splitlines(), strict=True):
        assert row["image"] == one["image"]
        assert line.startswith(f"{row['image']}: {one['classes'][0]['name']} ")
        assert sum(c["probability"] for c in one["classes"]) == pytest.approx(1, abs=1e-4)
        assert (
            float(row["probability"]) >= float(row["probability_2"]) >= float(row["probability_3"])
        )
    page = outputs[2].read_text()
    assert page.count("<img ") == 10
    assert "<b>=third" not in page
    assert "&lt;b&gt;=third" in page
    assert "default-src 'none'" in page


def test_evaluate_takes_the_same_classes(
    images: Path, weights: Path, tmp_path: Path, run: Run
) -> None:
    """Weights with more classes than the folder: means are over the classes that occur."""
    out = tmp_path / "out"
    code, printed, err = run("evaluate", images, "--weights", weights, *CPU, "--out", out)
    assert code == 0, err
    assert "balanced accuracy" in printed
    found = read_predictions(out / "predictions.parquet")
    assert found.classes == NAMES
    answers = predict_images([str(images / file) for file in found.images], settings(weights))
    assert [one.classes[0][0] for one in answers] == [NAMES[i] for i in found.predicted]
    wanted = confusion_matrix(found.labels, found.predicted, labels=[0, 1, 2])
    with (out / "per_class.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["class"] for row in rows] == NAMES[:2]
    recalls = [wanted[i, i] / wanted[i].sum() for i in range(2)]
    assert [float(row["accuracy"]) for row in rows] == recalls
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    with (out / "confusion.csv").open(newline="") as lines:
        header, *matrix = csv.reader(lines)
    used = [i for i in range(3) if wanted[i].sum() + wanted[:, i].sum()]
    assert [name.lstrip("'") for name in header[1:]] == [NAMES[i] for i in used]
    assert [[int(cell) for cell in line[1:]] for line in matrix] == wanted[
        np.ix_(used, used)
    ].tolist()
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("names", [None, NAMES])
def test_processes_that_read_change_nothing(
    images: Path, tmp_path: Path, names: list[str] | None
) -> None:
    weights = save(tmp_path / "w.safetensors", names)
    files = sorted(map(str, images.rglob("*.jpg")))

    def answers(workers: int) -> Iterator[tuple[str, list[tuple[str, float]]]]:
        for one in predict_images(files, settings(weights, workers=workers, batch_size=3)):
            yield one.image, one.classes

    assert list(answers(0)) == list(answers(2))
    if names is None:
        assert {name for _, classes in answers(0) for name, _ in classes} == {"0", "1", "2"}


def test_classes_of_imagenet_have_names(images: Path, tmp_path: Path) -> None:
    weights = save(tmp_path / "w.safetensors", None, outputs=1000)
    (one,) = predict_images([str(next(images.rglob("*.jpg")))], settings(weights, top=1000))
    assert len(one.classes) == 1000
    assert {"tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue"} <= {
        n for n, _ in one.classes
    }


def test_what_is_refused(images: Path, weights: Path, tmp_path: Path, refuse: Refuse) -> None:
    detector, one = tmp_path / "detector.safetensors", images / "val" / "class0" / "0.jpg"
    save_detector(detector, small_detector("faster_rcnn", num_classes=2))
    bad, empty = tmp_path / "bad.jpg", tmp_path / "empty"
    bad.write_text("nothing")
    empty.mkdir()
    ours = ["--weights", weights, *CPU]
    refuse("which images?", "predict")
    refuse("which weights?", "predict", one)
    refuse("`ecanet detect predict`", "predict", one, "--weights", detector, *CPU)
    refuse("there is no image nowhere", "predict", "nowhere", *ours)
    refuse("there is no image in the folder", "predict", empty, *ours)
    refuse("cannot be read as an image", "predict", bad, *ours)
    refuse("is one of the images", "predict", one, *ours, "--csv", one)
    refuse(
        "name the same file",
        "predict",
        one,
        *ours,
        "--csv",
        tmp_path / "x",
        "--html",
        tmp_path / "x",
    )
    refuse("is a folder", "predict", one, *ours, "--html", tmp_path)
    for flag in ("--csv", "--html"):
        refuse("bad.jpg: File exists", "predict", one, *ours, flag, bad / "x")
    refuse("its folder does not exist", "predict", one, *ours, f"--json={bad}/x")
    assert not (tmp_path / "x").exists()


def test_a_run_stands_for_its_weights(tmp_path: Path, weights: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"select": "last"}))
    with pytest.raises(UserError, match="has no weights"):
        find_weights(str(run))
    for name in ("best", "last"):
        (run / f"{name}.safetensors").write_bytes(weights.read_bytes())
    assert find_weights(str(run)) == str(run / "last.safetensors")
    assert find_weights("hf-hub:timm/resnet18") == "hf-hub:timm/resnet18"


@pytest.mark.slow
def test_a_study_stands_for_its_best_run(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "study"
    small = ["--epochs", "1", "--seeds", "2", "--jobs", "1", "--device", "cpu"]
    code, _, err = run(
        "compare", "digits", "-m", "resnet20", "--attention", "none,eca", *small, "--out", out
    )
    assert code == 0, err
    values = {
        folder.name: json.loads((folder / "record.json").read_text())["final"]["val_accuracy"]
        for folder in (out / "runs").iterdir()
    }
    module = max(("none", "eca"), key=lambda m: values[f"{m}-seed0"] + values[f"{m}-seed1"])
    best = max((f"{module}-seed0", f"{module}-seed1"), key=values.__getitem__)
    chosen = out / "runs" / best
    for file in chosen.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=f"{best}.*were not kept"):
        find_weights(str(out))
    (chosen / "best.safetensors").write_bytes(b"")
    assert find_weights(str(out)) == str(chosen / "best.safetensors")


def settings(weights: Path, workers: int = 0, **others: int) -> ClassifySettings:
    return ClassifySettings(weights=str(weights), device="cpu", workers=workers, **others)


@pytest.mark.slow
def test_figures_are_the_same_on_two_processes(images: Path, weights: Path, tmp_path: Path) -> None:
    (images / "val" / "class0" / "bad.jpg").write_text("nothing")
    found = []
    for devices in ("1", "2"):
        out = tmp_path / devices
        flags = ["--corrupt", "skip", "--batch_size", "3", "--devices", devices, "--out", str(out)]
        command = ["evaluate", str(images), "--weights", str(weights), *CPU, *flags]
        done = subprocess.run(
            [sys.executable, "-m", "ecanet", *command], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.append(read_predictions(out / "predictions.parquet"))
    one, two = found
    assert one.images == two.images
    assert len(one.images) == 10
    assert one.labels.tolist() == two.labels.tolist()
    np.testing.assert_allclose(one.scores, two.scores, rtol=2e-3, atol=2e-3)
