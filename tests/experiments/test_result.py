"""What compare and sweep return: text, HTML, tables and figures of one study."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.synthetic import make_accuracies, make_summary
from helpers.synthetic_cells import GOOD, make_cells
from helpers.synthetic_sweep import make_sweep
from PIL import Image

from ecanet.errors import UserError
from ecanet.experiments.report.cells import make_cells_report
from ecanet.experiments.report.compare import make_report
from ecanet.experiments.report.page import csv_text
from ecanet.experiments.report.sweep import make_report as make_sweep_report
from ecanet.experiments.result import CellsResult, ComparisonResult, SweepResult

EFFECTS = {"none": 0.0, "se": 0.0, "eca": 0.02}
PAGE = Path("study/report/index.html")
pytestmark = pytest.mark.usefixtures("quick_collections")


@pytest.fixture(scope="module")
def study() -> ComparisonResult:
    summary = make_summary(make_accuracies(EFFECTS, 8))
    return ComparisonResult(**vars(summary), report=PAGE)


@pytest.fixture(scope="module")
def sweep() -> SweepResult:
    return SweepResult(**vars(make_sweep(12, confirmed=2)), report=PAGE)


@pytest.fixture(scope="module")
def cells() -> CellsResult:
    summary = make_cells({"resnet20": GOOD}, seeds=6)
    return CellsResult(**vars(summary), report=PAGE)


def test_verdicts_are_those_of_the_report(study: ComparisonResult) -> None:
    assert list(study.verdicts) == ["se", "eca"]
    eca = study.verdicts["eca"]
    assert (eca.module, eca.baseline, eca.finding) == ("eca", "none", "better")
    assert eca.interval is not None
    assert eca.difference is not None
    assert eca.interval[0] < eca.difference < eca.interval[1]
    assert eca.seeds == tuple(range(8))
    assert eca.text.startswith("better than none by ")
    assert study.recommendation.headline == "Use eca."


def test_a_study_prints_as_a_table(study: ComparisonResult) -> None:
    text = repr(study)
    for part in ("24 of 24 runs", "module  seeds  test accuracy", "Use eca.", f"report: {PAGE}"):
        assert part in text
    assert "\x1b" not in repr(replace(study, title="a\x1b[2Jb"))


class _Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", ["study", "sweep", "cells"])
def test_html_holds_names_as_text_alone(kind: str, request: pytest.FixtureRequest) -> None:
    result: Any = request.getfixturevalue(kind)
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    page = Path("javascript:alert(1)") / 'a"b' / "index.html"
    found = _Tags(replace(result, title=evil, report=page)._repr_html_())
    assert not found.tags & {"script", "img", "style", "iframe"}
    assert evil in found.text
    assert found.links == ["./javascript%3Aalert%281%29/a%22b/index.html"]


def test_a_report_elsewhere_is_named_and_not_linked(study: ComparisonResult) -> None:
    found = _Tags(replace(study, report=Path("/elsewhere/index.html"))._repr_html_())
    assert found.links == []
    assert "/elsewhere/index.html" in found.text


def test_frames_are_the_tables_of_the_report(study: ComparisonResult) -> None:
    pytest.importorskip("pandas")
    tables = make_report(study).tables
    for rows, name in (("modules", "results"), ("runs", "runs"), ("epochs", "epochs")):
        frame = study.to_frame(rows)  # type: ignore[arg-type]
        assert list(frame.columns) == csv_text(tables[name]).split("\n")[0].split(",")
        assert len(frame) == len(tables[name])
    by_module = study.to_frame().groupby("attention")["test_accuracy"].mean()
    assert by_module["eca"] == pytest.approx(study.statistics.modules[2].mean)
    with pytest.raises(ValueError, match="rows are runs, modules, epochs, not 'run'"):
        study.to_frame("run")  # type: ignore[arg-type]


def test_frames_of_a_sweep(sweep: SweepResult) -> None:
    pytest.importorskip("pandas")
    tables = make_sweep_report(sweep, Path("report")).tables
    for rows, name in (("trials", "runs"), ("confirmed", "confirmed"), ("epochs", "epochs")):
        frame = sweep.to_frame(rows)  # type: ignore[arg-type]
        assert list(frame.columns) == list(tables[name][0])
        assert len(frame) == len(tables[name])


def test_frames_of_several_cells(cells: CellsResult) -> None:
    pytest.importorskip("pandas")
    tables = make_cells_report(cells, Path("report"), Path("study")).tables
    for rows, name in (("cells", "cells"), ("modules", "overall")):
        frame = cells.to_frame(rows)  # type: ignore[arg-type]
        assert frame.to_dict("list").keys() == tables[name][0].keys()
        assert len(frame) == len(tables[name])


def test_a_row_for_each_cell_and_one_for_all(cells: CellsResult) -> None:
    lines = repr(replace(cells, waiting=["resnet20-flowers"])).splitlines()
    assert re.fullmatch(r"cell +runs +se +eca", lines[2])
    differences = r"[+−]0\.\d\d points, \w+ +\+1\.\d\d points, better"
    assert re.fullmatch(rf"resnet20 on cifar10 +18 of 18 +{differences}", lines[3])
    assert re.fullmatch(r"resnet20-flowers +waiting", lines[6])
    assert re.fullmatch(rf"all cells +{differences}", lines[7])


def test_the_best_of_a_sweep(sweep: SweepResult) -> None:
    winner = next(trial for trial in sweep.trials if trial.name == sweep.winner())
    assert sweep.best == winner.values
    assert sweep.recipe == sweep.recipes[winner.name]
    assert sweep.title in repr(sweep)
    assert winner.name in sweep._repr_html_()
    none = SweepResult(**vars(make_sweep(0)), report=PAGE)
    assert (none.best, none.recipe) == ({}, {})
    assert "No trial has ended" in none._repr_html_()


@pytest.mark.parametrize("kind", ["study", "sweep", "cells"])
def test_plots_are_images_in_a_notebook(kind: str, request: pytest.FixtureRequest) -> None:
    figure = request.getfixturevalue(kind).plot()
    image = Image.open(io.BytesIO(figure._repr_png_()))
    assert image.format == "PNG"
    assert 300 < image.width < 1200
    assert len(image.convert("L").getcolors(256) or []) > 10, "it is not blank"


def test_without_results_there_is_nothing_to_draw() -> None:
    empty = ComparisonResult(**vars(make_summary({"none": [], "se": []})), report=PAGE)
    with pytest.raises(UserError, match="no run has finished yet"):
        empty.plot()
    assert "no data" in repr(empty)
