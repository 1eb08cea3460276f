"""What holds for the page of every kind of report: accessible, small, offline, and a page on paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.answers import SOURCE, make_study, thumbnails
from helpers.browsing import Visit
from helpers.synthetic import make_accuracies, make_summary
from helpers.synthetic_cells import BAD, GOOD, make_cells
from helpers.synthetic_sweep import make_sweep

from ecanet.experiments.analysis.compare import ACCURACY, BOX_AP, PRECISIONS
from ecanet.experiments.report import sweep
from ecanet.experiments.report.cells import write_cells_report
from ecanet.experiments.report.compare import write_report
from ecanet.experiments.report.explain import Heading, Pictures, write_explanation
from ecanet.experiments.report.predictions import html_file
from ecanet.explain.result import Attention, Explanation, LayerNumbers, Look, Pair
from ecanet.training.predict import Prediction

MODULES = [
    "none",
    *[
        "se",
        "eca",
        "cbam",
        "gct",
        "coord",
        "simam",
        "triplet",
        "eca:kernel_size=9",
        "gc",
        "ge",
        "bam",
    ],
]
EFFECTS = {"none": 0.0, "se": 0.001, "eca": 0.006}

pytestmark = pytest.mark.usefixtures("quick_collections")


def of_many_modules(out: Path) -> Path:
    answers = make_study(list("abcdefghij"), images=30, seeds=8, modules=MODULES).answers
    summary = make_summary(make_accuracies({m: 0.001 * i for i, m in enumerate(MODULES)}, 8))
    summary.answers = answers
    for record in summary.records:
        record.final |= {"test_balanced_accuracy": 0.9, "test_auroc": 0.99}
    return write_report(summary, out, thumbnails)


def of_failed_runs(out: Path) -> Path:
    found = make_accuracies(EFFECTS, 6)
    summary = make_summary(
        {m: found[m][:n] for m, n in zip(EFFECTS, (5, 3, 4), strict=True)}, seeds=6
    )
    summary.failed = [{"attention": "se", "seed": 4, "error": "OutOfMemoryError: CUDA"}]
    summary.skipped_images = ["train/cat/1.jpg", "train/cat/2.jpg"]
    summary.records[2].epochs[4]["train_loss"] = math.nan
    summary.records[-1].environment = {**summary.environment, "device": "Other GPU"}
    return write_report(summary, out)


def of_detectors(out: Path) -> Path:
    summary = make_summary(make_accuracies(EFFECTS, 4), metric=BOX_AP)
    for record in summary.records[:8]:
        record.final |= {f"mask_{name}": 0.3 for name in PRECISIONS}
    return write_report(summary, out)


def of_an_own_trainer(out: Path) -> Path:
    summary = make_summary(make_accuracies(EFFECTS, 4))
    summary.metric = replace(ACCURACY, reported_by="train.py", own_unit="")
    return write_report(summary, out)


def of_an_explanation(out: Path) -> Path:
    def layer(name: str, factor: float | None, index: float) -> LayerNumbers:
        curves: dict[str, list[float | None]] = {"cat": [0.4, 0.5], "dog": [0.5, None]}
        return LayerNumbers(name, 2, factor, 0.1, 0.2, index, 0.25 * index, curves)

    layers = [layer("layer1.0.attention", 0.5, 0.4), layer("layer2.0.attention", None, 0.0)]
    classes = {"cat": 3, "dog": 3}
    attention = Attention("cbam", 1, "cbam-seed0", 6, "true", classes, layers)
    names = [f"{i}.jpg" for i in range(3)]
    looks = [
        Look(module, place, f"{module}-seed0", ["cat", "dog", "cat"], *[[0.5, 0.6, 0.7]] * 3)
        for place, module in enumerate(("none", "cbam"))
    ]
    pair = Pair(names, ["cat"] * 3, looks[1], looks[0])
    images, maps = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.rand(3, 8, 8)
    found = Explanation("3 images of the test split", [attention], [pair], ["a note"])
    heading = Heading("resnet20 on digits", {"device": "Example CPU"})
    return write_explanation(out, heading, found, [], [Pictures(images, maps, maps)])


def of_predictions(out: Path) -> Path:
    with html_file(out / "predictions.html", {"model": "resnet20"}) as add:
        for i in range(12):
            add(Prediction(f"{i}.jpg", [("cat", 0.75), ("dog", 0.25)], None, SOURCE))
        add(Prediction("bad.jpg", [], "bad.jpg cannot be read as an image: broken", None))
    return out / "predictions.html"


PAGES: dict[str, Callable[[Path], Path]] = {
    "many modules": of_many_modules,
    "failed runs": of_failed_runs,
    "one module": lambda out: write_report(make_summary({"none": [0.9, 0.91]}), out),
    "nothing learned": lambda out: write_report(make_summary({"none": [0.0], "eca": [0.0]}), out),
    "detectors": of_detectors,
    "own trainer": of_an_own_trainer,
    "cells": lambda out: write_cells_report(make_cells({"r20": GOOD, "r56": BAD}), out, out),
    "sweep": lambda out: sweep.write_report(
        make_sweep(80, failed=3, early=8, waiting=4, confirmed=2), out
    ),
    "sweep of few trials": lambda out: sweep.write_report(make_sweep(4), out),
    "explanation": of_an_explanation,
    "predictions": of_predictions,
}
# One of them in the quick tests.
KINDS = [
    name if i == 1 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(PAGES)
]


@pytest.fixture(scope="module", params=KINDS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PAGES[request.param](tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_no_serious_fault_of_accessibility(
    browser: Any, page: Path, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visit = Visit(browser, page, width, color_scheme=scheme)
    visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    visit.wait_for_charts()
    found = axe.run(visit.page).response["violations"]
    faults = [
        f"{fault['id']} ({fault['impact']}): {node['html'][:200]}"
        for fault in found
        for node in fault["nodes"]
        if fault["impact"] in ("serious", "critical") or fault["id"] == "heading-order"
    ]
    assert faults == []
    assert visit.errors == []
    assert visit.overflow() <= 0
    visit.context.close()


def test_the_keyboard_skips_to_the_content_and_no_chart_stops_it(browser: Any, page: Path) -> None:
    visit = Visit(browser, page, 1300)
    stops = visit.page.evaluate(
        """[...document.querySelectorAll("a, button, summary, [tabindex]")]
        .filter(e => e.tabIndex >= 0 && e.checkVisibility())
        .map(e => e.closest(".chart") ? "chart" : e.className + " " + e.textContent)"""
    )
    assert "chart" not in stops
    if visit.page.locator(".skip").count():
        assert stops[0].startswith("skip ")
        visit.page.keyboard.press("Tab")
        visit.page.keyboard.press("Enter")
        assert visit.page.evaluate("document.activeElement.id") == "main"
    links = visit.page.locator(".contents a").all()
    heads = visit.page.locator("main h2").all()
    if links:
        addresses = [link.get_attribute("href") for link in links]
        assert addresses == [f"#{head.get_attribute('id')}" for head in heads]
    visit.context.close()


def test_a_page_is_smaller_than_3_mb(page: Path) -> None:
    assert page.stat().st_size < 3e6


def test_on_paper_nothing_is_cut_off(browser: Any, page: Path) -> None:
    """A4 in portrait, within its margins of 14 mm; also where the tables would be cards on a screen."""
    visit = Visit(browser, page, 688)
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    visit.page.emulate_media(media="print")
    outside = visit.page.evaluate(
        """[...document.querySelectorAll("main *")].filter(e => e.checkVisibility())
        .filter(e => e.getBoundingClientRect().right > 690 && !e.closest("pre, svg"))
        .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert outside == []
    cut = """[...document.querySelectorAll("main .code, main .scroll")].filter(e => e.checkVisibility())
        .filter(e => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1)
        .map(e => e.outerHTML.slice(0, 120))"""
    assert visit.page.evaluate(cut) == [], "nothing scrolls on paper"
    narrow = """[...document.querySelectorAll("main .values dd")].filter(e => e.checkVisibility())
        .filter(e => e.clientWidth < 80).map(e => e.textContent)"""
    assert visit.page.evaluate(narrow) == [], "a value is readable beside a long name"
    split = """[...document.querySelectorAll("main :is(figure, section > p, .images li)")]
        .filter(e => getComputedStyle(e).breakInside !== "avoid").length"""
    assert visit.page.evaluate(split) == 0
    displayed = "[...document.querySelectorAll('tr')].filter(e => e.checkVisibility())"
    rows = visit.page.evaluate(f"{displayed}.map(e => getComputedStyle(e).display)")
    assert set(rows) <= {"table-row"}, "tables, not cards"
    for name in (".contents", ".skip", ".legend", ".anchor"):
        assert not any(e.is_visible() for e in visit.page.locator(name).all())
    visit.context.close()
