"""Studies of the user's own training code, as docs/trainers.md has them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Refuse, Run
from helpers.waiting import wait_until

import ecanet
from ecanet.children import command
from ecanet.errors import UserError
from ecanet.experiments.study.study import load_study

DOCS = Path(__file__).parents[2] / "docs/trainers.md"
COMMAND = "python train.py --attn {attention} --seed {seed} --out {out}"

QUICK = """
import random
import torch
import ecanet

def network(attention):
    return ecanet.create_model("resnet20", num_classes=10, attention=attention), torch.zeros(2, 3, 16, 16)

def train(attention, seed, folder, report):
    print("training", attention)
    value = 0.5 + random.Random(seed).random() / 100 + 0.1 * (attention == "eca")
    for epoch in range(2):
        report(epoch, accuracy=value / (2 - epoch))
    if attention == "nan":
        value = float("nan")
    if attention == "broken":
        raise RuntimeError("out of order")
    return {"accuracy": value, "psnr": 30 + value}

def nothing(attention, seed, folder, report):
    return {"f1": 0.5}
"""


QUICK += """
def restless(attention, seed, folder, report):
    import os
    import sys
    os.chdir("/")
    (folder / "here.txt").write_text("here")
    if attention == "exits":
        sys.exit(0)
    return {"accuracy": 0.5 + random.Random(seed).random() / 100}
