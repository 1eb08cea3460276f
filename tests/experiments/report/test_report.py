"""The report's files: their numbers against the statistics, escaping, and studies with gaps."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from helpers.pages import EVIL, Page
from helpers.runs import read_csv
from helpers.synthetic import make_accuracies, make_cost, make_record, make_summary

from ecanet.config import ClassificationSettings
from ecanet.errors import UserError
from ecanet.experiments.analysis.compare import BOX_AP, PRECISIONS, StudySummary, metric_of
from ecanet.experiments.analysis.statistics import study_statistics
from ecanet.experiments.report.compare import write_report
from ecanet.experiments.report.compare_charts import curve, pareto_front
from ecanet.experiments.report.style import module_style

EFFECTS = {"none": 0.0, "se": 0.001, "eca": 0.006}

pytestmark = pytest.mark.usefixtures("quick_collections")


@pytest.fixture(scope="module")
def study() -> StudySummary:
    return make_summary(make_accuracies(EFFECTS, 8))


@pytest.fixture(scope="module")
def written(study: StudySummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(study, tmp_path_factory.mktemp("report"))


def test_writes_every_file_and_nothing_else_again_too(written: Path, study: StudySummary) -> None:
    assert written.name == "index.html"
    files = {path.name for path in written.parent.iterdir()}
    assert files == {
        *("index.html", "report.json", "results.csv", "runs.csv", "epochs.csv"),
        *("points.png", "pareto.png"),
    }
    write_report(study, written.parent)
    assert {path.name for path in written.parent.iterdir()} == files
    for image in written.parent.glob("*.png"):
        assert image.read_bytes().startswith(b"\x89PNG")


def test_results_are_the_statistics_and_the_costs(written: Path, study: StudySummary) -> None:
    rows = read_csv(written.parent / "results.csv")
    found = study_statistics(study)
    assert [row["attention"] for row in rows] == list(EFFECTS)
    for row, module, cost in zip(rows, found.modules, study.costs, strict=True):
        assert float(row["test_accuracy_mean"]) == module.mean == np.mean(module.accuracies)
        assert float(row["test_accuracy_sd"]) == module.sd
        interval = float(row["test_accuracy_low"]), float(row["test_accuracy_high"])
        assert interval == module.interval
        assert int(row["parameters"]) == cost.parameters
        assert int(row["macs"]) == cost.macs
        assert float(row["train_images_per_second"]) == cost.train.median
        ratio = cost.inference.median / study.costs[0].inference.median
        assert float(row["inference_ratio"]) == ratio
        c = module.comparison
        if c:
            assert (row["finding"], row["verdict"]) == (c.finding, c.verdict)
            assert float(row["difference_low"]) == c.interval[0]
            assert row["pairing"] == c.pairing
            assert (float(row["difference_low"]), float(row["difference_high"])) == c.interval


def test_runs_and_epochs_hold_every_record(written: Path, study: StudySummary) -> None:
    runs = read_csv(written.parent / "runs.csv")
    assert {(r["attention"], int(r["seed"]), float(r["test_accuracy"])) for r in runs} == {
        (r.attention, r.seed, r.final["test_accuracy"]) for r in study.records
    }
    epochs = read_csv(written.parent / "epochs.csv")
    assert len(epochs) == sum(len(r.epochs) for r in study.records)
    assert float(epochs[3]["val_loss"]) == study.records[0].epochs[3]["val_loss"]


def test_json_holds_everything(written: Path, study: StudySummary) -> None:
    found = json.loads((written.parent / "report.json").read_text(encoding="utf-8"))
    assert found["results"][2]["finding"] == "better"
    assert found["statistics"][2]["comparison"]["differences"] == pytest.approx(
        study_statistics(study).modules[2].comparison.differences
    )
    assert len(found["runs"]) == 24
    assert found["settings"] == study.settings
    assert found["environment"] == study.environment
    assert found["units"]
    assert any("better than none" in sentence for sentence in found["answer"])


def test_page_shows_the_statistics(written: Path, study: StudySummary) -> None:
    words = Page(written).words
    modules = study_statistics(study).modules
    for module in modules:
        assert f"{100 * module.mean:.2f} ± {100 * module.sd:.2f} %" in words
        if module.comparison:
            assert module.comparison.verdict[1:] in words
    for text in (
        *("24 of 24 runs finished", "272,504", "41.21 M", "1,869 images/s", "0.93 × baseline"),
        *("optimizer.lr", "versions.torch", "0123abcd", "Example CPU, 2 cores"),
    ):
        assert text in words


def test_page_is_whole_and_accessible(written: Path) -> None:
    page = Page(written)
    assert ("html", {"lang": "en"}) in page.tags
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert headers
    assert all("scope" in attributes for attributes in headers)
    figures = [attributes for tag, attributes in page.tags if tag == "figure"]
    drawn = [a for tag, a in page.tags if a.get("class") == "chart"]
    assert len(figures) == len(drawn) == 8
    assert all(attributes["data-label"] for attributes in drawn)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert ids.count("plotly") == 1, "inlined once"


def test_page_loads_nothing_from_elsewhere(written: Path) -> None:
    tags = Page(written).tags
    for tag, attributes in tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attributes
    targets = {attributes["href"] for _, attributes in tags if "href" in attributes}
    assert "results.csv" in targets
    for target in targets:
        assert target.startswith("#") or (written.parent / target).is_file()
    policy = [a["content"] for t, a in tags if a.get("http-equiv")]
    assert policy
    assert "default-src 'none'" in policy[0]
    assert "http" not in policy[0]


def test_names_are_text_never_markup(tmp_path: Path) -> None:
    summary = make_summary(make_accuracies({"none": 0.0, EVIL: 0.01, "_hidden": 0.0}, 3))
    summary.title = "<img src=x onerror=alert(1)>"
    summary.failed = [{"attention": EVIL, "seed": 9, "error": "<i>broken</i> {{ 7 * 7 }}"}]
    summary.skipped_images = ["<u>.jpg"]
    summary.settings["data"] = "</dd><script>alert(2)</script>"
    index = write_report(summary, tmp_path)
    page = Page(index)
    assert not {"img", "i", "u"} & {tag for tag, _ in page.tags}
    for text in (EVIL, "<img src=x onerror=alert(1)>", "<i>broken</i> {{ 7 * 7 }}", "<u>.jpg"):
        assert text in page.words
    assert index.read_text(encoding="utf-8").count("<script>alert") == 0
    plain = Page(write_report(make_summary(make_accuracies(EFFECTS, 3)), tmp_path / "plain"))
    scripts = [[tag for tag, _ in p.tags if tag == "script"] for p in (page, plain)]
    assert scripts[0] == scripts[1]
    assert read_csv(tmp_path / "results.csv")[1]["attention"] == EVIL


def test_warnings_come_before_the_answer(tmp_path: Path) -> None:
    summary = make_summary({"none": [0.70, 0.72], "se": [0.80, 0.86], "eca": [0.60, 0.70]})
    assert "Read this first" not in Page(write_report(summary, tmp_path / "plain")).words
    summary.majority = 0.75
    summary.notices = ["an epoch is 1 step: <b>207</b> images"]
    page = Page(write_report(summary, tmp_path / "with")).words
    notices = [
        "An epoch is 1 step: <b>207</b> images.",
        "The accuracy of none and eca is no better than predicting the most frequent class for every image, "
        "which is right for 75.00 % of the test split; nothing follows from differences among such runs.",
    ]
    before, _, _ = page.partition("Answer The baseline")
    assert all(notice in before for notice in notices)
    assert "would be right for 75.00 % of the test split" in page
    report = json.loads((tmp_path / "with/report.json").read_text())
    assert report["notices"] == notices
    assert report["majority_share"] == 0.75


def test_an_unfinished_study(tmp_path: Path) -> None:
    accuracies = make_accuracies(EFFECTS, 6)
    accuracies = {k: v[:n] for (k, v), n in zip(accuracies.items(), (5, 3, 4), strict=True)}
    summary = make_summary(accuracies, seeds=6)
    summary.failed = [{"attention": "se", "seed": 4, "error": "OutOfMemoryError: CUDA"}]
    summary.skipped_images = ["train/cat/1.jpg", "train/cat/2.jpg"]
    summary.records[2].epochs[4]["train_loss"] = math.nan
    summary.records[-1].environment = {**summary.environment, "device": "Other GPU"}
    words = Page(write_report(summary, tmp_path)).words
    for text in (
        "12 of 18 runs finished",
        "Missing: none (seed 5); se (seeds 3, 5); eca (seeds 4, 5).",
        "Failed: se, seed 4: OutOfMemoryError: CUDA",
        "Diverged (a loss was not finite): none (seed 2).",
        "2 images could not be read and were skipped",
        "train/cat/2.jpg",
        "Example CPU, 2 cores / Other GPU",
        "The study is not complete: its verdicts come with the last seed.",
    ):
        assert text in words
    states = [row["state"] for row in read_csv(tmp_path / "runs.csv")]
    assert [states.count(s) for s in ("finished", "failed", "unfinished")] == [12, 1, 5]
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["runs"][2]["epochs"][4]["train_loss"] is None
    assert found["results"][0]["diverged_runs"] == 1


@pytest.mark.parametrize(
    "runs",
    [
        {},
        {"none": [], "eca": []},
        {"none": [0.9, 0.91]},
        {"none": [], "eca": [0.9]},
        {"none": [0.9], "eca": [0.92]},
        {"none": [0.9, 0.9], "eca": [0.9, 0.9]},
        {"none": [math.nan], "eca": [0.9]},
    ],
)
def test_any_study_has_a_report(runs: dict[str, list[float]], tmp_path: Path) -> None:
    summary = make_summary(runs, seeds=6, costs=len(runs) == 1)
    index = write_report(summary, tmp_path)
    assert "nan" not in Page(index).words.lower().split()
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_costs_of_some_modules_only(tmp_path: Path) -> None:
    summary = make_summary(make_accuracies(EFFECTS, 3))
    summary.costs = [make_cost("eca", 1)]
    summary.costs[0].train_peak_bytes = None
    page = Page(write_report(summary, tmp_path))
    assert page.words.count("not measured") == 3
    row = read_csv(tmp_path / "results.csv")[2]
    assert (row["train_ratio"], row["parameters"]) == ("", "272504")


def test_records_without_epochs_or_with_only_nan(tmp_path: Path) -> None:
    summary = make_summary({"none": [0.9, 0.91], "eca": [0.1, 0.1]}, epochs=2)
    summary.records[0].epochs = []
    for record in summary.records[2:]:
        for epoch in record.epochs:
            epoch["train_loss"] = epoch["val_loss"] = math.nan
    assert "nan" not in Page(write_report(summary, tmp_path)).words.lower().split()


def test_a_study_of_detectors(tmp_path: Path) -> None:
    """APs in place of accuracies, a table for boxes and one for masks, and no test split."""
    summary = make_summary(make_accuracies(EFFECTS, 4), metric=BOX_AP)
    for record in summary.records[:8]:
        record.final |= {f"mask_{name}": -1 if name == "APs" else 0.3 for name in PRECISIONS}
    page = Page(write_report(summary, tmp_path))
    assert "COCO metrics of boxes" in page.words
    assert "30.0 ± 0.0 30.0 ± 0.0 30.0 ± 0.0 —" in page.words, "an AP of no object is not a number"
    for word in ("accurac", "split"):
        assert word not in page.words.replace("validation split", "")
    results, runs = read_csv(tmp_path / "results.csv"), read_csv(tmp_path / "runs.csv")
    assert float(results[1]["box_AP_mean"]) == study_statistics(summary).modules[1].mean
    assert (runs[0]["mask_AP"], runs[11]["mask_AP"]) == ("0.3", "")


def test_many_modules_stay_apart() -> None:
    styles = [(module_style(i).color, module_style(i).symbol) for i in range(72)]
    assert len(set(styles)) == 72


def test_curve_is_the_mean_and_the_range_of_the_finite_values() -> None:
    records = [make_record("eca", seed, 0.9, epochs=3) for seed in range(4)]
    records[1].epochs[2]["val_loss"] = math.inf
    found = curve(records, "val_loss")
    losses = [[r.epochs[e]["val_loss"] for r in records] for e in range(3)]
    losses[2].pop(1)
    assert found.epochs == [1, 2, 3]
    assert found.mean == pytest.approx([np.mean(values) for values in losses])
    assert (found.low, found.high) == ([min(v) for v in losses], [max(v) for v in losses])
    assert found.after(2).epochs == [3]


def test_the_pareto_front_keeps_what_nothing_beats() -> None:
    points = [(3, 90), (1, 80), (2, 85), (2, 84), (4, 89)]
    assert pareto_front(points) == [(1, 80), (2, 85), (3, 90)]
    assert pareto_front([]) == []


def test_a_full_disk_leaves_the_old_report(
    tmp_path: Path, study: StudySummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = write_report(study, tmp_path)
    old = index.read_bytes()
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        write_report(make_summary({"none": [0.5]}), tmp_path)
    assert index.read_bytes() == old
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_a_file_in_the_way_is_one_line(tmp_path: Path, study: StudySummary) -> None:
    (tmp_path / "report").write_text("a file")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(study, tmp_path / "report")


@pytest.mark.parametrize(
    ("name", "unit", "points"),
    [("loss", "nats", "nats"), ("calibration_error", "%", "points"), ("macro_f1", "%", "points")],
)
def test_a_report_follows_the_metric(name: str, unit: str, points: str, tmp_path: Path) -> None:
    """Its units, which of two values is better, and a table of all metrics with the chosen one first."""
    settings = ClassificationSettings(metric=name)  # type: ignore[arg-type]
    summary = make_summary(make_accuracies({"none": 0.0, "se": 0.02, "eca": -0.02}, 9))
    summary.metric = metric_of(settings)
    for record in summary.records:
        record.final[f"test_{name}"] = 1.5 - record.final["test_accuracy"]
        record.final["test_auroc"] = 0.9
    page = Page(write_report(summary, tmp_path))
    found = study_statistics(summary)
    # What has the higher accuracy has the lower value here.
    better = summary.metric.higher_is_better
    findings = [c.finding for c in found.comparisons.values()]
    assert findings == (["worse", "better"] if better else ["better", "worse"])
    badges = [set(str(a.get("class")).split()) & {"better", "worse"} for _, a in page.tags]
    expected = [{"worse"}, {"better"}] if better else [{"better"}, {"worse"}]
    assert [b for b in badges if b] == 2 * expected
    assert ("Lower is better." in page.words) != better
    assert summary.metric.text(found.modules[0].mean, found.modules[0].sd).endswith(f" {unit}")
    for module in found.modules:
        assert summary.metric.text(module.mean, module.sd) in page.words
    c = found.modules[1].comparison
    assert c
    assert f"{summary.metric.difference(c.mean)} {points}" in page.words
    assert "would be right for" not in page.words
    assert [a.get("id") for _, a in page.tags].count("metrics-head") == 1
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert (unit in str(numbers["units"])) or points == "points"


def test_the_lower_of_two_losses_is_on_the_pareto_front() -> None:
    points = [(3, 0.1), (1, 0.4), (2, 0.2), (2, 0.3), (4, 0.2)]
    assert pareto_front(points, higher_is_better=False) == [(1, 0.4), (2, 0.2), (3, 0.1)]
