import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from ecanet.config import RunSettings
from ecanet.errors import UserError
from ecanet.experiments.study import (
    Plan,
    claimed,
    create_study,
    enqueue_missing,
    extend_plan,
    load_plan,
    load_study,
    run_name,
    summarise,
    waiting,
)

PLAN = Plan(["none", "eca", "se:reduction=8"], [0, 1, 2, 3], [], RunSettings(), 1, "abc", [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_study(tmp_path / "study", PLAN, [], {"device": "x"})
    return tmp_path / "study"


def queue(study: optuna.Study) -> list[tuple[str, int]]:
    return [(t.user_attrs["attention"], t.user_attrs["seed"]) for t in waiting(study)]


def test_the_plan_survives_storage(folder: Path) -> None:
    assert load_plan(load_study(folder)) == PLAN


def test_every_run_is_queued_once_and_an_interrupted_study_is_balanced(folder: Path) -> None:
    study = load_study(folder)
    assert enqueue_missing(study, folder) == 12
    assert enqueue_missing(study, folder) == 12
    order = queue(study)
    assert sorted(order) == sorted((a, s) for a in PLAN.attention for s in PLAN.seeds)
    for cut in range(len(order)):
        counts = Counter(attention for attention, _ in order[:cut])
        done = [counts[attention] for attention in PLAN.attention]
        assert max(done) - min(done) <= 1
    firsts = {tuple(a for a, s in order if s == seed) for seed in PLAN.seeds}
    assert len(firsts) > 1, "the order within a seed is shuffled"


def test_finished_runs_stay_failed_ones_return(folder: Path) -> None:
    study = load_study(folder)
    enqueue_missing(study, folder)
    first, second = study.ask(), study.ask()
    study.tell(first, 0.9)
    study.tell(second, state=TrialState.FAIL)
    assert enqueue_missing(study, folder) == 11
    assert (second.user_attrs["attention"], second.user_attrs["seed"]) in queue(study)


def test_more_modules_and_seeds_extend_a_study(folder: Path) -> None:
    study = load_study(folder)
    extend_plan(study, replace(PLAN, attention=["none", "cbam"], seeds=[2, 3, 4]))
    plan = load_plan(study)
    assert plan.attention == [*PLAN.attention, "cbam"]
    assert plan.seeds == [0, 1, 2, 3, 4]
    assert enqueue_missing(study, folder) == 20


def test_other_settings_are_refused_and_named(folder: Path) -> None:
    study = load_study(folder)
    other = RunSettings(epochs=3)
    other.optimizer.lr = 0.5
    with pytest.raises(UserError) as error:
        extend_plan(study, replace(PLAN, settings=other))
    assert "epochs: 30 there, 3 asked" in str(error.value)
    assert "optimizer.lr: 0.1 there, 0.5 asked" in str(error.value)
    with pytest.raises(UserError, match="images of --data have changed"):
        extend_plan(study, replace(PLAN, data_fingerprint="xyz"))
    assert load_plan(study) == PLAN


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        create_study(tmp_path, PLAN, [], {})
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        create_study(tmp_path / "thesis.txt", PLAN, [], {})


def test_what_is_no_study_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="holds no study"):
        load_study(tmp_path)
    (tmp_path / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="cannot be read as a study"):
        load_study(tmp_path)
    with sqlite3.connect(folder / "study.db") as database:
        database.execute("UPDATE study_user_attributes SET value_json = '99' WHERE key = 'format'")
    with pytest.raises(UserError, match="another version"):
        load_study(folder)


_WORKER = """
import sys, time
from pathlib import Path
from ecanet.experiments.study import claimed, load_study
folder = Path(sys.argv[1])
trial = load_study(folder).ask()
with claimed(trial, folder):
    print("claimed", flush=True)
    time.sleep(600)
"""


def test_the_run_of_a_killed_worker_is_queued_again_at_once(folder: Path) -> None:
    study = load_study(folder)
    enqueue_missing(study, folder)
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "claimed\n"
        assert enqueue_missing(study, folder) == 11, "a living worker keeps its run"
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert enqueue_missing(study, folder) == 12
    assert len(set(queue(study))) == 12


def test_no_run_is_worked_on_twice_at_once(folder: Path) -> None:
    study = load_study(folder)
    enqueue_missing(study, folder)
    trial = study.ask()
    with (
        claimed(trial, folder),
        pytest.raises(optuna.TrialPruned),
        claimed(trial, folder),
    ):
        pass


def test_names_of_run_folders_differ() -> None:
    assert run_name("eca:kernel_size=9", 2) == "eca-kernel_size=9-seed2"
    assert run_name("eca", 0) == "eca-seed0"


def test_a_summary_of_a_study_without_runs(folder: Path) -> None:
    summary = summarise(folder)
    assert summary.records == []
    assert summary.attention == PLAN.attention
    assert summary.title == "resnet20 on digits"
