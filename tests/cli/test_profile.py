"""``ecanet profile``: output, files and refusals."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.commands import Refuse, Run
from helpers.plugins import write_plugin
from helpers.runs import read_csv

from ecanet.profiling import claims as claims_module
from ecanet.profiling.claims import CONTRADICTED, EXACT, Claim

GOOD = Claim("kernel", "", "64 channels", "paper", "3", "3", EXACT, None, None, None)


def test_table_and_files(run: Run, tmp_path: Path) -> None:
    models = "-m resnet20 --attention none,se eca:kernel_size=9 --image-size 32 --num-classes 10"
    code, out, _ = run("profile", *models.split(), "--out", str(tmp_path / "costs"))
    assert code == 0
    assert "269,722" in out
    assert "resnet20 + eca:kernel_size=9" in out
    assert max(map(len, out.splitlines())) <= 80
    assert sorted(os.listdir(tmp_path / "costs")) == ["attention.csv", "models.csv", "profile.json"]
    written = json.loads((tmp_path / "costs" / "profile.json").read_text())
    assert [m["parameters"] for m in written["models"]] == [269_722, 272_782, 269_722 + 9 * 9]
    assert written["environment"]["versions"]["torch"]
    rows = read_csv(tmp_path / "costs/attention.csv")
    assert [row["stage"] for row in rows] == ["layer1", "layer2", "layer3"] * 2
    assert {row["modules"] for row in rows} == {"3"}


def test_speed(run: Run, tmp_path: Path) -> None:
    model = "-m resnet20 --image-size 8 --num-classes 10"
    timing = "--batch-sizes 1,2 --device cpu --precision float32 --repeats 1"
    code, out, err = run("profile", *model.split(), *timing.split(), "--out", str(tmp_path))
    assert code == 0
    assert "inference, batch of 1 " in out
    assert "inference, batch of 2 " in out
    assert "training, batch" not in out
    assert "timing batches of 2" in err
    assert [row["batch_size"] for row in read_csv(tmp_path / "speed.csv")] == ["1", "2"]


def test_a_plugin(own_registry: None, run: Run, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path / "mine.py", "profiled_scale")
    arguments = "-m resnet20 --attention profiled_scale --image-size 16 --plugin"
    code, out, _ = run("profile", *arguments.split(), plugin)
    assert code == 0
    assert "336" in out, "3 blocks of 16, 32 and 64 channels"


@pytest.mark.parametrize("verdict", [EXACT, CONTRADICTED])
def test_check_claims_and_its_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdict: str
) -> None:
    found = [GOOD, replace(GOOD, verdict=verdict)]
    monkeypatch.setattr(claims_module, "check_claims", lambda: found)
    code, out, _ = run("profile", "--check-claims", "--out", str(tmp_path))
    assert code == (1 if verdict == CONTRADICTED else 0)
    assert f"64 channels{'3':>26}{'3':>12}  {verdict}" in out
    assert json.loads((tmp_path / "claims.json").read_text())[1]["verdict"] == verdict
    assert (tmp_path / "claims.csv").read_text().count("64 channels") == 2
    _, markdown, _ = run("profile", "--check-claims", "--markdown", "all")
    assert f"| 64 channels | 3 | 3 | {verdict} |" in markdown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("-m resnet21", "Did you mean"),
        ("-m resnet20 --attention ecca", "eca"),
        ("-m resnet20,resnet20", "more than once"),
        ("-m eca_resnet50 --attention se", "contradicts"),
        ("-m eca_resnet50 --kernel-sizes 35", "4 stages"),
        ("--attention eca", "--attention changes nothing without -m"),
        ("-m resnet20 --train", "--train changes nothing without --batch-sizes"),
        ("-m resnet20 --batch-sizes 0", "--batch-sizes 0: give a whole number from 1"),
        ("-m resnet20 --batch-sizes 1 --device cuda:77", "CUDA devices"),
        ("-m resnet20 --attention none --attention ecca", "eca"),
        ("-m resnet20 --image-size big", "--image-size: expected int, got big"),
        ("-m resnet20 --plugin no_such.py", "no_such.py"),
        ("--markdown short", "without --check-claims"),
        ("--check-claims -m resnet20", "--model changes nothing with --check-claims"),
        ("--check-claims --out pyproject", "pyproject"),
        ("--epochs 3", "--epochs is a flag of"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    refuse: Refuse, workdir: Path, arguments: str, says: str
) -> None:
    (workdir / "pyproject").touch()
    refuse(says, "profile", *arguments.split())
    assert os.listdir(workdir) == ["pyproject"], "nothing is left behind"
