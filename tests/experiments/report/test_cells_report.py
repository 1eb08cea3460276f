"""The report over several networks and data sets, of studies that were never run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.browsing import Visit
from helpers.synthetic import make_accuracies, make_summary
from helpers.synthetic_cells import BAD, DATA, GOOD, make_cells

from ecanet.experiments.analysis.cells import (
    CellSummary,
    headline,
    notices,
    summarise_cells,
)
from ecanet.experiments.report.cells import _paper_tables, opening, write_cells_report
from ecanet.experiments.report.cells_charts import forest


def test_a_module_that_helps_everywhere() -> None:
    found = make_cells({"resnet20": GOOD, "resnet56": GOOD})
    se, eca = found.modules
    assert headline(found) == "Use eca."
    assert (se.overall.finding, eca.overall.finding) == ("equivalent", "better")
    assert eca.verdict.startswith("better than none by 1.")
    assert "on average over 6 cells (95 % interval +" in eca.verdict
    assert eca.overall.others
    assert opening(found) == (
        "On average over 6 cells, each a network on a data set: eca better than none; "
        "se equivalent to none."
    )
    assert found.ranks
    assert next(iter(found.ranks.mean)) == "eca"
    assert found.ranks.critical_difference


def test_a_module_that_helps_one_network_and_hurts_the_other() -> None:
    found = make_cells({"resnet20": GOOD, "resnet56": BAD}, data=DATA[:2])
    eca = found.modules[1]
    assert eca.verdict.endswith("; it helps resnet20 and hurts resnet56")
    assert eca.overall.heterogeneous
    assert headline(found) == "Keep the plain network, except where a module helps."


def test_a_module_that_helps_on_one_data_set() -> None:
    one = make_cells({"resnet20": GOOD, "resnet56": GOOD}, data=("digits",))
    other = make_cells({"resnet20": BAD, "resnet56": BAD}, data=("cifar10",))
    found = summarise_cells("both", [*one.cells, *other.cells], [])
    assert found.modules[1].verdict.endswith("; it helps on digits and hurts on cifar10")
    # Of one network alone on each, cells are named.
    mixed = summarise_cells("mixed", [*one.cells[:1], *other.cells[:1], *one.cells[1:]], [])
    assert mixed.modules[1].verdict.endswith("; it helps on digits and hurts on cifar10")


def test_cells_without_an_interval_are_left_out_and_named(tmp_path: Path) -> None:
    found = make_cells({"resnet20": GOOD}, data=DATA)
    few = make_summary(make_accuracies(GOOD, 2))
    cells = [*found.cells[:2], CellSummary("resnet20-few", "resnet20", "few", few)]
    found = summarise_cells("few", cells, ["resnet20-later"])
    eca = found.modules[1]
    assert eca.overall.cells == ["resnet20-cifar10", "resnet20-digits"]
    assert [cell.name for cell in eca.left_out] == ["resnet20-few"]
    page = write_cells_report(found, tmp_path / "report", tmp_path).read_text()
    assert "eca: no interval yet, and so left out of the mean: resnet20 on few." in page
    assert "Not started: resnet20-later." in page
    # A verdict that lacks cells is preliminary wherever it is given.
    assert headline(found) == "So far: use eca."
    assert opening(found).startswith("On average over 2 of 4 cells, each a network on a data set:")
    assert "on average over 2 of 4 cells (" in eca.verdict
    assert ", so far without resnet20 on few and resnet20-later" in eca.verdict
    (table, _) = _paper_tables(found)
    assert [row[1] for row in table.rows] == ["2 of 4", "2 of 4"]
    assert "So far: use eca." in page
    assert "no interval, from fewer than 3 cells" in page.replace("\xa0", " ")


def test_baselines_that_are_not_trained_well_enough_are_named(tmp_path: Path) -> None:
    found = make_cells({"resnet20": GOOD}, data=DATA[:2])
    for i, cell in enumerate(found.cells):
        constant = {"schedule": {"name": "constant"}, "epochs": 10}
        rate = [{**row, "lr": 0.1} for row in cell.summary.records[0].epochs]
        records = [
            replace(record, settings={**record.settings, **constant}, epochs=rate)
            for record in cell.summary.records
        ]
        settings = {**cell.summary.settings, **constant}
        cells = list(found.cells)
        cells[i] = replace(cell, summary=replace(cell.summary, records=records, settings=settings))
        found = summarise_cells("badly trained", cells, [])
        assert len(notices(found)) == i + 1
    assert "The baseline of resnet20 on cifar10 is not trained well enough" in notices(found)[0]
    assert "rate not annealed" in notices(found)[0]
    assert headline(found) == "Train the plain network better first."
    page = write_cells_report(found, tmp_path / "report", tmp_path).read_text()
    assert "The baseline of resnet20 on digits is not trained well enough" in page


def test_nothing_to_compare(tmp_path: Path) -> None:
    for effects, seeds in (({"none": 0.0}, 4), (GOOD, 1)):
        found = make_cells({"resnet20": effects}, seeds=seeds)
        assert headline(found) == "No answer yet."
        write_cells_report(found, tmp_path / "report", tmp_path)
        report = json.loads((tmp_path / "report/report.json").read_text())
        assert report["answer"][0] == "No answer yet."


def test_the_forest_has_a_row_for_each_cell_and_one_for_all() -> None:
    found = make_cells({"resnet20": GOOD, "resnet56": BAD}, data=DATA[:2])
    rows = forest(found)
    assert [row.name for row in rows] == [
        "resnet20, cifar10", "resnet56, cifar10", "resnet20, digits", "resnet56, digits", "All cells",
    ]  # fmt: skip
    assert [estimate.name for estimate in rows[0].estimates] == ["se", "eca"]
    assert [estimate.module for estimate in rows[0].estimates] == [1, 2]
    for module, estimate in zip(found.modules, rows[-1].estimates, strict=True):
        assert estimate.mean == pytest.approx(100 * (module.overall.mean or 0))
        cells = [row.estimates[estimate.module - 1].mean for row in rows[:-1]]
        assert estimate.mean == pytest.approx(sum(cells) / 4)


def test_names_from_elsewhere_are_shown_as_they_are(tmp_path: Path) -> None:
    found = make_cells({"<b>net</b>": GOOD}, data=("<script>x</script>", "b"))
    page = write_cells_report(found, tmp_path / "report", tmp_path).read_text()
    assert "<script>x</script>" not in page
    assert "<b>net</b>" not in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [1300, 390])
def test_the_page_in_a_browser(browser: Any, tmp_path: Path, width: int) -> None:
    many = {f"module{i}": 0.001 * i for i in range(7)}
    found = make_cells({"resnet20": {**GOOD, **many}, "mobilenetv2_100": {**GOOD, **many}})
    found.cells[0].summary = replace(found.cells[0].summary, failed=[
        {"attention": "eca", "seed": 9, "error": "RuntimeError: " + "long " * 60}
    ])  # fmt: skip
    visit = Visit(browser, write_cells_report(found, tmp_path / "report", tmp_path), width)
    try:
        assert visit.errors == []
        assert visit.overflow() <= 0
        assert visit.page.locator("#chart-forest svg.main-svg").count() > 0
        assert visit.page.locator("#chart-ranks svg.main-svg").count() > 0
        assert visit.page.locator("#cells tbody tr").count() == 7
        visit.page.locator(".legend button").first.click()
        hidden = (
            "document.getElementById('chart-forest').data.filter(t => t.visible === false).length"
        )
        assert visit.page.evaluate(hidden) >= 7
    finally:
        visit.context.close()
