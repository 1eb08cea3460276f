"""Training of classifiers: what is theirs alone. What every task keeps to is in test_tasks.py."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.runs import STREAMED, draw_colors, outcome
from helpers.waiting import wait_until
from safetensors.torch import load_file

from ecanet.config import (
    Augmentation,
    ClassificationSettings,
    EvaluateSettings,
    Optimizer,
    Schedule,
)
from ecanet.data import load_data
from ecanet.errors import UserError
from ecanet.models import create_model
from ecanet.record import Record
from ecanet.training.classification import build_model, resolve
from ecanet.training.evaluate import evaluate_classifier
from ecanet.training.train import train

DIGITS = ClassificationSettings(
    data="digits",
    epochs=3,
    batch_size=256,
    device="cpu",
    precision="float32",
    augmentation=Augmentation(crop_padding=1),
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_colors(tmp_path / "images")


def run(images: Path, out: Path, settings: ClassificationSettings = STREAMED) -> Record:
    return train(replace(settings, data=str(images)), out)


def evaluate(images: Path, run: Path, **flags: int) -> dict[str, float]:
    weights = str(run / "last.safetensors")
    settings = EvaluateSettings(weights=weights, device="cpu", workers=0, **flags)  # type: ignore[arg-type]
    return evaluate_classifier(images, settings)


def test_what_is_open_in_the_settings_is_settled_by_small_images() -> None:
    settings = resolve(replace(DIGITS, batch_size=None, epochs=None), load_data("digits"))
    assert (settings.model, settings.epochs, settings.batch_size) == ("resnet20", 30, 128)
    assert (settings.storage, settings.image_size, settings.eval_size) == ("memory", 8, 8)
    assert (settings.select, settings.validation) == ("last", 0.1)
    assert settings.augmentation == Augmentation(flip=False, crop_padding=1)
    assert resolve(DIGITS, load_data("digits")).optimizer.lr == 0.2, "sgd's follows the batch"


@pytest.mark.parametrize(("side", "padding"), [(4, 1), (8, 1), (28, 3), (32, 4), (64, 4)])
def test_the_crop_follows_the_size_of_small_images(side: int, padding: int) -> None:
    data = load_data("digits")
    data.train_size = side
    settings = resolve(replace(DIGITS, augmentation=Augmentation()), data)
    assert settings.augmentation.crop_padding == padding


def test_the_metrics_are_those_of_the_best_weights(tmp_path: Path) -> None:
    """Accuracy and loss on test, against a plain loop over the best epoch's weights."""
    settings = replace(DIGITS, attention="se", select="best", optimizer=Optimizer(lr=0.05))
    record = train(settings, tmp_path)
    accuracies = [row["val_accuracy"] for row in record.epochs]
    assert accuracies[int(record.final["epoch"])] == record.final["val_accuracy"] == max(accuracies)
    data = load_data("digits")
    assert data.test is not None
    model = build_model(replace(settings, model="resnet20", image_size=8), data).eval()
    model.load_state_dict(load_file(tmp_path / "best.safetensors"))
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (data.mean, data.std))
    with torch.no_grad():
        logits = model((data.test.images / 255 - mean) / std)
    labels = data.test.labels
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert record.final["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert record.final["test_loss"] == pytest.approx(loss, rel=1e-4)


def test_runs_of_one_seed_are_paired() -> None:
    """The same initial common weights for every attention module, and others for another seed."""
    data = load_data("digits")

    def initial(attention: str, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        settings = replace(DIGITS, model="resnet20", image_size=8, attention=attention)
        return build_model(settings, data).state_dict()

    plain, eca, cbam = (initial(attention, 5) for attention in ("none", "eca", "cbam"))
    for name, value in plain.items():
        assert torch.equal(value, eca[name]), name
        assert torch.equal(value, cbam[name]), name
    assert not torch.equal(plain["fc.weight"], initial("none", 6)["fc.weight"])


def test_weights_of_other_classes_and_another_stem_are_trained_on(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A ResNet-18 for small images and seven classes, on images of three."""
    model = create_model("resnet18", stem="cifar", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    settings = replace(
        STREAMED, model="resnet18", attention=None, epochs=1, weights=str(tmp_path / "small.pth")
    )
    with caplog.at_level("INFO", "ecanet"):
        record = run(images, tmp_path / "run", settings)
    assert any(
        line.startswith("read from") and line.endswith("stem cifar") for line in caplog.messages
    )
    assert any("a new classifier: fc.weight" in x for x in caplog.messages)
    found = evaluate(images, tmp_path / "run")
    assert found["accuracy"] == record.final["val_accuracy"]


def test_a_run_learns_and_its_weights_evaluate_as_measured(images: Path, tmp_path: Path) -> None:
    crops = Augmentation(scale=[0.8, 1.0])
    settings = replace(STREAMED, epochs=15, ema_decay=None, augmentation=crops)
    record = run(images, tmp_path / "run", settings)
    final = record.final
    assert final["val_accuracy"] > 0.8
    assert json.loads((tmp_path / "run/record.json").read_text())["final"] == final
    found = evaluate(images, tmp_path / "run", batch_size=5)
    assert found["images"] == 21
    assert found["accuracy"] == final["val_accuracy"]
    assert found["loss"] == pytest.approx(final["val_loss"], rel=1e-5)
    assert found["top5"] == 1.0


def test_rate_follows_batch(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = replace(STREAMED, epochs=1, lr_batch_size=32, schedule=Schedule(name="constant"))
    with caplog.at_level("INFO", "ecanet"):
        record = run(images, tmp_path / "run", settings)
    assert record.epochs[0]["lr"] == pytest.approx(0.05 * 8 / 32)
    assert "learning rate 0.0125: 0.05 for a batch of 32, times 8/32" in caplog.messages


def test_a_run_that_diverged_in_its_last_steps_is_recorded(images: Path, tmp_path: Path) -> None:
    """Its weights are finite and its losses no longer: the record has null there, and is read again."""
    settings = replace(
        STREAMED, epochs=1, batch_size=45, ema_decay=None, optimizer=Optimizer(lr=1e38),
        schedule=Schedule(name="constant"), augmentation=Augmentation(),
    )  # fmt: skip
    first = run(images, tmp_path / "run", settings)
    assert not math.isfinite(first.final["val_loss"])
    written = json.loads((tmp_path / "run" / "record.json").read_text())
    assert written["final"]["val_loss"] is None
    again = run(images, tmp_path / "run", settings)
    assert math.isnan(again.final["val_loss"])


def test_a_corrupt_image(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = images / "train/class1/3.jpg"
    broken.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"class1/3.jpg cannot be decoded.*--corrupt skip"):
        run(images, tmp_path / "a", replace(STREAMED, epochs=1, workers=1))
    record = run(images, tmp_path / "b", replace(STREAMED, epochs=2, corrupt="skip"))
    assert sum("class1/3.jpg" in line for line in caplog.messages) == 1
    assert [row["corrupt_files"] for row in record.epochs] == [1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
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
        run(images, tmp_path / "run", replace(STREAMED, **change))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_and_evaluate_as_one(images: Path, tmp_path: Path) -> None:
    """The same gradients, step by step, give the same weights; 21 images of val are no multiple of 2."""
    plugin = Path(__file__).parents[1] / "helpers" / "plain_cnn.py"
    arguments = [
        "train", str(images), "-m", "plain_cnn", "--plugin", str(plugin), "--epochs", "2", "-b", "8",
        "--lr", "0.1", "--lr-batch-size", "null", "--image-size", "16", "--storage", "stream",
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
    command = [*two, "-m", "ecanet", *evaluate]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1, "the first process speaks for all"
    assert "21 images" in done.stdout
    top1 = float(done.stdout.split("top-1 ")[1].split()[0])
    assert top1 == pytest.approx(100 * float(theirs[-1]["val_accuracy"]), abs=0.005)


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
        "--storage", "stream", "--device", "cpu", *flags,
    ]  # fmt: skip
    with open(tmp_path / "err", "w") as err:
        process = subprocess.Popen(command, stdout=err, stderr=err)
    try:
        wait_until(lambda: (tmp_path / "run/metrics.csv").exists(), 120)
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
