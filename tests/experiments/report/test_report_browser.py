"""The report's page in a real browser: offline, at desktop and phone width."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.answers import make_study, thumbnails
from helpers.browsing import Visit
from helpers.synthetic import make_accuracies, make_summary

from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.statistics import study_statistics
from ecanet.experiments.report.compare import write_report

LONG = "coord:reduction=16,minimum=8"
EFFECTS = {"none": 0, "se": 0.004, "eca": 0.006, "eca:kernel_size=9": 0.0055, "gct": -0.01, LONG: 0}
pytestmark = pytest.mark.usefixtures("quick_collections")


@pytest.fixture(scope="module")
def study() -> StudySummary:
    return make_summary(make_accuracies(EFFECTS, 9))


@pytest.fixture(scope="module")
def index(study: StudySummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(study, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module", params=[1280, 800, 390])
def visit(browser: Any, index: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    visit = Visit(browser, index, request.param)
    yield visit
    visit.context.close()


def test_opens_offline_without_an_error_and_nothing_overflows(visit: Visit, index: Path) -> None:
    assert visit.errors == []
    assert visit.requests == [index.as_uri()]
    assert visit.overflow() <= 0
    outside = visit.page.evaluate(
        """[...document.querySelectorAll("h1, h2, p, li, figure, figcaption, button, dd, .badge")]
        .filter(e => { const box = e.getBoundingClientRect();
                       return box.width > 1 && (box.left < 0 || box.right > innerWidth); })
        .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []


def test_every_chart_fills_its_frame(visit: Visit) -> None:
    charts = visit.page.evaluate(
        """[...document.querySelectorAll("figure")].map(figure => ({
            frame: figure.clientWidth,
            svg: figure.querySelector("svg.main-svg").getBoundingClientRect().width,
            traces: figure.querySelectorAll("svg.main-svg .trace").length,
            outside: [...figure.querySelectorAll("svg.main-svg text")].filter(text => {
              const box = text.getBoundingClientRect(), frame = figure.getBoundingClientRect();
              return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
            }).map(text => text.textContent),
        }))"""
    )
    assert len(charts) == 8
    for chart in charts:
        assert 0.8 * chart["frame"] < chart["svg"] <= chart["frame"]
        assert chart["traces"] >= 6
        assert chart["outside"] == []


def test_labels_of_modules_do_not_overlap(visit: Visit) -> None:
    for name in ("points", "differences"):
        boxes = visit.page.evaluate(
            f"""[...document.querySelectorAll("#chart-{name} .ytick text")]
            .map(t => t.getBoundingClientRect()).map(b => [b.top, b.bottom])"""
        )
        assert len(boxes) == len(EFFECTS) - (name == "differences")
        boxes.sort()
        assert all(above[1] <= below[0] + 1 for above, below in itertools.pairwise(boxes))


def test_the_table_holds_the_statistics(visit: Visit, study: StudySummary) -> None:
    rows = visit.page.locator("#results tbody tr")
    found = study_statistics(study).modules
    assert rows.count() == len(found)
    for i, module in enumerate(found):
        text = " ".join(rows.nth(i).inner_text().split())
        assert module.attention in text.replace(" ", "")
        assert f"{100 * module.mean:.2f} ± {100 * module.sd:.2f} %" in text
        if module.comparison:
            assert module.comparison.finding in text
    names = visit.page.get_by_role("table").first.get_by_role("rowheader")
    assert names.count() == len(found), "a card on a phone is still a row of a table to a reader"


def test_a_legend_hides_its_module_everywhere(browser: Any, index: Path) -> None:
    visit = Visit(browser, index, 1280)
    button = visit.page.locator(".legend button", has_text="gct").first
    hidden = """["pareto-training", "training-loss"].map(name =>
        document.getElementById("chart-" + name).data
        .filter(trace => trace.visible === false).length)"""
    assert visit.page.evaluate(hidden) == [0, 0]
    button.click()
    assert all(visit.page.evaluate(hidden))
    pressed = visit.page.locator('.legend button[aria-pressed="false"]')
    assert pressed.count() == 2, "both legends agree"
    button.click()
    assert visit.page.evaluate(hidden) == [0, 0]
    assert visit.errors == []
    visit.context.close()


