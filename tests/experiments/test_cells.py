"""Several networks and data sets in one comparison: from one command to one verdict."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Refuse, Run
from helpers.postgres_server import Postgres
from helpers.runs import TASKS, draw_colors, draw_shapes
from helpers.waiting import wait_until

import ecanet
from ecanet.cli.compare import split_names
from ecanet.config import ClassificationSettings, StudySettings
from ecanet.errors import UserError
from ecanet.experiments.analysis.compare import summarise
from ecanet.experiments.cells import compare_cells
from ecanet.experiments.result import ComparisonResult
from ecanet.experiments.study.cells import Cell, read_cells, short_names
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.storage import study_names
from ecanet.experiments.study.study import load_study
from ecanet.files import lock_of

SETTINGS = ClassificationSettings(
    model="resnet20",
    epochs=1,
    batch_size=64,
    image_size=8,
    device="cpu",
    precision="float32",
    threads=1,
)
STUDY = StudySettings(attention=["none", "eca"], seeds=3)
pytestmark = pytest.mark.usefixtures("quick_collections")


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_colors(tmp_path_factory.mktemp("data") / "colors")


@pytest.fixture(scope="module")
def small(colors: Path) -> ClassificationSettings:
    return replace(SETTINGS, data=str(colors), batch_size=32)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, small: ClassificationSettings, colors: Path
) -> Path:
    """A comparison on two data sets, which tests copy."""
    out = tmp_path_factory.mktemp("finished") / "study"
    compare_cells(out, small, STUDY, data=[str(colors), "digits"], jobs=1)
    return out


def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


def outcome(folder: Path) -> dict[str, float]:
    """The test loss of every run of every cell."""
    return {
        f"{cell.name}/{r.attention}-{r.seed}": r.final["test_loss"]
        for cell in read_cells(folder)
        for r in summarise(load_study(folder / cell.name, "read")).records
    }


def test_every_cell_is_a_study_of_its_own_below_one_report(finished: Path, colors: Path) -> None:
    names = ["resnet20-colors", "resnet20-digits"]
    assert read_cells(finished) == [
        Cell(names[0], "resnet20", str(colors)), Cell(names[1], "resnet20", "digits")
    ]  # fmt: skip
    assert len(outcome(finished)) == 2 * 2 * 3
    page = (finished / "report/index.html").read_text()
    links = re.findall(r'href="(\.\./[^"]+)"', page)
    assert set(links) == {f"../{name}/report/index.html" for name in names}
    assert all((finished / "report" / link).is_file() for link in links)
    with (finished / "report/overall.csv").open() as file:
        (row,) = csv.DictReader(file)
    with (finished / "report/cells.csv").open() as file:
        cells = [r for r in csv.DictReader(file) if r["attention"] == "eca"]
    assert [r["cell"] for r in cells] == names
    assert int(row["cells"]) + int(row["cells_left_out"]) == 2
    if row["cells"] == "2":
        mean = sum(float(r["difference_mean"]) for r in cells) / 2
        assert float(row["difference_mean"]) == pytest.approx(mean)
    loaded = ecanet.load_result(finished)
    assert len(loaded.to_frame()) == 2 * 2
    assert isinstance(ecanet.load_result(finished / names[0]), ComparisonResult)
    report = json.loads((finished / "report/report.json").read_text())
    assert report["title"] == "resnet20 on colors, digits" == loaded.title
    assert report["answer"][2].startswith(f"eca: {row['verdict']}")


def test_it_computes_what_single_comparisons_compute(
    finished: Path, small: ClassificationSettings, tmp_path: Path
) -> None:
    ecanet.compare(tmp_path / "alone", small, STUDY, jobs=1)
    alone = {
        f"{r.attention}-{r.seed}": r.final["test_loss"]
        for r in summarise(load_study(tmp_path / "alone", "read")).records
    }
    found = {
        name.removeprefix("resnet20-colors/"): loss for name, loss in outcome(finished).items()
    }
    assert alone.items() <= found.items()


@pytest.mark.slow
def test_the_same_again_trains_nothing_and_more_adds_runs(
    finished: Path, small: ClassificationSettings, colors: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "ecanet")
    out, before = copied(finished, tmp_path), outcome(finished)
    compare_cells(out, small, STUDY, data=[str(colors), "digits"], jobs=1)
    assert not any("validation loss" in line for line in caplog.messages)
    assert outcome(out) == before
    # A seed more in one of the cells, and another network there.
    study = replace(STUDY, seeds=4)
    summary = compare_cells(out, small, study, models=["resnet20", "resnet32"], jobs=1)
    assert [cell.name for cell in read_cells(out)][-1] == "resnet32-colors"
    after = outcome(out)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2 + 4 * 2
    assert [len(cell.summary.records) for cell in summary.cells] == [8, 6, 8]
    assert summary.modules[0].overall.others or summary.modules[0].left_out


@pytest.mark.slow
def test_a_comparison_that_lacks_a_cell_can_be_resumed(
    finished: Path, small: ClassificationSettings, colors: Path, tmp_path: Path,
    run: Run,
) -> None:  # fmt: skip
    """As one that was killed after the first cells were made."""
    out = copied(finished, tmp_path)
    shutil.rmtree(out / "resnet20-digits")
    code, _, err = run("report", out)
    assert code == 0, err
    assert "Not started: resnet20-digits" in (out / "report/index.html").read_text()
    compare_cells(out, small, STUDY, data=[str(colors), "digits"], jobs=1)
    assert outcome(out) == outcome(finished)


@pytest.mark.slow
def test_an_interrupted_comparison_resumes(tmp_path: Path, colors: Path) -> None:
    out = tmp_path / "study"
    command = [
        *(
            sys.executable,
            "-m",
            "ecanet",
            "compare",
            "--data",
            f"{colors},digits",
            "--out",
            str(out),
        ),
        *("--attention", "none,eca", "--seeds", "1", "--epochs", "2", "--batch-size", "32"),
        *("--model", "resnet20", "--image-size", "8", "--device", "cpu", "--jobs", "1"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    runs = out / "resnet20-digits/runs"
    wait_until(lambda: process.poll() is not None or runs.exists(), 120)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert err.splitlines()[-1] == "ecanet: stopped; the same command resumes"
    assert (out / "report/index.html").is_file()
    done = outcome(out)
    assert 2 <= len(done) < 4
    subprocess.run(command, check=True, capture_output=True)
    assert done.items() <= outcome(out).items()
    assert len(outcome(out)) == 4


def test_all_cells_are_checked_before_anything_is_written(
    colors: Path, tmp_path: Path, refuse: Refuse
) -> None:
    out, twin = tmp_path / "study", shutil.copytree(colors, tmp_path / "twin")
    flags = ["--out", out, "--device", "cpu", "--image-size", "8", "--batch-size", "32"]
    for says, *arguments in (
        ("no-such-folder", "--data", f"{colors},no-such-folder"),
        ("unknown model 'resnet21'", "--data", colors, "--model", "resnet20,resnet21"),
        ("--model names resnet20 more than once", "--data", colors, "--model", "resnet20,resnet20"),
        ("colors: it is named more than once", "--data", f"{colors},{colors}/../colors"),
        ("are the same network on the same images", "--data", f"{colors},{twin}"),
        ("--model is empty", "--data", colors, "--model", ","),
    ):
        refuse(says, "compare", *arguments, *flags, after_logs=True)
        assert not out.exists(), says


def test_what_does_not_belong_together_is_refused(
    finished: Path, small: ClassificationSettings, colors: Path, tmp_path: Path
) -> None:
    out, data = copied(finished, tmp_path), [str(colors), "digits"]
    entries = sorted(path.name for path in out.iterdir())
    with pytest.raises(UserError, match="resnet20-colors: the study was made with other settings"):
        compare_cells(out, replace(small, epochs=3), STUDY, data=data)
    with pytest.raises(UserError, match="resnet20-colors: the study was made with other settings"):
        compare_cells(out, small, STUDY, data=data, epochs=3)
    with pytest.raises(UserError, match=r"unknown setting epcohs\. Did you mean epochs"):
        compare_cells(out, data=data, epcohs=3)
    baselines = "the baseline of resnet44-colors is eca, and that of resnet20-colors none"
    with pytest.raises(UserError, match=baselines):
        compare_cells(out, small, replace(STUDY, attention=["eca", "none"]), models=["resnet44"])
    with pytest.raises(UserError, match="the metric of resnet44-colors is val_loss, and that of "):
        compare_cells(out, replace(small, metric="loss"), STUDY, models=["resnet44"])
    assert sorted(path.name for path in out.iterdir()) == entries
    with pytest.raises(UserError, match="holds a study of one network on one data set"):
        compare_cells(out / "resnet20-colors", small, STUDY, models=["resnet20", "resnet32"])
    with pytest.raises(UserError, match="is not empty and holds no study"):
        ecanet.compare(out, small, STUDY)
    with lock_of(out), pytest.raises(UserError, match="another process works on"):
        compare_cells(out, small, STUDY, data=data)


def test_a_damaged_list_of_cells_is_refused(finished: Path, tmp_path: Path, refuse: Refuse) -> None:
    out = copied(finished, tmp_path)
    file = out / "cells.json"
    for says, text in (
        ("is damaged", "{"),
        ("cannot be used", '{"cells": [{"name": "a"}]}'),
        ("a run cannot have the name", '{"cells": [{"name": "../x", "model": "m", "data": "d"}]}'),
    ):
        file.write_text(text)
        refuse(says, "report", out)
        refuse(says, "study", "status", out)


def test_the_commands_on_studies_take_all_cells(
    finished: Path, tmp_path: Path, run: Run, refuse: Refuse
) -> None:
    out = copied(finished, tmp_path)
    code, status, _ = run("study", "status", out)
    assert code == 0
    assert "12 of 12 runs done" in status
    rows = [line.split()[:2] for line in status.splitlines()]
    for cell in read_cells(out):
        assert [cell.name, "6/6"] in rows
    code, listed, _ = run("study", "list", out)
    assert all(cell.name in listed for cell in read_cells(out))
    code, shown, _ = run("study", "show", out)
    assert shown.count("data_fingerprint:") == 2
    assert run("study", "cancel", out)[2].startswith("0 runs cancelled")
    assert run("study", "retry", out)[2].startswith("0 runs queued again")
    refuse("no run 'eca-seed9' has failed", "study", "retry", out, "--run", "eca-seed9")
    refuse(
        "name the folder of one of them", "evaluate", "digits", "--weights", out, after_logs=True
    )
    refuse("has several data sets", "worker", out, "--data", "elsewhere")


@pytest.mark.slow
def test_workers_train_the_runs_of_every_cell(finished: Path, tmp_path: Path, run: Run) -> None:
    out = copied(finished, tmp_path)
    before = outcome(out)
    for cell in read_cells(out):
        study = load_study(out / cell.name)
        study.queue.change_study("plan", lambda plan: {**plan, "seeds": [0, 1, 2, 3]})
        study.queue.enqueue(study.plan().runs())
    assert "12 of 16 runs done" in run("study", "status", out)[1]
    code, _, err = run("worker", out, "--jobs", "1")
    assert code == 0, err
    after = outcome(out)
    assert before.items() <= after.items()
    assert len(after) == 16


@pytest.mark.slow
def test_a_report_elsewhere_leaves_the_folder_as_it_is(
    finished: Path, tmp_path: Path, run: Run
) -> None:
    out = copied(finished, tmp_path)
    shutil.rmtree(out / "report")
    shutil.rmtree(out / "resnet20-colors/report")
    code, shown, _ = run("report", out, "--out", tmp_path / "elsewhere")
    assert (code, shown.strip()) == (0, str(tmp_path / "elsewhere/index.html"))
    assert not (out / "report").exists()
    page = (tmp_path / "elsewhere/index.html").read_text()
    links = re.findall(r'href="(\.\./[^"]+)"', page)
    assert set(links) == {"../study/resnet20-digits/report/index.html"}
    assert all((tmp_path / "elsewhere" / link).is_file() for link in links)
    run("report", out)
    assert (out / "resnet20-colors/report/index.html").is_file()


@pytest.mark.slow
def test_papers_get_the_tables_over_all_cells(finished: Path, tmp_path: Path, run: Run) -> None:
    out = copied(finished, tmp_path)
    code, shown, _ = run("report", out, "--format", "latex,markdown,methods,svg")
    report = out / "report"
    names = ["table.tex", "table.md", "methods.md", "references.bib", "forest.svg"]
    assert (code, [Path(line) for line in shown.splitlines()]) == (
        0,
        [report / name for name in names],
    )
    tables = (report / "table.md").read_text()
    assert (
        "| Module | Cells | Difference (points) | 95 % interval | Other cells | Verdict |" in tables
    )
    assert "| resnet20 on digits |" in tables
    text = (report / "methods.md").read_text()
    for part in (
        "## resnet20 on digits",
        "## resnet20 on colors",
        "Hartung and Knapp",
        "wang2020eca",
    ):
        assert part in text
    assert "For papers" in (report / "index.html").read_text()


@pytest.mark.slow
def test_the_cells_of_a_database_are_named_after_the_study(
    tmp_path: Path, small: ClassificationSettings, colors: Path, postgres: Postgres, run: Run
) -> None:
    study, out = StudySettings(attention=["none", "eca"], seeds=1), tmp_path / "study"
    twice: dict[str, Any] = {"data": [str(colors), "digits"], "jobs": 1}
    compare_cells(out, small, study, storage=postgres.url(), name="both", **twice)
    names = {f"both-{cell.name}" for cell in read_cells(out)}
    assert names <= set(study_names(Location(out, postgres.url(), "both")))
    assert not list(out.glob("*/study.db"))
    # Their folders name the database.
    compare_cells(out, small, study, **twice)
    assert "4 of 4 runs done" in run("study", "status", out)[1]
    assert run("worker", out, "--storage", postgres.url(), "--study", "both", "--jobs", "1")[0] == 0
    assert run("report", out)[0] == 0


def test_what_was_made_is_removed_if_a_later_cell_cannot_be(
    tmp_path: Path, small: ClassificationSettings, colors: Path, finished: Path
) -> None:
    """eca adds hardly a multiply-add to a network: no control can be matched, which only costs show."""
    study = replace(STUDY, attention=["none", "eca", "control:macs"])
    with pytest.raises(UserError, match="resnet20-colors: control:macs: eca takes"):
        compare_cells(tmp_path / "new", small, study, data=[str(colors), "digits"])
    assert not (tmp_path / "new").exists()
    out = copied(finished, tmp_path)
    before = (out / "cells.json").read_bytes()
    with pytest.raises(UserError, match="resnet32-colors: control:macs: eca takes"):
        compare_cells(out, small, study, models=["resnet32"])
    assert (out / "cells.json").read_bytes() == before
    assert not (out / "resnet32-colors").exists()
    assert outcome(out) == outcome(finished)


@pytest.mark.slow
def test_detectors_are_compared_on_several_data_sets(tmp_path: Path, run: Run) -> None:
    first, second = draw_shapes(tmp_path / "first"), draw_shapes(tmp_path / "second")
    annotations = next((second / "annotations").glob("instances_train*.json"))
    found: dict[str, Any] = json.loads(annotations.read_text())
    found["images"] = found["images"][:-1]
    kept = {image["id"] for image in found["images"]}
    found["annotations"] = [a for a in found["annotations"] if a["image_id"] in kept]
    annotations.write_text(json.dumps(found))
    summary = compare_cells(
        tmp_path / "study", replace(TASKS["detector"], attention=None, epochs=1),
        StudySettings(attention=["none", "eca"], seeds=2), data=[str(first), str(second)], jobs=1,
    )  # fmt: skip
    assert [cell.name for cell in summary.cells] == ["mobilenet_v2-first", "mobilenet_v2-second"]
    assert summary.metric.key == "box_AP"
    assert run("report", tmp_path / "study")[0] == 0


def test_names_with_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert split_names(None) == [None]
    assert split_names("resnet20, resnet56,") == ["resnet20", "resnet56"]
    assert split_names("a,b") == ["a", "b"]
    assert split_names("a,b", of_files=True) == ["a,b"]
    assert split_names("a,b,c", of_files=True) == ["a", "b", "c"]
    assert split_names(["a,b", "c"], of_files=True) == ["a,b", "c"]


def test_short_names_tell_names_apart() -> None:
    assert short_names(["/x/cars", "/x/birds", "digits"]) == {
        "/x/cars": "cars", "/x/birds": "birds", "digits": "digits",
    }  # fmt: skip
    assert short_names(["/x/a/photos", "/x/b/photos", "hf:owner/photos"]) == {
        "/x/a/photos": "a/photos", "/x/b/photos": "b/photos", "hf:owner/photos": "hf:owner/photos",
    }  # fmt: skip
    assert short_names(["resnet18", "torchvision/resnet18"]) == {
        "resnet18": "resnet18", "torchvision/resnet18": "torchvision/resnet18",
    }  # fmt: skip


@pytest.mark.slow
def test_a_recipe_may_list_data_sets(tmp_path: Path, colors: Path, refuse: Refuse) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: [resnet20, resnet21]\ndata: {colors}\nbatch_size: 32\n")
    refuse("unknown model 'resnet21'", "compare", "--recipe", recipe, after_logs=True)
    recipe.write_text(f"model: resnet20,resnet22\ndata: [{colors}]\nbatch_size: 32\n")
    refuse("unknown model 'resnet22'", "compare", "--recipe", recipe, after_logs=True)
