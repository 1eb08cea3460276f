"""Checks of the baseline: curves made to have a defect, and real runs."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ecanet
from ecanet.config import (
    Augmentation,
    ClassificationSettings,
    Optimizer,
    Schedule,
    StudySettings,
    YoloSettings,
)
from ecanet.experiments.analysis.adequacy import baseline_adequacy, failed, references, warnings
from ecanet.experiments.analysis.compare import BOX_AP, Metric, StudySummary, metric_of
from ecanet.experiments.analysis.predictions import Answers
from ecanet.record import Cost, Record, Speed
from ecanet.training.optim import lr_factor

RESULTS = Path(__file__).parents[3] / "results"
CIFAR10 = {"data": "/photos/cifar10", "images": 45_000, "image_size": 32, "majority": 0.1}


def study(
    score: float | list[float] = 0.9,
    epochs: int = 30,
    *,
    curve: Any = None,
    trained: float | None = None,
    rate: Any = None,
    images: int | None = 900,
    majority: float | None = 0.1,
    parameters: int = 0,
    **settings: Any,
) -> StudySummary:
    """Return a study of the plain network, a run for each score.

    Args:
        curve: the validation accuracy of each epoch, relative to the last; by default it settles.
        trained: the last training accuracy; by default the score.
        rate: of each epoch; by default a cosine.
        images: of an epoch.
    """
    scores = score if isinstance(score, list) else [score] * 3
    settings = {
        "data": "/photos/mine",
        "model": "resnet18",
        "epochs": epochs,
        "batch_size": 128,
        "validation": 0.1,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "cosine", "milestones": [30, 60, 90]},
    } | settings
    if rate is None:
        rate = [0.1 * lr_factor(Schedule(), e + 1 - 1e-3, epochs) for e in range(epochs)]
    if curve is None:
        curve = -np.exp(-8 * np.arange(epochs) / epochs)
    records = []
    for seed, value in enumerate(scores):
        rows = [
            {"epoch": e, "train_loss": 1.0, "lr": rate[e], "seconds": 2.0}
            | {"train_accuracy": value if trained is None else trained}
            | {"val_accuracy": value + float(curve[e]), "box_AP": value + float(curve[e])}
            | ({} if images is None else {"images_per_second": images / 2})
            for e in range(epochs)
        ]
        final = {"epoch": epochs - 1, "train_seconds": 1.0, "test_accuracy": value, "box_AP": value}
        records.append(Record(settings | {"attention": "none", "seed": seed}, {}, rows, final))
    speed = Speed(1.0, 1.0, 1.0, 5)
    cost = Cost("none", parameters, 0, 1, speed, speed, None, 128, "cpu", "float32")
    seeds = list(range(len(scores)))
    return StudySummary("", ["none"], seeds, settings, {}, records, [cost], majority=majority)


def found(summary: StudySummary) -> dict[str, str]:
    return {check.name: check.evidence for check in failed(baseline_adequacy(summary))}


def outcome(summary: StudySummary, name: str) -> str:
    return next(check.outcome for check in baseline_adequacy(summary) if check.name == name)


def test_a_rate_that_was_divided_by_ten_is_annealed() -> None:
    assert 0.1 * 0.1 / 0.1 > 0.1, "in floating point"
    assert not found(study(rate=[0.1] * 20 + [0.1 * 0.1] * 10))


def test_more_epochs_are_the_remedy_where_a_cosine_has_none_to_fall_in() -> None:
    checks = failed(baseline_adequacy(study(0.9, 2, rate=[0.063, 0.0625])))
    (check,) = [check for check in checks if check.name == "rate not annealed"]
    assert (check.remedy, check.flags) == ("train for more epochs", "--epochs 4")


def test_a_sound_baseline_passes() -> None:
    checks = baseline_adequacy(study())
    assert len(checks) == 7
    assert not failed(checks)
    assert all(check.evidence and not check.remedy for check in checks)
    assert not warnings(checks)


def test_without_a_finished_run_nothing_is_checked() -> None:
    assert baseline_adequacy(study([])) == []
    assert baseline_adequacy(StudySummary("", [], [], {}, {})) == []


# ---- still improving


def test_a_last_epoch_that_adds_points() -> None:
    assert (
        "14.0 points in its last epoch"
        in found(study(0.72, 3, curve=[-0.3, -0.14, 0.0]))["still improving"]
    )
    assert not found(study(0.72, 3, curve=[-0.3, -0.002, 0.0]))


def test_a_gain_within_the_chance_of_few_images_is_none() -> None:
    curve = [-0.3, -0.02, 0.0]
    assert not found(study(0.8, 3, curve=curve, images=900))
    assert list(found(study(0.8, 3, curve=curve, images=90_000))) == ["still improving"]


def test_the_difference_that_matters_is_the_users() -> None:
    summary = study(0.8, 3, curve=[-0.3, -0.02, 0.0], images=90_000)
    summary.margin = 0.03
    assert not found(summary)


def test_a_single_epoch() -> None:
    assert list(found(study(0.5, 1))) == ["still improving"]
    assert outcome(study(0.5, 1, pretrained=True), "still improving") == "not checked"


def test_a_rate_lowered_before_the_last_epoch() -> None:
    schedule = {"name": "step", "milestones": [20, 29]}
    summary = study(
        curve=[-0.1] * 29 + [0.0], rate=[0.1] * 20 + [0.01] * 9 + [0.001], schedule=schedule
    )
    assert outcome(summary, "still improving") == "not checked"


def test_a_gain_within_chance_counts_if_training_accuracy_rises_as_well() -> None:
    summary = study(0.8, 3, curve=[-0.3, -0.02, 0.0], images=900)
    for record in summary.records:
        record.epochs[-2]["train_accuracy"] = 0.74
    assert found(summary)["still improving"].endswith("and the training accuracy by 6.0 points")
    for record in summary.records:
        record.epochs[-2]["train_accuracy"] = 0.78
    assert not found(summary)


# ---- the learning rate


def test_a_constant_rate() -> None:
    summary = study(rate=[0.1] * 30, schedule={"name": "constant"})
    assert "ended at 100.0 % of its peak of 0.1" in found(summary)["rate not annealed"]
    (line,) = warnings(baseline_adequacy(summary))
    assert line.startswith(
        "the baseline is not trained well enough to be compared with (rate not annealed)"
    )
    assert "--schedule.name cosine" in line


def test_milestones_after_the_end() -> None:
    summary = study(rate=[0.1] * 30, schedule={"name": "step", "milestones": [100, 150]})
    assert "milestones 100, 150 in 30 epochs" in found(summary)["rate not annealed"]


@pytest.mark.parametrize("epochs", [2, 5, 100])
@pytest.mark.parametrize("name", ["cosine", "onecycle"])
def test_annealing_schedules_are_not_flagged(name: Any, epochs: int) -> None:
    last_step = [
        e + 1 - 1 / 20 for e in range(epochs)
    ]  # rows hold the rate of an epoch's last step
    rate = [0.1 * lr_factor(Schedule(name=name), at, epochs) for at in last_step]
    assert "rate not annealed" not in found(study(epochs=epochs, rate=rate))


def test_averaged_weights_need_no_annealing() -> None:
    assert not found(study(rate=[0.1] * 30, ema_decay=0.999))


def test_fine_tuning_may_keep_a_low_rate() -> None:
    flat = {"schedule": {"name": "constant"}, "pretrained": True}
    assert not found(study(rate=[0.01] * 30, **flat))
    assert list(found(study(rate=[0.1] * 30, **flat))) == ["rate not annealed"]


def test_a_hundredth_of_the_usual_rate() -> None:
    rate = [0.001 * lr_factor(Schedule(), e + 1, 30) for e in range(30)]
    assert "0.1 is usual" in found(study(0.6, rate=rate))["rate too low"]
    assert not found(study(0.97, rate=rate))
    assert not found(study(0.6, rate=rate, weights="net.safetensors"))


# ---- references


def test_a_resnet18_at_78_percent_on_cifar10() -> None:
    evidence = found(study(0.78, **CIFAR10))
    assert list(evidence) == ["far below published results"]
    assert "is 78.00 % after 30 epochs, where 93.02 % is published (kuangliu" in str(evidence)


@pytest.mark.parametrize(
    ("model", "score"), [("resnet20", 0.88), ("resnet18", 0.92), ("resnet56", 0.90)]
)
def test_short_but_sound_runs_on_cifar10(model: str, score: float) -> None:
    summary = study(score, model=model, **CIFAR10)
    assert not found(summary)
    assert outcome(summary, "far below published results") == "passed"


@pytest.mark.parametrize(
    "other",
    [
        {"images": 2_700},  # a subset
        {"images": None},  # an older record
        {"image_size": 16},
        {"data": "/photos/mine"},
        {"model": "convnext_atto"},
        {"pretrained": True},
    ],
)
def test_where_no_reference_holds(other: dict[str, Any]) -> None:
    summary = study(0.6, **(CIFAR10 | other))
    assert outcome(summary, "far below published results") == "not checked"


def test_data_are_known_by_their_classes_too() -> None:
    summary = study(0.78, **(CIFAR10 | {"data": "/photos/mine"}))
    classes = references()[0]["classes"]
    summary.answers = Answers([], np.arange(10), [name.capitalize() for name in classes])
    assert "far below published results" in found(summary)


def test_a_network_of_the_size_of_a_resnet18() -> None:
    assert "far below published results" in found(
        study(0.78, model="resnet26d", parameters=16_000_000, **CIFAR10)
    )
    assert not found(study(0.78, model="resnet14t", parameters=1_000_000, **CIFAR10))


def test_a_detector_far_below() -> None:
    settings = {
        "data": "/coco2017",
        "detector": "retinanet",
        "model": "resnet50",
        "min_size": [800],
    }
    for score, expected in ((0.10, ["far below published results"]), (0.33, [])):
        summary = study(score, 12, images=117_266, **settings)
        summary.metric = BOX_AP
        assert list(found(summary)) == expected


def test_references_are_complete() -> None:
    for one in references():
        assert one["names"] == [name.lower() for name in one["names"]]
        for entry in one["published"]:
            assert entry["source"]
            values = entry.get("accuracy") or entry["box_AP"]
            assert all(30 < value < 99 for value in values.values())


# ---- what was learned


def test_no_better_than_the_most_frequent_class() -> None:
    evidence = found(study(0.70, majority=0.75))
    assert "most frequent class is right for 75.00 %" in evidence["nothing learned"]
    assert "nothing learned" in found(study(0.15))
    assert not found(study(0.30))


@pytest.mark.parametrize("metric", [BOX_AP, metric_of(YoloSettings())])
def test_detectors_that_find_nothing(metric: Metric) -> None:
    summary = study(0.0)
    summary.metric = metric
    for run in summary.records:
        run.final[metric.key] = 0.0
    (check,) = baseline_adequacy(summary)
    assert (check.name, check.outcome) == ("nothing learned", "failed")
    assert f"the {metric.short} is 0 in " in check.evidence
    summary.records[-1].final[metric.key] = 0.01
    assert all(check.name != "nothing learned" for check in baseline_adequacy(summary))


def test_images_memorized() -> None:
    assert "55.0 points apart" in found(study(0.45, trained=1.0))["overfit"]
    # CIFAR-100 is memorized by every sound recipe.
    assert not found(study(0.76, trained=1.0, majority=0.01))


def test_answers_worse_than_guessing() -> None:
    summary = study(0.62, trained=0.99)
    summary.answers = Answers([], np.arange(10), [str(i) for i in range(10)])
    for record in summary.records:
        record.final["test_loss"] = 2.5
        record.epochs[-1]["train_loss"] = 0.01
    assert "2.50 is worse than 2.30" in found(summary)["overfit"]
    summary.settings["loss"] = "bce"  # its losses are on another scale
    assert not found(summary)


def test_validation_accuracy_past_its_peak() -> None:
    curve = np.concatenate([np.linspace(-0.3, 0.15, 10), np.linspace(0.15, 0.0, 20)])
    evidence = found(study(0.7, trained=0.99, curve=curve, images=9_000))
    assert "after its peak in epoch 1" in evidence["overfit"]
    # The best epoch's weights are tested then.
    assert not found(study(0.7, trained=0.99, curve=curve, images=9_000, select="best"))


def test_a_seed_that_collapsed() -> None:
    evidence = found(study([0.92, 0.91, 0.60, 0.93]))
    assert (
        "seed 2 reached 60.00 %, where the median is 91.50 %"
        in evidence["failed or collapsed runs"]
    )
    assert not found(study([0.92, 0.90, 0.91, 0.93]))


def test_runs_that_failed_or_diverged() -> None:
    summary = study([0.9, math.nan, 0.91])
    summary.failed = [
        {"attention": "none", "seed": 7, "error": "out of memory"},
        {"attention": "eca", "seed": 8, "error": "out of memory"},
    ]
    evidence = found(summary)["failed or collapsed runs"]
    assert evidence == "seed 7 failed; seed 1 diverged: a loss or the result is not finite"


# ---- real runs


def test_a_finished_study_of_fine_tuning() -> None:
    """EfficientNet-Lite0 on 3,000 images: 8 seeds of 6 epochs."""
    summary = study([0.75], pretrained=True, images=2_700)
    summary.records = _read_records(RESULTS / "cifar10-finetune-cpu", summary.settings)
    assert len(summary.records) == 8
    assert not found(summary)


def test_three_epochs_of_resnet20_are_too_few() -> None:
    summary = study([0.72], 3, model="resnet20")
    summary.records = _read_records(RESULTS / "cifar10-resnet20-cpu", summary.settings)
    assert "13.8 points in its last epoch" in found(summary)["still improving"]


def _read_records(folder: Path, settings: dict[str, Any]) -> list[Record]:
    def rows(name: str) -> list[dict[str, str]]:
        with (folder / name).open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["attention"] == "none"]

    def numbers(row: dict[str, str]) -> dict[str, float]:
        texts = {"attention", "seed", "state", "error", "diverged"}
        return {k: float(v) for k, v in row.items() if k not in texts and v}

    epochs = rows("epochs.csv")
    return [
        Record(
            settings | {"attention": "none", "seed": int(run["seed"])},
            {},
            [numbers(row) for row in epochs if row["seed"] == run["seed"]],
            numbers(run),
        )
        for run in rows("runs.csv")
    ]


@pytest.mark.slow
def test_a_real_run_at_a_constant_rate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = ClassificationSettings(
        data="digits",
        epochs=2,
        batch_size=64,
        device="cpu",
        precision="float32",
        compile="off",
        augmentation=Augmentation(crop_padding=1),
        optimizer=Optimizer(lr=0.05),
        schedule=Schedule(name="constant"),
    )
    caplog.set_level("INFO", "ecanet")
    summary = ecanet.compare(tmp_path, settings, StudySettings(["none"], seeds=1), jobs=1)
    assert {"rate not annealed", "far below published results"} <= set(found(summary))
    assert any("(rate not annealed)" in line for line in caplog.messages)
    page = (tmp_path / "report/index.html").read_text()
    assert page.index(">Answer<") < page.index("Is the baseline trained well enough?")
    caplog.clear()
    ecanet.report(tmp_path)
    assert any("(rate not annealed)" in line for line in caplog.messages)
