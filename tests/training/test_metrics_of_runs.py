"""What a classifier's run measures and keeps of each image, and how it weighs rare classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import IN_MEMORY, STREAMED, draw_colors
from lightning_fabric import Fabric
from safetensors.torch import load_file

from ecanet.config import ClassificationSettings, EvaluateSettings
from ecanet.data import load_data
from ecanet.data.batches import DeviceBatches
from ecanet.errors import UserError
from ecanet.metrics import METRICS, best_row, classification_metrics
from ecanet.predictions import PREDICTIONS, read_predictions
from ecanet.training import classification
from ecanet.training.classification import ClassificationTask, balanced_weights
from ecanet.training.evaluate import evaluate_classifier
from ecanet.training.train import train, train_in_study

DIGITS = ClassificationSettings(
    data="digits", model="resnet20", epochs=2, batch_size=256, device="cpu", precision="float32",
    compile="off",
)  # fmt: skip


@pytest.mark.parametrize("metric", ["macro_f1", "loss"])
def test_a_run_is_judged_by_every_metric_and_keeps_its_predictions(
    tmp_path: Path, metric: str
) -> None:
    settings = replace(DIGITS, metric=metric, select="best")
    record = train(settings, tmp_path)
    for row in record.epochs:
        assert {f"val_{name}" for name in (*METRICS, "top5")} <= row.keys()
    best = best_row(record.epochs, f"val_{metric}")
    choose = min if metric == "loss" else max
    assert best[f"val_{metric}"] == choose(row[f"val_{metric}"] for row in record.epochs)
    assert record.final["epoch"] == best["epoch"]
    found, data = read_predictions(tmp_path / PREDICTIONS), load_data("digits")
    assert data.test is not None
    assert found.images == data.names("test")
    assert found.classes == data.classes
    assert found.labels.tolist() == data.test.labels.tolist()
    assert record.final["test_accuracy"] == found.right.mean()
    scores = found.scores.astype(np.float32)
    rounded = classification_metrics(scores, found.labels, found.predicted)
    for name, value in rounded.items():
        assert record.final[f"test_{name}"] == pytest.approx(value, abs=2e-3), name


def test_the_weights_of_the_best_epoch_are_those_of_the_metric(tmp_path: Path) -> None:
    """Evaluated anew, they give the recorded figures."""
    record = train(replace(DIGITS, metric="calibration_error", select="best"), tmp_path)
    settings = EvaluateSettings(weights=str(tmp_path / "best.safetensors"), device="cpu", workers=0)
    measured = evaluate_classifier(Path("digits"), settings)
    for name in METRICS:
        assert measured[name] == pytest.approx(record.final[f"test_{name}"], abs=1e-5), name


def test_of_many_scores_epochs_measure_what_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "_CHEAP", 100)
    (row,) = train(replace(DIGITS, epochs=1), tmp_path / "few").epochs
    assert {name for name in row if name.startswith("val_")} == {
        "val_loss", "val_accuracy", "val_top5",
    }  # fmt: skip
    record = train(replace(DIGITS, epochs=1, metric="macro_f1"), tmp_path / "more")
    assert "val_macro_f1" in record.epochs[0]
    assert "val_auroc" not in record.epochs[0]
    assert {f"test_{name}" for name in METRICS} <= record.final.keys()


@pytest.mark.parametrize("settings", [STREAMED, IN_MEMORY], ids=["stream", "memory"])
def test_without_a_test_split_predictions_are_of_validation(
    tmp_path: Path, settings: ClassificationSettings
) -> None:
    images = draw_colors(tmp_path / "images")
    record = train(replace(settings, data=str(images), epochs=2), tmp_path / "run")
    found = read_predictions(tmp_path / "run" / PREDICTIONS)
    assert all(name.startswith("val/") for name in found.images)
    assert found.right.mean() == record.final["val_accuracy"]


def test_images_that_cannot_be_decoded_have_no_prediction(tmp_path: Path) -> None:
    images = draw_colors(tmp_path / "images")
    broken = next((images / "val").glob("*/*"))
    broken.write_bytes(broken.read_bytes()[:60])
    settings = replace(STREAMED, data=str(images), epochs=1, corrupt="skip")
    record = train(settings, tmp_path / "run")
    found = read_predictions(tmp_path / "run" / PREDICTIONS)
    files = [f for f in (images / "val").glob("*/*") if f.is_file()]
    assert len(found.images) == len(files) - 1
    assert str(broken.relative_to(images)) not in found.images
    assert found.right.mean() == record.final["val_accuracy"]


def test_a_trial_keeps_neither_weights_nor_predictions(tmp_path: Path) -> None:
    data = load_data("digits")
    settings = classification.resolve(replace(DIGITS, epochs=1, attention="none"), data)
    record = train_in_study(settings, tmp_path, data, test=False)
    assert "test_loss" not in record.final
    assert not {PREDICTIONS, "last.safetensors"} & {path.name for path in tmp_path.iterdir()}


def unbalanced() -> tuple[ClassificationSettings, object]:
    data = load_data("digits")
    kept = [i for i, label in enumerate(data.train.labels.tolist()) if label > 3 or i % 8 == 0]
    data.train = data.train.subset(kept)
    return replace(DIGITS, image_size=8), data


def test_balanced_class_weights() -> None:
    """n / (C n_c), held to a loop; the loss is the weighted mean over the images."""
    settings, data = unbalanced()
    labels = data.train.labels
    counts = torch.bincount(labels)
    weights = balanced_weights(data)
    assert torch.allclose(weights, len(labels) / (10 * counts.float()))
    assert float(weights[labels].mean()) == pytest.approx(1, abs=1e-5)
    torch.manual_seed(0)
    logits, some = torch.randn(16, 10), labels[:16]
    fabric = Fabric(accelerator="cpu", devices=1)
    settings = classification.resolve(settings, data)
    task = ClassificationTask(replace(settings, class_weights="balanced"), data, fabric)
    loss = task.criterion(logits, some).mean()
    by_hand = [
        -weights[label] * torch.log_softmax(row, 0)[label]
        for row, label in zip(logits, some, strict=True)
    ]
    assert torch.allclose(loss, torch.stack(by_hand).mean())
    plain = ClassificationTask(settings, data, fabric).criterion(logits, some).mean()
    assert torch.equal(plain, torch.nn.functional.cross_entropy(logits, some))


def test_balanced_sampling_in_memory() -> None:
    _, data = unbalanced()

    def labels(seed: int, step: int = 0, **share: int) -> list[torch.Tensor]:
        batches = DeviceBatches(
            data.train, data, 100, shuffle="balanced", seed=seed, drop_last=True, **share
        )
        batches.seek(3, step)
        return [batch.labels for batch in batches]

    whole = labels(0)
    rare = (torch.cat(whole) <= 3).float().mean()
    assert (data.train.labels <= 3).float().mean() < 0.15
    assert float(rare) == pytest.approx(0.4, abs=0.08)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], labels(0, 4), strict=True))
    shares = [labels(0, process=rank, processes=2) for rank in range(2)]
    assert all(torch.equal(w[::2], s) for w, s in zip(whole, shares[0], strict=True))
    assert all(torch.equal(w[1::2], s) for w, s in zip(whole, shares[1], strict=True))


@pytest.mark.parametrize("settings", [STREAMED, IN_MEMORY], ids=["stream", "memory"])
def test_balanced_sampling_trains(tmp_path: Path, settings: ClassificationSettings) -> None:
    """In both ways of holding images, and differently from each image once."""
    images = draw_colors(tmp_path / "images")
    settings = replace(settings, data=str(images), epochs=1)
    train(replace(settings, balanced_sampling=True), tmp_path / "balanced")
    train(replace(settings, balanced_sampling=True), tmp_path / "again")
    train(settings, tmp_path / "plain")
    one, two, other = (
        load_file(tmp_path / name / "last.safetensors") for name in ("balanced", "again", "plain")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"class_weights": "balanced", "balanced_sampling": True}, "both make up for rare classes"),
        ({"class_weights": "balanced", "loss": "bce"}, "is for --loss cross_entropy"),
    ],
)
def test_what_would_correct_twice_is_refused(flags: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(DIGITS, **flags)