def test_dark_mode_is_light_text_on_a_dark_page(browser: Any, index: Path) -> None:
    visit = Visit(browser, index, 1280, color_scheme="dark")
    colors = visit.page.evaluate(
        """[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
        getComputedStyle(document.querySelector("#chart-points .ytick text")).fill]
        .map(c => c.match(/\\d+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0) / 3)"""
    )
    assert colors[0] < 40
    assert min(colors[1:]) > 180
    visit.context.close()


def test_a_printed_page_is_a_page(browser: Any, index: Path) -> None:
    visit = Visit(browser, index, 688)  # of A4 within its margins, as narrow as a screen with cards
    shown = "[...document.querySelectorAll('tbody tr')].map(e => getComputedStyle(e).display)"
    assert set(visit.page.evaluate(shown)) == {"block"}
    # What the browser does on paper, in its order.
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    visit.page.emulate_media(media="print", color_scheme="dark")
    assert set(visit.page.evaluate(shown)) == {"table-row"}
    assert visit.overflow() <= 0
    after = "[...document.querySelectorAll('h2, h3')].map(e => getComputedStyle(e).breakAfter)"
    assert set(visit.page.evaluate(after)) == {"avoid"}
    assert not visit.page.locator(".legend").first.is_visible()
    ground, ink = visit.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (ground, ink) == ("rgb(255, 255, 255)", "rgb(28, 33, 40)"), "dark on white"
    wide = """[...document.querySelectorAll("figure")].map(figure =>
        figure.querySelector("svg.main-svg").getBoundingClientRect().width / figure.clientWidth)"""
    assert all(0.8 < share <= 1 for share in visit.page.evaluate(wide))
    tall = "[...document.querySelectorAll('.chart svg.main-svg')].map(e => e.getBoundingClientRect().height)"
    on_paper = min(visit.page.evaluate(tall))
    visit.page.emulate_media(media="screen", color_scheme="light")
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert on_paper == pytest.approx(0.8 * min(visit.page.evaluate(tall)), abs=2), (
        "two rows share a page"
    )
    assert all(0.8 < share <= 1 for share in visit.page.evaluate(wide))
    assert visit.errors == []
    visit.context.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "runs",
    [
        {"none": [], "eca": []},
        {"none": [0.9], "eca": [0.91]},
        {"none": [0.9, 0.91]},
        {"<script>window.bad=1</script>" * 3: [0.9, 0.91], "$a_{": [0.9, 0.92], "x" * 90: [0.9]},
    ],
)
def test_odd_studies_open_on_a_phone(
    browser: Any, runs: dict[str, list[float]], tmp_path: Path
) -> None:
    visit = Visit(browser, write_report(make_summary(runs, seeds=6), tmp_path), 390)
    assert visit.errors == []
    assert visit.overflow() <= 0
    assert visit.page.evaluate("window.bad") is None
    visit.context.close()


def test_tables_of_many_modules_scroll_sideways_on_a_phone(browser: Any, tmp_path: Path) -> None:
    study = make_summary(make_accuracies({f"module{i}": 0.002 * i for i in range(14)}, 6))
    visit = Visit(browser, write_report(study, tmp_path), 390)
    assert visit.overflow() <= 0
    visit.page.evaluate("document.querySelectorAll('.fold').forEach(d => { d.open = true })")
    for name in ("results", "pairs", "costs"):
        table = visit.page.locator(f"#{name}")
        assert table.bounding_box()["height"] < 1400
        table.evaluate("table => table.parentElement.scrollLeft = 200")
        names = table.locator("tbody th").all()
        assert len({round(name.bounding_box()["x"]) for name in names}) == 1
        assert 0 <= names[0].bounding_box()["x"] < 40, "they stay in sight"
    visit.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("classes", [10, 100])
def test_classes_and_images_fit_and_are_seen(
    browser: Any, width: int, classes: int, tmp_path: Path
) -> None:
    names = [f"class {i} of a name that is long" for i in range(classes)]
    visit = Visit(browser, write_report(make_study(names), tmp_path, thumbnails), width)
    assert visit.errors == []
    assert visit.overflow() <= 0
    images = visit.page.evaluate(
        """[...document.querySelectorAll("details[open] img")]
        .map(image => [image.naturalWidth, image.getBoundingClientRect().width])"""
    )
    assert len(images) >= 8
    assert all(natural == 60 and shown > 50 for natural, shown in images)
    matrices = visit.page.locator("[id^=chart-confusion-]")
    assert matrices.count() == (3 if classes == 10 else 0)
    visit.context.close()
