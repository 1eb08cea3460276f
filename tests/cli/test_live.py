"""What commands show while they work: on real terminals, and in pipes."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Refuse, Run
from helpers.stub_study import make_plan
from helpers.terminal import Terminal
from rich.console import Console, Group

from ecanet.activity import Activity, activity
from ecanet.cli import live
from ecanet.cli.progress import activity_line, activity_view, study_line, study_view
from ecanet.config import ClassificationSettings
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.progress import BestRun, ModuleProgress, RunningRun, StudyProgress
from ecanet.experiments.study.queue import Counts
from ecanet.experiments.study.study import create_study, load_study

MODULES = [
    *("none", "se", "eca", "eca:kernel_size=5", "eca:kernel_size=9", "cbam:reduction=16"),
    *("ge:extent=4", "triplet", "coord", "gct", "srm", "simam"),
]


def large_study() -> StudyProgress:
    """Return a study of 12 modules, 16 runs at the same time, and failures."""
    running = [
        RunningRun(
            f"{name}-seed{seed}", f"{name} seed {seed}", name, seed, f"node-{seed % 2}",
            epochs=3.4, value=0.8, seconds=33.0, silent=130.0 * (not seed), seconds_left=100.0,
        )
        for seed, name in enumerate([*MODULES, *MODULES[:4]])
    ]  # fmt: skip
    return StudyProgress(
        "resnet20 on digits", "compare", "val_accuracy", 12, Counts(30, 16, 18, 0, 4), 160,
        [ModuleProgress(name, 1, 1, 3, 0, 0.8125) for name in MODULES], None, running,
        [("a", "RuntimeError: \x1b[2J " + 200 * "x"), ("b", "2"), ("c", "3"), ("d", "4")], 3700.0,
    )  # fmt: skip


def rendered(lines: list[Any], width: int) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(Group(*lines))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("height", [10, 23, 60])
@pytest.mark.parametrize("names", [(), ("resnet20-digits", "mobilenet_v2-a-folder")])
def test_a_large_study_fits_any_terminal_and_counts_what_is_cut(
    width: int, height: int, names: tuple[str, ...]
) -> None:
    now = [large_study() for _ in names or "1"]
    lines = study_view(now, names, width=width, height=height, bar=True)
    shown = rendered(lines, width)
    assert len(shown) == len(lines) <= height
    assert max(map(len, shown)) <= width
    text = "\n".join(shown)
    assert "\x1b" not in text
    assert re.search(r"… and \d+ more (line|run|module|error)s?", text)
    if height < 20:
        return
    assert re.search(r"… and \d+ more (line|error)s?$", shown[-1])
    rows = sum(line.startswith(tuple(f"{name[:3]}" for name in MODULES)) for line in shown)
    cut = sum(int(n) for n in re.findall(r"… and (\d+) more (?:run|module)s?$", text, re.M))
    if not names:
        assert rows + cut == len(MODULES) + 16
        assert re.search(r"^running +seed +epochs", text, re.M)
        assert "1/5" in text
        assert "3.4/12" in text


def test_long_names_that_differ_at_their_ends_do_so_in_40_columns() -> None:
    shown = "\n".join(rendered(study_view([large_study()], width=40, height=60), 40))
    for size in (5, 9):
        assert re.search(rf"^eca\S*…\S*={size} ", shown, re.M)


def test_a_sweep_shows_its_best_settings_in_full() -> None:
    settings = "lr 0.0123, attention eca:kernel_size=9, optimizer adam, weight_decay 0.0004"
    now = large_study()
    now.kind, now.modules, now.best = "sweep", [], BestRun("trial-0003", settings, 0.8765)
    for one in now.running:
        one.attention = one.seed = None
        one.title = settings
    shown = " ".join(" ".join(rendered(study_view([now], width=40), 40)).split())
    assert f"best: validation accuracy 87.65 %, trial-0003: {settings}" in shown


def test_without_a_terminal_a_line_says_how_far_it_is() -> None:
    line = study_line([large_study()])
    assert line.startswith("18 of 68 runs done; 16 running: none seed 0, 3.4/12 epochs, validation")
    assert line.endswith("and 13 more; 30 waiting; 4 failed; about 62 min left")
    training = Activity("training", 100, "epochs", 3.4, "accuracy 81.23 %")
    epoch = Activity("epoch 4", 391, "steps", 120, "loss 1.2345")
    training.began -= 100
    assert activity_line([training, epoch]) == (
        "training: 3 of 100 epochs, accuracy 81.23 %, about 47 min left; "
        "epoch 4: 120 of 391 steps, loss 1.2345"
    )


@pytest.mark.parametrize("width", [40, 80])
def test_activities_fit_and_name_what_they_count(width: int) -> None:
    best = "accuracy 81.23 %, best 82.00 % in epoch 3"
    stack = [
        Activity("training", 100, "epochs", 3.4, best),
        Activity("epoch 4", 391, "steps", 120, "loss 1.2345"),
        Activity("downloading train2017.zip", 19.3e9, "bytes", 3.4e9),
        Activity("measuring the cost of none, se, eca, cbam, triplet and many more"),
    ]
    stack[0].began -= 100
    shown = rendered(activity_view(stack, width), width)
    assert max(map(len, shown)) <= width
    text = " ".join(" ".join(shown).split())
    assert all(part in text for part in ("3/100 epochs", "about 47 min left", "120/391 steps"))
    assert best in text
    assert "3400.0/19300.0 MB" in text


def test_what_has_just_been_logged_is_not_announced_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "_ANNOUNCED", 0.0)
    log = logging.getLogger("ecanet.test")
    display = live._Display()
    logging.getLogger("ecanet").addHandler(display.last_line)
    try:
        with caplog.at_level(logging.INFO, "ecanet"):
            log.info("measuring the cost of %s", "none, eca")
            for what in ("measuring the cost of none, eca", "decoding images"):
                with activity(what):
                    display._write_line()
                    display._write_line()
        said = ["measuring the cost of none, eca", "decoding images"]
        assert [record.getMessage() for record in caplog.records] == said
    finally:
        logging.getLogger("ecanet").removeHandler(display.last_line)


TRAIN = ("train", "digits", "--model", "resnet20", "--attention", "eca", "--validation", "0.2")


@pytest.mark.slow
def test_training_is_seen_on_a_terminal_which_ctrl_c_restores(tmp_path: Path) -> None:
    terminal = Terminal([*TRAIN, "--epochs", 500, "--out", "run"], cwd=tmp_path)
    # Between two epochs there is no row of steps.
    views = (r"training .*[2-9]/500 epochs, about .* left", r"epoch \d+ .*/\d+ steps")
    rows = terminal.wait_for(
        lambda rows: all(any(re.match(view, row) for row in rows) for view in views)
    )
    text = "\n".join(rows)
    assert re.search(r"accuracy \d+\.\d\d %", text)
    assert "epoch 2/500: loss" in text, "lines are logged above the view"
    assert terminal.screen.cursor.hidden
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.end() == 130
    assert not terminal.screen.cursor.hidden
    rows = terminal.rows()
    assert rows[-1] == "ecanet: stopped; the same command resumes"
    assert not any(row.startswith("training ") for row in rows), "the view is removed"


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_is_seen_on_a_terminal(tmp_path: Path, jobs: int) -> None:
    compare = ["compare", "digits", "--model", "resnet20", "--attention", "none,eca:kernel_size=9"]
    compare += ["--seeds", "2", "--epochs", "20", "--out", "study", "--jobs", str(jobs)]
    out = tmp_path / "stdout"
    terminal = Terminal(compare, cwd=tmp_path, columns=60, lines=40, stdout=out)
    terminal.wait_for(lambda rows: any(r.startswith("measuring the cost of none") for r in rows))
    rows = terminal.wait_for(
        lambda rows: any(re.match(r"(none|eca:\S+=9) +[01] +[\d.]+/20 ", row) for row in rows)
    )
    text = "\n".join(rows)
    assert re.search(r"━.*\d of 4 runs done$", text, re.M)
    assert re.search(r"^none +\d/2", text, re.M)
    assert terminal.end() == 0
    assert not terminal.screen.cursor.hidden
    assert out.read_text() == "study/report/index.html\n"
    assert not any("━" in row for row in terminal.rows())


@pytest.mark.slow
def test_watch_shows_workers_elsewhere_and_failures(tmp_path: Path) -> None:
    settings = ClassificationSettings(model="resnet20", epochs=4)
    plan = make_plan(3, ComparePlan, attention=["none", "eca"], settings=settings)
    create_study(Location(tmp_path / "study"), plan, [], {"device": "x"})
    study = load_study(tmp_path / "study")
    study.queue.enqueue(plan.runs())
    assert study.queue.claim({"host": "node-7"}) is not None
    terminal = Terminal(["study", "watch", "study", "--interval", "0.5"], cwd=tmp_path)
    rows = terminal.wait_for(lambda rows: any(re.search(r" node-7$", r) for r in rows))
    assert any("0 of 6 runs done" in row for row in rows)
    study.queue.cancel()
    terminal.wait_for(lambda rows: any(r.startswith("failed: ") for r in rows))
    assert terminal.end() == 0


@pytest.mark.slow
def test_in_a_pipe_long_silence_is_broken_by_lines(tmp_path: Path) -> None:
    arguments = [*TRAIN, "--epochs", "1", "--batch-size", "1", "--out", "run"]
    code = (
        "from ecanet.cli import live; live.SILENCE = 1; from ecanet.cli.main import main; "
        f"main({list(map(str, arguments))!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^training: 0 of 1 epochs.*; epoch 1: \d+ of .* steps", done.stderr, re.M)
    assert "\x1b" not in done.stderr


@pytest.mark.slow
def test_a_dry_run_measures_what_would_run_and_writes_nothing(
    workdir: Path, run: Run, refuse: Refuse
) -> None:
    compare = ["compare", "digits", "--model", "resnet20", "--attention", "none,eca", "--epochs", 3]
    code, out, _ = run(*compare, "--seeds", "auto", "--dry-run", "--out", "study")
    assert code == 0
    assert re.search(r"^images: [\d,]+ train, \d+ val, \d+ test$", out, re.M)
    assert re.search(r"^each run: 3 epochs of \d+ steps$", out, re.M)
    assert re.search(r"^runs: \d+ to \d+ runs, 0 of them done, \d+ at the same time$", out, re.M)
    # A range, unless its ends are the same in whole units.
    assert re.search(r"^time: about (\d\S* \w+)( to (?!\1$)\d\S* \w+)?$", out, re.M)
    assert re.search(r"^memory: about \d+\.\d+ GB for a training step$", out, re.M)
    assert not list(workdir.iterdir())
    code, out, _ = run(*TRAIN, "--epochs", 2, "--dry-run", "--out", "run")
    assert code == 0
    assert re.search(r"^time of a run, from a few steps: eca \d.* (s|min)$", out, re.M)
    assert not list(workdir.iterdir())
    refuse("no-such-folder", "compare", "no-such-folder", "--dry-run", after_logs=True)
    assert not list(workdir.iterdir())
