"""What a report shows of the answers for single classes and images."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.answers import MODULES, SOURCE, make_study, thumbnails
from helpers.pages import EVIL, Page
from helpers.runs import read_csv
from PIL import Image

from ecanet.data.thumbnails import SIDE, thumbnail
from ecanet.experiments.report.answer_charts import confusion_image
from ecanet.experiments.report.answers import CHANGED
from ecanet.experiments.report.compare import write_report
from ecanet.metrics import confusion_matrix
from ecanet.predictions import Predictions

pytestmark = pytest.mark.usefixtures("quick_collections")


def test_tables_agree_with_the_answers(tmp_path: Path) -> None:
    summary = make_study(["cat", "dog", "hen"])
    answers = summary.answers
    assert answers
    page = Page(write_report(summary, tmp_path, thumbnails))
    right = {
        m: [p == answers.labels for p in runs.values()] for m, runs in answers.predicted.items()
    }
    rows = read_csv(tmp_path / "per_class.csv")
    assert len(rows) == 9
    for row in rows:
        of_class = answers.labels == answers.classes.index(row["class"])
        shares = [r[of_class].mean() for r in right[row["attention"]]]
        assert float(row["accuracy_mean"]) == pytest.approx(np.mean(shares))
        assert float(row["accuracy_sd"]) == pytest.approx(np.std(shares, ddof=1))
        assert int(row["images"]) == of_class.sum()
        base = [r[of_class].mean() for r in right["none"]]
        if row["attention"] == "none":
            assert row["difference_mean"] == ""
        else:
            expected = np.mean(np.subtract(shares, base))
            assert float(row["difference_mean"]) == pytest.approx(expected)
        assert f"{100 * np.mean(shares):.1f} %" in page.words

    table = np.zeros((3, 3, 3))
    for row in read_csv(tmp_path / "confusion.csv"):
        place = (
            MODULES.index(row["attention"]),
            *(answers.classes.index(row[c]) for c in ("class", "predicted")),
        )
        table[place] = float(row["images"])
    for module, found in zip(MODULES, table, strict=True):
        runs = [confusion_matrix(answers.labels, p, 3) for p in answers.predicted[module].values()]
        assert found == pytest.approx(np.mean(runs, axis=0))

    bins = [r for r in read_csv(tmp_path / "reliability.csv") if r["attention"] == "se"]
    assert sum(int(r["answers"]) for r in bins) == 3 * len(answers.labels)
    hits = sum(int(r["answers"]) * float(r["accuracy"] or 0) for r in bins)
    assert hits == pytest.approx(np.sum(right["se"]))

    differing = [r for r in read_csv(tmp_path / "disagreements.csv") if r["attention"] == "se"]
    gain = np.sum(right["se"], axis=0) - np.sum(right["none"], axis=0)
    assert {r["image"]: int(r["right"]) - int(r["baseline_right"]) for r in differing} == {
        name: g for name, g in zip(answers.images, gain, strict=True) if g
    }
    gained, lost = int((gain > 0).sum()), int((gain < 0).sum())
    assert f"se: {gained} images gained, {lost} lost" in page.words


def test_intervals_for_other_images_stand_beside_those_for_other_seeds(tmp_path: Path) -> None:
    summary = make_study(["cat", "dog"], images=100, seeds=4)
    words = Page(write_report(summary, tmp_path, thumbnails)).words
    assert "Other seeds, other images" in words
    assert "(201 images)" in words
    rows = {row["attention"]: row for row in read_csv(tmp_path / "results.csv")}
    assert rows["none"]["images_low"] == rows["none"]["images_high"] == ""
    report = json.loads((tmp_path / "report.json").read_text())
    for module in MODULES[1:]:
        low, high = (float(rows[module][f"images_{side}"]) for side in ("low", "high"))
        assert [low, high] == report["other_images"][module]["interval"]
        assert low <= float(rows[module]["difference_low"])
        assert high >= float(rows[module]["difference_high"])
        assert report["other_images"][module]["verdict"] in words
    summary.answers = None
    words = Page(write_report(summary, tmp_path)).words
    assert "No interval: the predictions of the runs are missing or cannot be read." in words


def test_images_have_a_text_and_their_number_is_bounded(tmp_path: Path) -> None:
    page = Page(write_report(make_study(["cat", "dog"], images=300), tmp_path, thumbnails))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 * 2 * 24
    for image in images:
        assert image["src"] == SOURCE
        assert image["alt"] in ("Test image of cat", "Test image of dog")
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy
    assert "img-src data:" in policy


def test_images_that_are_gone_are_one_sentence(tmp_path: Path) -> None:
    page = Page(write_report(make_study(["cat", "dog"]), tmp_path, lambda names: {}))
    assert "The images themselves are not shown" in page.words
    assert "Accuracy by class" in page.words
    assert "img" not in {tag for tag, _ in page.tags}


def test_a_thumbnail_is_small_and_a_tiny_image_is_kept_as_it_is() -> None:
    import base64
    import io

    from PIL import Image

    def opened(source: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))

    noise = torch.randint(0, 256, (3, 300, 900), dtype=torch.uint8)
    source = thumbnail(noise)
    assert source.startswith("data:image/jpeg;base64,")
    assert max(opened(source).size) == SIDE
    digit = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    assert np.array_equal(np.asarray(opened(thumbnail(digit))), digit[0])


def test_many_classes_are_cut_to_the_most_changed(tmp_path: Path) -> None:
    page = Page(write_report(make_study([f"class {i:03}" for i in range(100)]), tmp_path))
    assert f"The {2 * CHANGED} of 100 classes that changed most are shown" in page.words
    assert "Most frequent confusions of eca" in page.words
    assert "Confusion matrix of" not in page.words
    assert len(read_csv(tmp_path / "per_class.csv")) == 300
    assert not (tmp_path / "confusion.png").exists()


def test_names_of_classes_and_images_are_harmless(tmp_path: Path) -> None:
    classes = [EVIL, "\u202egpj.tac\x1b[31m", "x" * 500, "=cmd()"]
    index = write_report(make_study(classes), tmp_path, thumbnails)
    page, html = Page(index), index.read_text(encoding="utf-8")
    assert EVIL in page.words
    assert html.count("<script>alert") == 0
    for character in ("\u202e", "\x1b", "x" * 100):
        assert character not in html
    for name in ("per_class", "confusion", "disagreements"):
        assert "\u202e" not in (tmp_path / f"{name}.csv").read_text(encoding="utf-8")
    assert "'=cmd()" in {row["class"] for row in read_csv(tmp_path / "per_class.csv")}


def test_one_seed_one_module_and_unfinished_baselines(tmp_path: Path) -> None:
    page = Page(write_report(make_study(["cat", "dog"], seeds=1), tmp_path / "seed", thumbnails))
    assert "t-interval over seeds, not corrected" not in page.words
    page = Page(write_report(make_study(["cat", "dog"], modules=["none"]), tmp_path / "module"))
    assert "Images on which the modules differ" not in page.words
    summary = make_study(["cat", "dog", "never"], images=0)
    assert summary.answers
    del summary.answers.predicted["none"], summary.answers.bins["none"]
    page = Page(write_report(summary, tmp_path / "baseline", thumbnails))
    assert "nan" not in page.words.lower().split()


def test_runs_without_predictions_are_named(tmp_path: Path) -> None:
    summary = make_study(["cat", "dog"])
    assert summary.answers
    summary.answers.missing = ["eca seed 7"]
    words = Page(write_report(summary, tmp_path / "some")).words
    assert "1 finished run has no predictions of these images that can be read here" in words
    assert "eca seed 7" in words
    summary.answers = None
    words = Page(write_report(summary, tmp_path / "none")).words
    assert "The runs kept no predictions" in words


def test_scores_that_are_not_finite_have_no_confidence(tmp_path: Path) -> None:
    summary = make_study(["cat", "dog"])
    answers = summary.answers
    assert answers
    scores = np.full((len(answers.labels), 2), math.nan, dtype=np.float16)
    zeros = np.zeros(len(answers.labels), dtype=np.int32)
    answers.bins = {}
    answers.add(
        "none", 0, Predictions(answers.images, answers.labels, zeros, scores, answers.classes)
    )
    for module in MODULES[1:]:
        answers.bins[module] = answers.bins["none"]
    assert "nan" not in Page(write_report(summary, tmp_path)).words.lower().split()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("count", "side"), [(3, 693), (200, 2240)])
def test_a_matrix_of_its_own_is_as_large_as_its_classes_need(count: int, side: int) -> None:
    """Also with a class of no image, and with names that are long, equal once cut, formulas, or that the
    font cannot draw."""
    table = np.eye(count, dtype=np.int64) * 7
    table[1] = 0
    names = [f"${'a long name ' * 5}{i}$" for i in range(count)]
    names[0] = "\U0001f408"
    with Image.open(io.BytesIO(confusion_image(table, names))) as image:
        assert max(abs(length - side) for length in image.size) <= 1
        red, _, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=int), 2, 0)
    assert 0.1 / count < (blue > red + 60).mean() < 1 / count
