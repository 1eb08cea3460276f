import contextlib
import csv
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ecanet.config import EvaluateSettings, ImageAugmentation, Optimizer, Schedule, TrainSettings
from ecanet.errors import Preempted, UserError
from ecanet.models import create_model
from ecanet.training.classification import evaluate_classifier, train_classifier

SETTINGS = TrainSettings(
    model="resnet20",
    attention="eca",
    epochs=3,
    batch_size=8,
    lr_batch_size=None,
    image_size=16,
    eval_size=16,
    augmentation=ImageAugmentation(mixup=0.2, cutmix=1.0),
    optimizer=Optimizer(lr=0.05),
    ema_decay=0.9,
    drop_rate=0.2,
    save_every=2,
    workers=0,
    device="cpu",
    precision="float32",
)
# Processes that begin with the imports done, and without the threads of this one.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["ecanet.training.classification"])
TIMES = ("images_per_second", "seconds")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes, each with its colour, and noise."""
    chance = np.random.default_rng(0)
    root = tmp_path / "images"
    for label in range(3):
        for split, count in (("train", 15), ("val", 7)):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = chance.integers(0, 120, (20, 24, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def outcome(out: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """The bits of the weights, and metrics.csv without its times."""
    weights = {
        f"{name}.{key}": tensor.numpy().tobytes()
        for name in ("last", "best")
        for key, tensor in load_file(out / f"{name}.safetensors").items()
    }
    with open(out / "metrics.csv") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    return weights, rows


def test_weights_of_other_classes_and_another_stem_are_trained_on(
    images: Path, tmp_path: Path
) -> None:
    """A ResNet-18 for small images and seven classes, on images of three."""
    model = create_model("resnet18", stem="cifar", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    settings = replace(
        SETTINGS, model="resnet18", attention=None, epochs=1, weights=str(tmp_path / "small.pth")
    )
    said: list[str] = []
    record = train_classifier(images, tmp_path / "run", settings, say=said.append)
    assert any("the stem is that of" in line and "cifar" in line for line in said)
    assert any("a fresh classifier, for other classes: fc.weight" in line for line in said)
    found = evaluate_classifier(
        images,
        EvaluateSettings(weights=str(tmp_path / "run/last.safetensors"), device="cpu", workers=0),
    )
    assert found["top1"] == record["final"]["val_top1"]


def test_a_run_learns_and_its_weights_evaluate_as_measured(images: Path, tmp_path: Path) -> None:
    settings = replace(
        SETTINGS, epochs=15, ema_decay=None, augmentation=ImageAugmentation(scale=[0.8, 1.0])
    )
    record = train_classifier(images, tmp_path / "run", settings)
    final = record["final"]
    assert final["val_top1"] > 0.8
    assert json.loads((tmp_path / "run/record.json").read_text())["final"] == final
    found = evaluate_classifier(
        images,
        EvaluateSettings(
            weights=str(tmp_path / "run/last.safetensors"), batch_size=5, workers=0, device="cpu"
        ),
    )
    assert found["images"] == 21
    assert found["top1"] == final["val_top1"]
    assert found["loss"] == pytest.approx(final["val_loss"], rel=1e-5)
    assert found["top5"] == 1.0


def test_the_rate_follows_the_batch_and_is_told(images: Path, tmp_path: Path) -> None:
    news: list[str] = []
    settings = replace(SETTINGS, epochs=1, lr_batch_size=32, schedule=Schedule(name="constant"))
    record = train_classifier(images, tmp_path / "run", settings, say=news.append)
    assert record["final"]["lr"] == pytest.approx(0.05 * 8 / 32)
    assert "learning rate 0.0125: 0.05 for a batch of 32, times 8/32" in news


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_by_sigterm_it_saves_and_goes_on(
    images: Path, tmp_path: Path, workers: int
) -> None:
    settings = replace(SETTINGS, save_every=1000, epochs=12, workers=workers)
    train_classifier(images, tmp_path / "whole", replace(settings, workers=0))
    out = tmp_path / "cut"
    child = CLEAN.Process(target=_train_until_told, args=(images, out, settings))
    child.start()
    _wait_for(lambda: (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()))
    time.sleep(0.3)
    assert child.pid is not None
    with contextlib.suppress(ProcessLookupError):  # it may have come to its end on a fast machine
        os.kill(child.pid, signal.SIGTERM)
    child.join(60)
    assert child.exitcode in (0, 75)
    train_classifier(images, out, settings)
    assert outcome(out) == outcome(tmp_path / "whole")


def _train_until_told(images: Path, out: Path, settings: TrainSettings) -> None:
    try:
        train_classifier(images, out, settings)
    except Preempted:
        os._exit(75)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_twenty_moments_it_ends_with_the_same_bits(images: Path, tmp_path: Path) -> None:
    train_classifier(images, tmp_path / "whole", SETTINGS)
    out, chance, kills = tmp_path / "cut", random.Random(1), 0
    began = time.monotonic()
    train_classifier(images, tmp_path / "timed", SETTINGS)
    length = time.monotonic() - began
    while kills < 20:
        child = CLEAN.Process(target=_train_until_told, args=(images, out, SETTINGS))
        child.start()
        child.join(chance.random() * length / 6)
        if child.exitcode is None:
            child.kill()
            child.join()
            kills += 1
        elif kills < 20:
            # It came to its end before twenty kills: once more, from the beginning.
            assert outcome(out) == outcome(tmp_path / "whole")
            out = tmp_path / f"cut{kills}"
    train_classifier(images, out, SETTINGS)
    assert outcome(out) == outcome(tmp_path / "whole")


def test_damaged_checkpoints_never_stop_the_run(images: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=2)
    train_classifier(images, tmp_path / "whole", settings)
    train_classifier(images, tmp_path / "cut", replace(settings))
    # Its last checkpoint is of the end; without it the run goes on from the one before.
    news: list[str] = []
    last = max((tmp_path / "cut/checkpoints").iterdir())
    last.write_bytes(last.read_bytes()[:-7])
    train_classifier(images, tmp_path / "cut", settings, say=news.append)
    assert any(last.name in line and "damaged" in line for line in news)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_settings_changed_on_resume(images: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    out = tmp_path / "run"
    train_classifier(images, out, settings)
    slower = replace(settings, epochs=2, optimizer=Optimizer(lr=0.01))
    with pytest.raises(UserError, match=r"lr: 0.05 there, 0.01 asked.*--accept-changes"):
        train_classifier(images, out, slower)
    news: list[str] = []
    record = train_classifier(images, out, slower, accept_changes=True, say=news.append)
    assert any("optimizer.lr: 0.05 there, 0.01 asked" in line for line in news)
    assert record["epochs"][1]["lr"] < 0.01
    with pytest.raises(UserError, match="model: resnet20 there, resnet32 asked"):
        train_classifier(images, out, replace(slower, model="resnet32"), accept_changes=True)
    # Where and how fast it goes may change without a word.
    train_classifier(images, out, replace(slower, save_every=7, rollbacks=1))


def test_values_that_are_not_finite(images: Path, tmp_path: Path) -> None:
    """A rate so high that it explodes: steps are skipped, the run goes back, then gives up."""
    news: list[str] = []
    settings = replace(
        SETTINGS,
        optimizer=Optimizer(lr=1e30),
        schedule=Schedule(name="constant"),
        rollbacks=2,
    )
    with pytest.raises(UserError, match="not finite 3 steps in a row, even after 2 returns"):
        train_classifier(images, tmp_path / "run", settings, say=news.append)
    assert sum("step skipped" in line for line in news) >= 9
    assert sum("of the learning rate" in line for line in news) == 2
    assert any("0.25 of the learning rate" in line for line in news)


def test_a_run_that_diverged_in_its_last_steps_is_recorded(images: Path, tmp_path: Path) -> None:
    """Its weights are finite and its losses no longer: the record has null there, and is read again."""
    settings = replace(
        SETTINGS, epochs=1, batch_size=45, ema_decay=None, optimizer=Optimizer(lr=1e38),
        schedule=Schedule(name="constant"), augmentation=ImageAugmentation(),
    )  # fmt: skip
    first = train_classifier(images, tmp_path / "run", settings)
    assert not math.isfinite(first["final"]["val_loss"])
    written = json.loads((tmp_path / "run" / "record.json").read_text())
    assert written["final"]["val_loss"] is None
    again = train_classifier(images, tmp_path / "run", settings)
    assert math.isnan(again["final"]["val_loss"])


@pytest.mark.parametrize("when", ["loss", "epoch 1"])
def test_a_run_whose_folder_is_moved_stops_and_goes_on_there(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """In the middle of an epoch, and after its checkpoint."""
    out, moved = tmp_path / "run", tmp_path / "moved"
    settings = replace(SETTINGS, epochs=2)

    def move(*_: object) -> None:
        if out.exists():
            out.rename(moved)

    def hear(line: str) -> None:
        if line.startswith(when):
            move()

    with monkeypatch.context() as patch:
        if when == "loss":
            patch.setattr("ecanet.training.guard.FiniteGuard.before_step", move)
        with pytest.raises(UserError, match="run was moved, deleted or replaced"):
            train_classifier(images, out, settings, say=hear)
    assert not out.exists()
    train_classifier(images, moved, settings)
    train_classifier(images, tmp_path / "whole", settings)
    assert outcome(moved) == outcome(tmp_path / "whole")


def test_a_corrupt_image(images: Path, tmp_path: Path) -> None:
    broken = images / "train/class1/3.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"class1/3.png cannot be decoded.*--corrupt replace"):
        train_classifier(images, tmp_path / "a", replace(SETTINGS, epochs=1, workers=1))
    news: list[str] = []
    settings = replace(SETTINGS, epochs=2, corrupt="replace")
    record = train_classifier(images, tmp_path / "b", settings, say=news.append)
    assert sum("class1/3.png" in line for line in news) == 1
    assert record["final"]["corrupt_files"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "--epochs 0"),
        ({"batch_size": 46}, "from 1 to 45"),
        ({"model": "resnet21"}, "Did you mean"),
        ({"device": "cuda:7"}, "CUDA devices"),
        ({"optimizer": Optimizer(lr=0)}, "--optimizer.lr"),
        ({"weights": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_settings_that_cannot_be_used(
    images: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_classifier(images, tmp_path / "run", replace(SETTINGS, **change))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_and_evaluate_as_one(images: Path, tmp_path: Path) -> None:
    """The same gradients, step by step, give the same weights; 21 images of val are no multiple of 2."""
    plugin = Path(__file__).parents[1] / "helpers" / "plain_cnn.py"
    arguments = [
        "train", str(images), "-m", "plain_cnn", "--plugin", str(plugin), "--epochs", "2", "-b", "8",
        "--lr", "0.1", "--lr-batch-size", "null", "--image-size", "16", "--eval-size", "16",
        "--workers", "0", "--device", "cpu", "--precision", "float32", "--schedule.name", "constant",
    ]  # fmt: skip
    one = [sys.executable, "-m", "ecanet"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*one, *arguments, "--out", str(tmp_path / "one")], check=True)
    subprocess.run([*two, "-m", "ecanet", *arguments, "--out", str(tmp_path / "two")], check=True)
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-4, atol=1e-6)
    ours, theirs = outcome(tmp_path / "one")[1], outcome(tmp_path / "two")[1]
    for mine, other in zip(ours, theirs, strict=True):
        for name, value in mine.items():
            assert float(other[name]) == pytest.approx(float(value), rel=1e-4), name
    evaluate = [
        "evaluate", str(images), "--weights", str(tmp_path / "two/last.safetensors"), "--plugin",
        str(plugin), "--workers", "0", "--device", "cpu", "--batch-size", "8",
    ]  # fmt: skip
    done = subprocess.run(
        [*two, "-m", "ecanet", *evaluate], check=True, capture_output=True, text=True
    )
    assert done.stdout.count("top-1") == 1, "the first process speaks for all"
    assert "21 images" in done.stdout
    top1 = float(done.stdout.split("top-1 ")[1].split()[0])
    assert top1 == pytest.approx(100 * float(theirs[-1]["val_top1"]), abs=0.005)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--workers", "1"], "a process that reads images was lost"),
        (["--workers", "0", "--devices", "2"], "a process of the run was killed by SIGKILL"),
    ],
)
def test_a_process_that_was_killed_is_named(
    images: Path, tmp_path: Path, flags: list[str], line: str
) -> None:
    """An image reader, and the second of two devices' processes."""
    command = [
        sys.executable, "-m", "ecanet", "train", str(images), "--out", str(tmp_path / "run"),
        "-m", "resnet20", "--epochs", "100000", "-b", "8", "--image-size", "16",
        "--eval-size", "16", "--device", "cpu", *flags,
    ]  # fmt: skip
    with open(tmp_path / "err", "w") as err:
        process = subprocess.Popen(command, stdout=err, stderr=err)
    try:
        _wait_for(lambda: (tmp_path / "run/metrics.csv").exists(), 120)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert process.wait(60) == 2
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "err").read_text()
    assert "Traceback" not in said
    assert line in said.splitlines()[-1]
    assert said.splitlines()[-1].endswith("the same command resumes")


def _wait_for(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)
