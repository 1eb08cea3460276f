import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import requests
from helpers.commands import Refuse, Run
from helpers.isolated import Isolated
from helpers.stub_study import make_plan
from helpers.waiting import wait_until
from optuna.trial import TrialState

from ecanet.config import ClassificationSettings
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.queue import Counts
from ecanet.experiments.study.study import Study, create_study, load_study


@pytest.fixture
def study(workdir: Path) -> Study:
    """A study of six runs: one complete, one failed, one running."""
    settings = ClassificationSettings(model="resnet20", epochs=4)
    plan = make_plan(3, ComparePlan, attention=["none", "eca"], settings=settings)
    create_study(Location(workdir / "mine"), plan, [], {"device": "x"})
    study = load_study(workdir / "mine")
    study.queue.enqueue(plan.runs())
    done, failed, running = (study.queue.claim({"host": "node-7"}) for _ in range(3))
    study.queue.finish(done, TrialState.COMPLETE, 0.75, {"record": {}})
    study.queue.finish(failed, TrialState.FAIL, None, {"error": "RuntimeError: out of memory"})
    optuna.Trial(study.begun_trials(), running.trial_id).report(0.25, 1)
    return study


def name(study: Study, number: int) -> str:
    return str(study.trials.get_trials()[number].user_attrs["run"])


def test_status_and_watch_show_every_run(study: Study, run: Run) -> None:
    for action in (["status"], ["watch", "--once"], ["watch"]):
        # Without a terminal watch prints once, and ends.
        code, out, err = run("study", *action, "mine")
        assert (code, err) == (0, "")
        assert "resnet20 on digits (compare)" in out
        assert "1 of 6 runs done, 1 running, 3 waiting, 1 failed" in out
        assert "best:" not in out, "a single run is no answer"
        assert re.search(r"^none +1/3 +75\.00 %$", out, re.M)
        assert f"failed: {name(study, 1)}: RuntimeError: out of memory" in out
        assert re.search(r"^eca +1 +1/4 +25\.00 % +\d+ s  node-7$", out, re.M)
        assert "\x1b" not in out


@pytest.mark.slow
def test_watch_on_a_terminal_ends_with_the_study(study: Study) -> None:
    study.queue.cancel()
    ours, theirs = pty.openpty()
    watching = subprocess.run(
        [sys.executable, "-m", "ecanet", "study", "watch", "mine"], stdout=theirs, timeout=60
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert watching.returncode == 0
    assert "1 of 6 runs done" in shown
    assert "5 failed" in shown
    assert "━" in shown


def test_list_and_show(study: Study, run: Run) -> None:
    code, out, _ = run("study", "list")
    assert code == 0
    assert " ".join(out.splitlines()[1].split()) == "mine compare 1/6 1 1 resnet20 on digits"
    code, out, _ = run("study", "show", "mine")
    assert "attention:\n- none\n- eca\n" in out
    assert "  model: resnet20" in out


def test_one_study_that_cannot_be_read_does_not_hide_the_others(
    study: Study, tmp_path: Path, run: Run
) -> None:
    plan = study.plan()
    for name in ("[bold]red[", "newer", "other-kind", "other-settings", "no-database"):
        create_study(Location(tmp_path / name), plan, [], {})
    load_study(tmp_path / "newer").trials.set_user_attr("format", 99)
    values = plan.to_dict()
    load_study(tmp_path / "other-kind").trials.set_user_attr("plan", values | {"kind": "x"})
    load_study(tmp_path / "other-settings").trials.set_user_attr("plan", values | {"more": 1})
    (tmp_path / "no-database/study.db").write_text("no database")
    code, out, err = run("study", "list")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()}
    for name, shown in {
        "[bold]red[": "resnet20 on digits",
        "mine": "resnet20 on digits",
        "newer": "another version of ecanet",
        "other-settings": "another version of ecanet",
        "other-kind": "does not know",
        "no-database": "cannot be read",
    }.items():
        assert shown in rows[name]
    assert run("study", "status", "[bold]red[")[0] == 0


@pytest.mark.slow
def test_a_study_that_cannot_be_written_is_reported_elsewhere(
    isolated: Isolated, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    plan = make_plan(1, ComparePlan)
    create_study(Location(folder), plan, [], {"device": "x"})
    mounted = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("needs the right to mount a folder read-only")
    try:
        remount = ["mount", "-o", "remount,ro,bind", str(folder)]
        subprocess.run(remount, check=True, capture_output=True)
        refused = isolated.run("report", folder, folder=tmp_path)
        assert refused.is_one_line()
        assert "--out FOLDER" in refused.err
        there = tmp_path / "report"
        reported = isolated.run("report", folder, "--out", there, folder=tmp_path)
        assert (reported.code, reported.out.strip()) == (0, str(there / "index.html"))
        assert (there / "index.html").is_file()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_cancel_and_retry(study: Study, run: Run) -> None:
    failed = name(study, 1)

    def check(counts: Counts, says: str, *command: str) -> None:
        code, _, err = run("study", *command)
        assert (code, says in err) == (0, True), err
        assert study.queue.counts() == counts

    check(
        Counts(waiting=4, running=1, complete=1),
        "1 run queued again",
        "retry",
        "mine",
        "--run",
        failed,
    )
    retried = study.trials.get_trials()[-1]
    assert retried.user_attrs["run"] == failed
    assert "error" not in retried.user_attrs
    check(Counts(complete=1, failed=5), "5 runs cancelled", "cancel", "mine")
    check(Counts(waiting=5, complete=1), "5 runs queued", "retry", "mine")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("study", "required"),
        ("study stop mine", "invalid choice"),
        ("study status", "which study?"),
        (
            "study status nowhere",
            "there is no folder nowhere: give the folder that was --out of a study",
        ),
        (
            "study watch empty",
            "empty holds no study: give the folder that was --out of a study; a comparison",
        ),
        ("study show nowhere", "that has just been started makes its study after its preparation"),
        ("study list nowhere", "no studies in nowhere"),
        ("study status mine --study x", "--storage"),
        ("study retry mine --run none-seed9", "has failed"),
        ("study status --storage mysql://x/y --study z", "only postgresql://"),
        ("study status --storage rubbish --study z", "not the address of a database"),
        ("study status --storage postgresql://nobody.invalid/x --study z", "cannot be reached"),
        ("worker mine --jobs 0", "--jobs 0"),
        ("worker --storage postgresql://x/y", "--study"),
        ("compare --out mine --storage postgresql://x/y", "a study of its own"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    study: Study, refuse: Refuse, arguments: str, says: str
) -> None:
    Path("empty").mkdir()
    refuse(says, *arguments.split())


def test_optuna_dashboard_shows_a_study(study: Study) -> None:
    dashboard = shutil.which("optuna-dashboard", path=str(Path(sys.executable).parent))
    if dashboard is None:
        pytest.skip("needs the dashboard extra")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [dashboard, "sqlite:///mine/study.db", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(path: str) -> str:
        try:
            return requests.get(f"http://127.0.0.1:{port}/{path}", timeout=10).text
        except requests.ConnectionError:
            return ""

    try:
        wait_until(lambda: get("api/studies"))
        (listed,) = json.loads(get("api/studies"))["study_summaries"]
        trials = json.loads(get(f"api/studies/{listed['study_id']}"))["trials"]
        assert listed["study_name"] == "study"
        assert [trial["state"] for trial in trials][:3] == ["Complete", "Fail", "Running"]
        assert "Optuna Dashboard" in get("dashboard/")
    finally:
        process.terminate()
        process.wait(30)
