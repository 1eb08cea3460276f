"""What ``explain`` makes of a study: which runs, what it writes, and what the study's report shows of it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from helpers.browsing import Visit
from helpers.commands import Run
from helpers.pages import Page

import ecanet
from ecanet.config import ClassificationSettings, ExplainSettings, StudySettings
from ecanet.errors import UserError
from ecanet.experiments.explain import explain
from ecanet.experiments.report.explain import read_explanation
from ecanet.experiments.run import report

SETTINGS = ExplainSettings(limit=60, cams=4, device="cpu", workers=0)
LAYERS = [f"layer{stage}.{block}.attention" for stage in (1, 2, 3) for block in range(3)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study of three modules and two seeds that keeps all weights."""
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam")
    folder = tmp_path_factory.mktemp("made") / "study"
    settings = ClassificationSettings(
        epochs=1, batch_size=256, device="cpu", precision="float32", compile="off"
    )
    study = StudySettings(attention=["none", "eca", "se"], seeds=2, keep_weights="last")
    ecanet.compare(folder, settings, study, jobs=1)
    return folder


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    """Return a copy of it, of a test's own."""
    return Path(shutil.copytree(made, tmp_path / "study"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_each_module_beside_the_baseline_of_its_seed(study: Path) -> None:
    page = explain(str(study), SETTINGS)
    assert page == study / "report" / "explain.html"
    found = read_explanation(page.parent)
    assert found is not None
    assert [network.module for network in found.attention] == ["eca", "se"]
    for network, pair in zip(found.attention, found.pairs, strict=True):
        assert network.run == pair.own.run
        assert network.images == 60
        assert network.by == "true"
        assert [layer.name for layer in network.layers] == LAYERS
        assert pair.base is not None
        assert pair.base.run == f"none-seed{pair.own.run[-1]}"
        assert len(pair.images) == 4
        assert set(pair.classes) <= set("0123456789")
    assert found.notes == []
    assert "60 of the" in found.source
    assert "of test, digits" in found.source

    assert len(rows(page.parent / "explain_layers.csv")) == 18
    assert len(rows(page.parent / "explain_maps.csv")) == 16
    gates = rows(page.parent / "explain_gates.csv")
    assert {row["class"] for row in gates} == {"all", *found.attention[0].classes}
    assert len(found.attention[0].classes) == 4
    assert len(gates) == 2 * 3 * (16 + 32 + 64) * 5
    pictures = {path.name for path in page.parent.glob("explain*.png")}
    assert pictures == {
        "explain_index.png",
        *(f"explain_{what}_{place}.png" for what in ("gates", "maps") for place in (1, 2)),
    }

    text = Page(page).words
    assert "Gates by class" in text
    assert "Where the networks look" in text
    index = Page(study / "report" / "index.html")
    assert "What the attention does" in index.words
    assert ("a", {"href": "explain.html"}) in index.tags
    # Also when the report is written again; not where there is nothing.
    report(study)
    assert "What the attention does" in Page(study / "report" / "index.html").words
    report(study, out=study.parent / "elsewhere")
    assert "What the attention does" not in Page(study.parent / "elsewhere" / "index.html").words


def test_of_a_study_the_best_run_with_attention_is_folded(
    study: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "folded.safetensors"
    code, _, err = run("fold", study, "--threshold", "1", "--out", out, "--device", "cpu")
    assert code == 0, err
    assert "of the best run, se-seed" in err or "of the best run, eca-seed" in err
    assert out.exists()


def test_weights_that_are_gone_are_named(study: Path) -> None:
    best = explain(str(study), SETTINGS)
    first = read_explanation(best.parent)
    assert first is not None
    own = first.pairs[0].own.run
    for path in (study / "runs").glob("se-*/last.safetensors"):
        path.unlink()
    (study / "runs" / f"none-seed{own[-1]}" / "last.safetensors").unlink()
    explain(str(study), SETTINGS)
    found = read_explanation(best.parent)
    assert found is not None
    other = f"none-seed{1 - int(own[-1])}"
    assert found.pairs[0].base is not None
    assert found.pairs[0].base.run == other
    assert "se is left out: none of its runs has kept its weights." in found.notes
    assert any(f"{own} is shown beside {other}" in note for note in found.notes)
    for path in (study / "runs").glob("*/last.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match="no run has kept its weights; --keep-weights last"):
        explain(str(study), SETTINGS)


def test_one_run_of_it(study: Path) -> None:
    run = study / "runs" / "se-seed1"
    page = explain(str(run), SETTINGS)
    assert page == run / "explain" / "explain.html"
    found = read_explanation(page.parent)
    assert found is not None
    assert [network.module for network in found.attention] == ["se"]
    assert [pair.base for pair in found.pairs] == [None]
    assert all(0 < layer.index <= 1 for layer in found.attention[0].layers)


def test_a_damaged_file_is_left_out_of_the_report(
    study: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = explain(str(study), SETTINGS)
    numbers = page.parent / "explain.json"
    content = json.loads(numbers.read_text())
    content["explanation"]["attention"][0]["layers"] = "none"
    numbers.write_text(json.dumps(content))
    report(study)
    assert "is left out of the report" in caplog.text
    assert "What the attention does" not in Page(study / "report" / "index.html").words


@pytest.mark.parametrize("width", [1300, 390])
@pytest.mark.parametrize("name", ["explain.html", "index.html"])
def test_the_pages_in_a_browser(made: Path, browser: object, width: int, name: str) -> None:
    page = made / "report" / name
    if not (made / "report" / "explain.html").exists():
        explain(str(made), SETTINGS)
    visit = Visit(browser, page, width)
    assert visit.errors == []
    assert visit.requests == [page.as_uri()]
    assert visit.overflow() <= 0
    visit.context.close()
