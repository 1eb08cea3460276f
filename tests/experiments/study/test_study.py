import os
import shutil
import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import stub_study
from helpers.stub_study import make_plan
from helpers.waiting import wait_until
from optuna.trial import TrialState

from ecanet.config import Optimizer
from ecanet.errors import UserError
from ecanet.experiments.analysis.compare import summarise
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.locks import host_key, recover_stale_runs, run_folder_lock
from ecanet.experiments.study.queue import Counts, LeaseLost
from ecanet.experiments.study.study import Study, create_study, extend_plan, load_study

PLAN = make_plan(4, ComparePlan, attention=["none", "eca", "se:reduction=8"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_study(Location(tmp_path / "study"), PLAN, [], {"device": "x"})
    return tmp_path / "study"


def enqueue(study: Study) -> int:
    """Queue what the plan lacks; return how many runs wait."""
    study.queue.enqueue(study.plan().runs())
    return study.queue.counts().waiting


def queue(study: Study) -> list[tuple[str, int]]:
    trials = study.trials.get_trials(states=(TrialState.WAITING,))
    return [(t.user_attrs["attention"], t.user_attrs["seed"]) for t in trials]


def test_every_run_is_queued_once_and_an_interrupted_study_is_balanced(folder: Path) -> None:
    study = load_study(folder)
    assert enqueue(study) == 12
    assert enqueue(study) == 12
    order = queue(study)
    assert sorted(order) == sorted((a, s) for a in PLAN.attention for s in PLAN.seeds)
    for cut in range(len(order)):
        counts = Counter(attention for attention, _ in order[:cut])
        done = [counts[attention] for attention in PLAN.attention]
        assert max(done) - min(done) <= 1
    firsts = {tuple(a for a, s in order if s == seed) for seed in PLAN.seeds}
    assert len(firsts) > 1, "the order within a seed is shuffled"


def test_completed_runs_stay_and_failed_ones_are_queued_again(folder: Path) -> None:
    study = load_study(folder)
    enqueue(study)
    first, second = study.queue.claim({}), study.queue.claim({})
    study.queue.finish(first, TrialState.COMPLETE, 0.9, {"record": {}})
    study.queue.finish(second, TrialState.FAIL, None, {"error": "x"})
    assert study.queue.counts() == Counts(waiting=10, complete=1, failed=1)
    assert enqueue(study) == 11
    assert study.queue.counts() == Counts(waiting=11, complete=1)
    failed = study.trials.trials[second.number].user_attrs
    assert (failed["attention"], failed["seed"]) in queue(study)


def test_more_modules_and_seeds_extend_a_study(folder: Path) -> None:
    study = load_study(folder)
    # How a run is recovered and read changes no result, and may differ.
    settings = replace(PLAN.settings, workers=3, save_every=7)
    wanted = replace(PLAN, settings=settings, attention=["none", "cbam"], seeds=[2, 3, 4])
    extend_plan(study, wanted)
    plan = study.plan()
    assert plan.settings == settings
    assert plan.attention == [*PLAN.attention, "cbam"]
    assert plan.seeds == [0, 1, 2, 3, 4]
    assert enqueue(study) == 20


def test_other_settings_are_refused_and_named(folder: Path) -> None:
    study = load_study(folder)
    other = replace(PLAN.settings, epochs=3, optimizer=Optimizer(lr=0.5))
    with pytest.raises(UserError) as error:
        extend_plan(study, replace(PLAN, settings=other))
    assert "epochs: 30 there, 3 requested" in str(error.value)
    assert "optimizer.lr: nothing there, 0.5 requested" in str(error.value)
    with pytest.raises(UserError, match="images of digits have changed"):
        extend_plan(study, replace(PLAN, data_fingerprint="xyz"))
    assert study.plan() == PLAN


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        create_study(Location(tmp_path), PLAN, [], {})
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        create_study(Location(tmp_path / "thesis.txt"), PLAN, [], {})


def test_other_files_are_not_opened_as_a_study(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="holds no study"):
        load_study(tmp_path)
    (tmp_path / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="cannot be read as a study"):
        load_study(tmp_path)
    with sqlite3.connect(folder / "study.db") as database:
        database.execute("UPDATE study_user_attributes SET value_json = '99' WHERE key = 'format'")
    with pytest.raises(UserError, match="another version"):
        load_study(folder)


def test_a_log_in_a_read_only_folder_is_refused_with_advice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a study in use, without the file that SQLite makes of its log, on a read-only disk."""
    copy = tmp_path / "copy"
    study = load_study(folder)
    enqueue(study)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    assert (copy / "study.db-wal").stat().st_size
    with monkeypatch.context() as context:
        context.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(UserError, match="copy the folder to a writable place"):
            load_study(copy, "read")
    assert load_study(copy, "read").queue.counts() == study.queue.counts()


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_the_mode_of_a_study_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        create_study(Location(tmp_path / "study"), PLAN, [], {})
    finally:
        os.umask(before)
    assert (tmp_path / "study/study.db").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_run_of_a_killed_worker_is_queued_again_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = stub_study.make_study(Location(folder), 12, seconds=600.0, grace=600.0)
    worker = stub_study.start(study, folder)
    try:
        wait_until(lambda: list(folder.glob("runs/*/witness")))
        recover_stale_runs(study)
        counts = study.queue.counts()
        assert counts == Counts(waiting=11, running=1), "a living worker keeps its run"
    finally:
        worker.kill()
        worker.join()
    recover_stale_runs(study)
    assert study.queue.counts() == Counts(waiting=12)
    assert len(set(queue(study))) == 12


def test_a_run_cannot_be_locked_twice(folder: Path) -> None:
    study = load_study(folder)
    enqueue(study)
    claim = study.queue.claim({"host_key": host_key(study)})
    run = study.trials.trials[claim.number].user_attrs["run"]
    with (
        run_folder_lock(study, claim, run),
        pytest.raises(LeaseLost),
        run_folder_lock(study, claim, run),
    ):
        pass


def test_a_summary_of_a_study_without_runs(folder: Path) -> None:
    summary = summarise(load_study(folder))
    assert summary.records == []
    assert summary.attention == PLAN.attention
    assert summary.title == "resnet20 on digits"