"""


@pytest.fixture
def mine(workdir: Path, own_registry: None) -> Path:
    (workdir / "mine.py").write_text(QUICK)
    return workdir


def study_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report/report.json").read_text())


def test_a_function_is_compared_to_the_report(mine: Path, run: Run) -> None:
    arguments = ["--attention", "none,eca", "--seeds", 4, "--jobs", 1, "--out", "study"]
    code, out, err = run(
        "compare", "--trainer", "mine.py:train", "--network", "mine.py:network", *arguments
    )
    assert (code, out) == (0, "study/report/index.html\n"), err
    assert "eca  better than none by 10.00 points" in err
    assert (mine / "study/runs/eca-seed0/output.txt").read_text() == "training eca\n"
    found = study_of(mine / "study")
    assert [cost["parameters"] for cost in found["costs"]] == [269_722, 269_749]
    assert [cost["attention_parameters"] for cost in found["costs"]] == [0, 27]
    assert found["runs"][0]["epochs"][1]["epoch"] == 1
    page = (mine / "study/report/index.html").read_text()
    assert "is up to mine.py:train" in page
    assert "start from the same weights" not in page
    assert "Diverged" not in page


def test_a_function_may_leave_the_folder_and_exits_as_a_failed_run(mine: Path, run: Run) -> None:
    arguments = ["--attention", "none,exits", "--seeds", 3, "--jobs", 1, "--out", "study"]
    code, out, err = run("compare", "--trainer", "mine.py:restless", *arguments)
    assert (code, out) == (1, "study/report/index.html\n"), err
    assert "failed: exits seed 0: RuntimeError: mine.py:restless called sys.exit(0)" in err
    assert (mine / "study/runs/none-seed2/here.txt").exists()
    assert len(study_of(mine / "study")["runs"]) == 3


def test_a_recipe_begins_the_study_anew_if_its_program_is_named(
    mine: Path, run: Run, refuse: Refuse
) -> None:
    arguments = ["--attention", "none,eca", "--seeds", 4, "--jobs", 1]
    run("compare", "--trainer", "mine.py:train", *arguments, "--out", "study")
    recipe = ["--recipe", "study/report/recipe.yaml", "--jobs", 1, "--out", "again"]
    refuse("trainer is a program that would be run: give --trainer yourself", "compare", *recipe)
    refuse("names the trainer", "compare", "--trainer", "other.py:train", *recipe)
    code, _, err = run("compare", *recipe, "--trainer", "mine.py:train")
    assert code == 0, err
    assert study_of(mine / "again")["results"] == study_of(mine / "study")["results"]


@pytest.mark.slow
def test_a_study_keeps_its_program(mine: Path, run: Run, refuse: Refuse) -> None:
    same = ["compare", "--attention", "none", "--jobs", 1, "--out", "study"]
    run(*same, "--trainer", "mine.py:train", "--seeds", 1)
    refuse("names the plugin", "worker", "study")
    assert run("worker", "study", "--plugin", "mine.py:train")[0] == 0
    refuse(
        "metric: accuracy there, f1",
        *same,
        "--trainer",
        "mine.py:train",
        "--metric",
        "f1",
        after_logs=True,
    )
    (mine / "mine.py").write_text(QUICK + "\n")
    refuse(
        "the files of mine.py:train have changed",
        *same,
        "--trainer",
        "mine.py:train",
        after_logs=True,
    )


def test_other_units_and_directions(mine: Path, run: Run, refuse: Refuse) -> None:
    arguments = [
        "compare",
        "--trainer",
        "mine.py:train",
        "--attention",
        "none,eca",
        "--jobs",
        1,
        "--seeds",
        4,
    ]
    arguments += ["--metric", "psnr"]
    refuse("psnr does not look like a fraction of 1", *arguments)
    code, _, err = run(*arguments, "--detect", 0.05, "--out", "a")
    assert code == 0
    assert "eca  better than none by 0.1000 (95 % interval" in err
    _, _, err = run(*arguments, "--detect", 0.05, "--direction", "min", "--out", "b")
    assert "eca  worse than none by 0.1000 (95 % interval" in err


def test_runs_that_fail_are_named_and_the_others_go_on(mine: Path, run: Run) -> None:
    arguments = ["--attention", "none,nan,broken", "--seeds", 1, "--jobs", 1, "--out", "study"]
    code, _, err = run("compare", "--trainer", "mine.py:train", *arguments)
    assert code == 1
    assert (
        "failed: nan seed 0: Diverged: the accuracy that mine.py:train returned is not a number"
        in err
    )
    assert "failed: broken seed 0: RuntimeError: out of order" in err
    assert "none seed 0: accuracy" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trainer", "mine.py"], "--trainer mine.py: give FILE:FUNCTION, as in mine.py:train"),
        (["--trainer", "mine.py:trian"], "has no function trian. Did you mean train?"),
        (["--trainer", "other.py:train"], "there is no file"),
        (["--trainer", "mine.py:nothing"], "returned no accuracy (it returned f1)"),
        (["--trainer", "mine.py:train", "--network", "mine.py:train"], "write def train(attention)"),
        (["--trainer", "mine.py:train", "--command", COMMAND], "one of the two"),
        (["--trainer", "mine.py:train", "--attention", "none,control"], "leave it out"),
        (["--trainer", "mine.py:train", "--epochs", "3"], "--epochs is a flag of"),
        (["--trainer", "mine.py:train", "--directory", "."], "--directory is for --command"),
        (["--command", "python train.py {attention} {out}"], "--command has no {seed}"),
        (["--command", f"{COMMAND} '"], "No closing quotation"),
        (["--command", f"nothing-of-that-name {COMMAND}"], "there is no program nothing-of-that-name"),
        (["--command", COMMAND.replace("train.py", "trian.py")], "trian.py"),
        (["--command", COMMAND, "--directory", "nowhere"], "there is no such folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(mine: Path, refuse: Refuse, arguments: list[str], says: str) -> None:
    more = [] if "--attention" in arguments else ["--attention", "none,eca"]
    refuse(says, "compare", *arguments, *more, "--seeds", 4, "--jobs", 1, after_logs=True)


def test_it_works_from_python(mine: Path) -> None:
    settings = ecanet.TrainerSettings(trainer="mine.py:train")
    study = ecanet.StudySettings(attention=["none", "eca"], seeds=1)
    summary = ecanet.compare("study", settings, study, jobs=1)
    assert sorted(record.attention for record in summary.records) == ["eca", "none"]
    with pytest.raises(UserError, match="one of the two"):
        ecanet.TrainerSettings()


@pytest.fixture
def documented(workdir: Path) -> Path:
    """Return a folder with the programs of docs/trainers.md."""
    for code in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", DOCS.read_text(), re.DOTALL):
        (workdir / code[1]).write_text(code[0])
    return workdir


def begin(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("compare", *arguments), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a machine with much else to do
@pytest.mark.parametrize("how", [["--trainer", "mine.py:train"], ["--command", COMMAND]])
def test_the_documented_programs_survive_their_workers(documented: Path, how: list[str]) -> None:
    shared = [*how, "--attention", "none,eca", "--seeds", "2", "--jobs", "2"]
    quiet = begin(*shared, "--out", "quiet")
    _, err = quiet.communicate(timeout=280)
    assert quiet.returncode == 0, err
    expected = {
        (run["settings"]["attention"], run["settings"]["seed"]): run["final"]["accuracy"]
        for run in study_of(documented / "quiet")["runs"]
    }
    assert len(expected) == 4
    assert all(0.5 < value <= 1 for value in expected.values())

    folder, killed = documented / "disturbed", 0
    for count in (2, 3, None):  # while the first runs train, and once one has ended
        process = begin(*shared, "--out", "disturbed")
        if count is not None:
            wait_until(
                lambda count=count: len(list(folder.glob("runs/*/output.txt"))) >= count, 200
            )
            for _, attributes in load_study(folder, "read").queue.running():
                os.kill(attributes["pid"], signal.SIGKILL)
                killed += 1
        _, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert killed
    found = {
        (run["settings"]["attention"], run["settings"]["seed"]): run["final"]["accuracy"]
        for run in study_of(folder)["runs"]
    }
    assert found == expected
    assert load_study(folder, "read").queue.counts().failed == 0
