"""The script for a few minutes of a GPU: its steps end apart, and all of them run on a CPU in small."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return benchmarks/forked_steps.py."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("forked_steps")


def fails(here: Any) -> Iterator[dict[str, Any]]:
    yield {"so far": 1}
    raise ValueError("no such thing")


def hangs(here: Any) -> Iterator[dict[str, Any]]:
    yield {"started": subprocess.Popen(["sleep", "100"]).pid}
    time.sleep(100)


def dies(here: Any) -> Iterator[dict[str, Any]]:
    yield {"alive": 1}
    os.kill(os.getpid(), signal.SIGKILL)


def works(here: Any) -> Iterator[dict[str, Any]]:
    yield {"first": 1, "second": 1}
    yield {"second": 2, "left": here.left(), "others": sorted(here.found)}


def leaves_a_process(here: Any) -> Iterator[dict[str, Any]]:
    yield {"started": subprocess.Popen(["sleep", "100"]).pid}


def has_ended(pid: int) -> bool:
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_a_step_that_fails_hangs_or_dies_is_recorded_and_the_others_go_on(
    steps: Any, tmp_path: Path
) -> None:
    record = tmp_path / "record.jsonl"
    planned = [
        steps.Step("fails", fails, 30, 1, "all is well"),
        steps.Step("hangs", hangs, 2, 1),
        steps.Step("dies", dies, 30, 1),
        steps.Step("leaves a process", leaves_a_process, 30, 1),
        steps.Step("works", works, 30, 1),
    ]
    results = steps.run_steps(planned, record, ends=time.monotonic() + 300)
    assert {name: result.ended for name, result in results.items()} == {
        "fails": "failed", "hangs": "stopped", "dies": "failed", "leaves a process": "ok", "works": "ok",
    }  # fmt: skip
    assert results["fails"].found == {"so far": 1}
    assert results["fails"].why.endswith("ValueError: no such thing\n")
    assert results["fails"].prediction == "all is well"
    assert results["hangs"].why == "stopped after 2 s"
    assert results["dies"].found == {"alive": 1}
    assert results["dies"].why == "died of signal 9"
    found = results["works"].found
    assert 0 < found["left"] <= 30
    others = ["dies", "fails", "hangs", "leaves a process"]
    assert found == {"first": 1, "second": 2, "left": found["left"], "others": others}
    for name in ("hangs", "leaves a process"):
        assert has_ended(results[name].found["started"])
    assert steps.read_record(record) == results


def test_resuming_runs_what_has_not_ended_well(steps: Any, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    planned = [steps.Step("fails", fails, 30, 1), steps.Step("works", works, 30, 1)]
    first = steps.run_steps(planned, record, ends=time.monotonic() + 300)
    with record.open("a") as file:
        file.write('{"step": "works", "ended": "fai')  # a kill amid a line
    planned = [steps.Step("fails", works, 30, 1), steps.Step("works", fails, 30, 1)]
    done = steps.read_record(record)
    second = steps.run_steps(planned, record, ends=time.monotonic() + 300, done=done)
    assert second["works"] == first["works"]
    assert second["fails"].ended == "ok"
    assert steps.read_record(record)["fails"].ended == "ok"


def test_a_step_that_no_longer_fits_is_skipped(steps: Any, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    planned = [steps.Step("long", works, 300, 60), steps.Step("short", works, 300, 1)]
    results = steps.run_steps(planned, record, ends=time.monotonic() + 20)
    assert results["long"].ended == "skipped"
    assert results["long"].why in ("needs 60 s, 18 s are left", "needs 60 s, 17 s are left")
    assert results["short"].ended == "ok"
    assert results["short"].found["left"] <= 18  # not its limit


def test_forks_of_a_step_run_side_by_side(steps: Any, tmp_path: Path) -> None:
    def broken() -> dict[str, Any]:
        raise ValueError("broken")

    def together(here: Any) -> Iterator[dict[str, Any]]:
        functions = {"one": lambda: {"value": 1}, "broken": broken, "two": lambda: {"value": 2}}
        for name, found in steps.side_by_side(functions, here, 2):
            yield {name: found}

    step = steps.Step("together", together, 30, 1)
    results = steps.run_steps([step], tmp_path / "record.jsonl", ends=time.monotonic() + 60)
    found = results["together"].found
    assert found == {
        "one": {"value": 1},
        "two": {"value": 2},
        "broken": {"error": "ValueError: broken"},
    }


def test_claims_are_met_missed_or_not_measured(steps: Any) -> None:
    claims = importlib.import_module("gpu_claims")
    least = claims.Claim("speed", "a", lambda f: f["ratio"], "1", 0.97)
    most = claims.Claim("memory", "a", lambda f: f["peak"], "1", 1.02, least=False)

    def verdict(claim: Any, **found: Any) -> str:
        judged: str = claims.judge(claim, {"a": steps.Result("a", "ok", found=found)})["verdict"]
        return judged

    assert verdict(least, ratio={"median": 0.97, "low": 0.9, "high": 1}) == "met"
    assert verdict(least, ratio=0.969) == "missed"
    assert verdict(most, peak=1.02) == "met"
    assert verdict(most, peak=1.03) == "missed"
    assert verdict(most) == "not measured"
    assert claims.judge(least, {})["measured"] is None
    for claim in claims.CLAIMS:  # none is of a step that does not exist
        assert claims.judge(claim, {})["verdict"] == "not measured"


def test_wheels_are_what_a_bare_machine_lacks(steps: Any) -> None:
    wheels = importlib.import_module("gpu_wheels")
    bare = wheels.missing(wheels.with_all_they_need(wheels.BARE))
    assert {"platformdirs", "optuna", "alembic", "jsonargparse", "docstring-parser"} <= set(bare)
    assert not {"torch", "numpy", "sympy", "jinja2", "torchcodec", "playwright"} & set(bare)
    # What only a package there requires is there too.
    assert "alembic" not in wheels.missing(["Optuna"])
    assert wheels.is_pure("platformdirs")
    assert not wheels.is_pure("numpy")


# ---- the whole script, in small


def small_cifar(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in {"train": 8, "test": 2}.items():
        for label in range(10):
            images = folder / split / f"class{label}"
            images.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / f"{i}.jpg")


def run_part(part: int, out: Path, *arguments: object) -> str:
    command = [sys.executable, ROOT / "benchmarks" / "measure_gpu.py", "--part", part, "--out", out]
    done = subprocess.run(
        [*map(str, command), "--budget", "3000", *map(str, arguments)],
        env={**os.environ, "TINY": "1"}, cwd=out.parent, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_parts_run_on_a_cpu(steps: Any, tmp_path: Path) -> None:
    small_cifar(tmp_path / "images" / "cifar10")
    archive = tmp_path / "cifar.tar.xz"
    subprocess.run(["tar", "cJf", archive, "-C", tmp_path / "images", "cifar10"], check=True)
    out = tmp_path / "out"
    run_part(1, out)
    run_part(2, out, "--data", archive, "--resume")

    results = steps.read_record(out / "record.jsonl")
    assert {name: result.why for name, result in results.items() if result.ended != "ok"} == {}
    assert len(results) == 17
    found = json.loads((out / "measure-gpu.json").read_text())
    assert {row["verdict"] for row in found["claims"]} <= {"met", "missed", "", "not measured"}
    # What a network cannot reach here.
    unmeasured = [row["what"] for row in found["claims"] if row["verdict"] == "not measured"]
    assert unmeasured == [f"CIFAR-10, ResNet-18: seconds to {percent} %" for percent in (92, 94)]
    # The compiler gets none of the norms that are fused, and nothing falls back to eager mode.
    training = results["compiled training"].found
    norms = [
        training["first step"][f"batch norms, {name}"]["count"]
        for name in ("plain, stock", "eca, fused")
    ]
    assert norms == [19, 10]
    assert (training["graphs"], training["graph breaks"]) == (3, 0)
    page = (out / "measure-gpu.md").read_text()
    assert "| norm_eca_backward |" in page
    assert "TINY=1 python benchmarks/measure_gpu.py --part 2" in page

    # Into another folder: what ended well is taken over and not run again.
    again = run_part(2, tmp_path / "again", "--resume", out / "record.jsonl")
    assert again.count("done before") == 6
    assert steps.read_record(tmp_path / "again" / "record.jsonl") == results
    # Without images the steps that need them say so.
    third = run_part(2, tmp_path / "third", "--only", "cifar")
    assert "cifar: skipped in" in third
    assert "no CIFAR-10: give --data" in third
