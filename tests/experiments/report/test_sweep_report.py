"""The report of a sweep: its numbers, its files, and its page in a real browser."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.browsing import Visit
from helpers.pages import Page
from helpers.runs import read_csv
from helpers.synthetic_sweep import make_sweep

from ecanet.experiments.analysis.compare import BOX_AP
from ecanet.experiments.analysis.sweep import SweepSummary
from ecanet.experiments.report.sweep import answer, importance, write_report
from ecanet.experiments.report.sweep_charts import best_so_far, outlier_cutoff, thinned


@pytest.fixture(scope="module")
def summary() -> SweepSummary:
    return make_sweep(80, failed=3, early=8, waiting=4, confirmed=2)


@pytest.fixture(scope="module")
def index(summary: SweepSummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(summary, tmp_path_factory.mktemp("report"))


def test_files(index: Path, summary: SweepSummary) -> None:
    folder = index.parent
    assert sorted(p.name for p in folder.iterdir()) == [
        "best.yaml", "confirmed.csv", "epochs.csv", "history.png", "importance.png", "index.html",
        "report.json", "runs.csv", "slices.png",
    ]  # fmt: skip
    runs = read_csv(folder / "runs.csv")
    states = Counter(run["state"] for run in runs)
    assert states == {"finished": 65 + 2 * 3, "failed": 3, "ended early": 8, "waiting": 4}
    assert {run["test_accuracy"] for run in runs[:60]} == {""}, "trials do not read the test split"
    assert all(float(run["test_accuracy"]) > 0 for run in runs[80:])
    assert float(runs[20]["val_loss"]) == summary.trials[20].final["val_loss"]
    confirmed = read_csv(folder / "confirmed.csv")[0]
    values = summary.ranked_confirmed()[0].finals("test_accuracy")
    assert float(confirmed["test_accuracy_mean"]) == pytest.approx(np.mean(values))
    assert float(confirmed["test_accuracy_sd"]) == pytest.approx(np.std(values, ddof=1))
    report = json.loads((folder / "report.json").read_text())
    assert report["winner"] == summary.winner()
    assert len(report["trials"]) == 80
    recipe = (folder / "best.yaml").read_text()
    assert f"ecanet train --recipe {folder / 'best.yaml'}" in recipe
    assert yaml.safe_load(recipe) == summary.recipes[summary.winner() or ""]


def test_the_winner_is_who_confirms_best(summary: SweepSummary) -> None:
    standing = summary.ranked_confirmed()
    losses = [np.mean(c.finals("val_loss")) for c in standing]
    assert losses == sorted(losses)
    assert summary.winner() == standing[0].trial
    alone = make_sweep(20)
    best = min((t for t in alone.trials if t.judged), key=lambda t: t.metric)
    assert alone.winner() == best.name
    assert "--confirm 3" in answer(alone)[2]


def test_a_sweep_of_detectors(tmp_path: Path) -> None:
    """The evaluation images select and judge: there is no other split, and no loss."""
    sweep = make_sweep(12, early=1, confirmed=1, metric=BOX_AP)
    page = write_report(sweep, tmp_path).read_text()
    best = 100 * sweep.ranked()[0].metric
    assert answer(sweep)[1].endswith(f"with box AP {best:.2f} % on the evaluation images.")
    assert "Box AP" in page
    assert "accurac" not in page.split("<main")[1].split("<script")[0]
    assert "no trial has read" not in page.lower()
    assert float(read_csv(tmp_path / "confirmed.csv")[0]["box_AP_low"]) > 0
    assert {"box_AP", "box_AP50"} <= read_csv(tmp_path / "runs.csv")[0].keys()


def test_best_so_far(summary: SweepSummary) -> None:
    steps = best_so_far(summary)
    judged = [t for t in summary.trials if t.judged]
    for number, value in steps:
        assert value == min(t.metric for t in judged if t.number <= number)
    assert steps[-1] == (summary.trials[-1].number, summary.ranked()[0].metric)


def test_importance_finds_what_matters(summary: SweepSummary) -> None:
    found = importance(summary)
    assert found is not None
    assert max(found, key=lambda name: found[name]) == "lr"
    assert math.isclose(sum(found.values()), 1.0)
    assert importance(make_sweep(49)) is None, "fewer than ten for each of five parameters"
    assert importance(make_sweep(50))


def test_a_page_says_why_it_has_no_importance(tmp_path: Path) -> None:
    words = Page(write_report(make_sweep(4), tmp_path)).words
    assert "ten finished trials for each parameter, 50 in this sweep, which has 4" in words
    assert "Importance of the parameters" not in words
    assert not (tmp_path / "importance.png").exists()


def test_diverged_trials_do_not_crush_the_others(summary: SweepSummary) -> None:
    edge = outlier_cutoff(summary)
    assert edge is not None
    losses = [t.metric for t in summary.ranked()]
    assert sum(loss > edge for loss in losses) == sum(loss > 10 for loss in losses)
    even = make_sweep(30)
    for trial in even.trials:
        trial.metric = 1 + trial.number / 30
    assert outlier_cutoff(even) is None


def test_thinning_keeps_the_best_and_the_spread() -> None:
    ranked = make_sweep(3000).ranked()
    drawn = thinned(ranked, 600)
    assert len(drawn) == 600
    assert drawn[:120] == ranked[:120]
    assert drawn[-1] is ranked[-1]
    assert thinned(ranked[:5], 600) == ranked[:5]


# ---- In a browser


@pytest.fixture(scope="module", params=[1280, 390])
def visit(browser: Any, index: Path, request: pytest.FixtureRequest) -> Any:
    visit = Visit(browser, index, request.param)
    yield visit
    visit.context.close()


def test_the_page_opens_whole(visit: Visit, index: Path, summary: SweepSummary) -> None:
    assert visit.errors == []
    assert visit.requests == [index.as_uri()]
    assert visit.overflow() <= 0
    titles = visit.page.locator("figure h3").all_text_contents()
    assert titles[:3] == ["History", "Importance of the parameters", "Parallel coordinates"]
    assert set(titles[3:]) == set(summary.parameters)
    visit.page.locator("#slices").click()
    visit.wait_for_charts()
    for figure in visit.page.locator("figure").all():
        assert figure.locator(".trace").count() >= 1
    text = visit.page.locator("main").inner_text()
    assert answer(summary)[1].split(",")[0] in text.replace("\xa0", " ")
    assert "<b>out of luck</b>" in text, "an error is text, never markup"
    assert visit.page.locator("#ranking tbody tr").count() == len(summary.ranked())
    assert visit.page.locator("#confirmations tbody tr").count() == 2


def test_no_number_is_broken_and_the_best_settings_are_seen(browser: Any, index: Path) -> None:
    visit = Visit(browser, index, 390)
    lines = visit.page.evaluate(
        """[...document.querySelectorAll(".number, td")].filter(e => e.checkVisibility())
        .map(e => { const range = document.createRange(); range.selectNodeContents(e);
                    const rows = new Set([...range.getClientRects()].map(r => Math.round(r.bottom)));
                    return [e.className, rows.size, e.innerHTML.match(/[0-9]<wbr>[0-9.]/)]; })"""
    )
    assert {rows for kind, rows, _ in lines if kind == "number"} == {1}
    assert not any(broken for *_, broken in lines)
    right = (
        "[...document.querySelectorAll('.settings dd')].map(e => e.getBoundingClientRect().right)"
    )
    assert max(visit.page.evaluate(right)) < 390
    visit.context.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "runs", [{"trials": 0}, {"trials": 1}, {"trials": 5, "failed": 5}, {"trials": 6, "early": 6}]
)
def test_odd_sweeps_open_on_a_phone(browser: Any, runs: dict[str, int], tmp_path: Path) -> None:
    sweep = make_sweep(**runs)
    tables = [table for trial in sweep.trials for table in (trial.values, trial.params)]
    for table in [sweep.parameters, sweep.distributions, *tables]:
        if "lr" in table:
            table["a_parameter_with_a_name_" * 4] = table.pop("lr")
    visit = Visit(browser, write_report(sweep, tmp_path), 390)
    assert visit.errors == []
    assert visit.overflow() <= 0
    visit.context.close()


@pytest.mark.slow
def test_a_big_sweep_has_a_page_that_opens(browser: Any, tmp_path: Path) -> None:
    index = write_report(make_sweep(10_000, failed=50, early=1000, confirmed=2), tmp_path)
    assert index.stat().st_size < 3e6
    visit = Visit(browser, index, 1280)
    assert visit.errors == []
    assert visit.page.locator("#ranking tbody tr").count() == 100
    assert len(read_csv(tmp_path / "runs.csv")) == 10_006
    caption = visit.page.locator("#caption-history").inner_text()
    assert re.search(r"600 of\s[\d,]+ trials are drawn", caption)
    visit.context.close()
