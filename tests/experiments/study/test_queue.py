"""The queue's guarantees, on both databases: one worker per run at a time, one end per run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
import sqlalchemy
from helpers import stub_study
from helpers.postgres_server import Postgres
from optuna.trial import TrialState

from ecanet.errors import UserError
from ecanet.experiments.study import queue as queues
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.queue import Claim, Counts, LeaseLost, Queue
from ecanet.experiments.study.retry import is_transient, retry_transient
from ecanet.experiments.study.study import Study, extend_plan, load_study

MakeStudy = Callable[..., Study]


@pytest.fixture(params=["sqlite", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStudy:
    location = Location(tmp_path / "study")
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        location = Location(tmp_path / "study", postgres.url(), tmp_path.name)
    return lambda runs: stub_study.make_study(location, runs)


def claim(study: Study) -> Claim:
    found = study.queue.claim({"host": "x"})
    assert found is not None
    return found


def silence(study: Study) -> None:
    """Make all heartbeats an hour old."""
    with study.storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01'"))


def at_once(study: Study, threads: int, work: Callable[[Queue], Any]) -> list[Any]:
    """Return what ``work`` returns in threads that begin together, each with a queue of its own."""
    barrier = threading.Barrier(threads)

    def begin(_: int) -> Any:
        queue = load_study(study.location).queue
        barrier.wait()
        return work(queue)

    with ThreadPoolExecutor(threads) as workers:
        return list(workers.map(begin, range(threads)))


def test_concurrent_claims_give_each_run_one_worker(make: MakeStudy) -> None:
    taken = at_once(make(24), 4, lambda queue: list(iter(lambda: queue.claim({}), None)))
    assert sorted(one.number for found in taken for one in found) == list(range(24))


def test_concurrent_enqueues_add_each_run_once(make: MakeStudy) -> None:
    study = make(0)
    runs = replace(study.plan(), seeds=list(range(30))).runs()  # type: ignore[call-arg]
    assert sum(at_once(study, 5, lambda queue: queue.enqueue(runs))) == 30
    trials = study.trials.get_trials()
    assert [trial.number for trial in trials] == list(range(30))
    assert [trial.user_attrs["run"] for trial in trials] == [run.name for run in runs]


def test_concurrent_extensions_of_the_plan_are_all_kept(make: MakeStudy) -> None:
    study = make(1)
    plan = study.plan()
    wanted = [replace(plan, seeds=[seed]) for seed in range(40)]  # type: ignore[call-arg]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda more: extend_plan(load_study(study.location), more), wanted))
    assert study.plan().seeds == list(range(40))  # type: ignore[attr-defined]


def test_a_worker_whose_run_was_requeued_can_change_nothing(make: MakeStudy) -> None:
    study = make(1)
    late = claim(study)
    silence(study)
    study.queue.requeue_stale()
    assert study.queue.counts() == Counts(waiting=1)
    for _ in range(2):
        # First while the run waits, then while another worker has claimed it.
        for change in (study.queue.heartbeat, study.queue.check):
            with pytest.raises(LeaseLost):
                change(late)
        with pytest.raises(LeaseLost):
            study.queue.finish(late, TrialState.COMPLETE, 0.1, {"record": {"by": "late"}})
        study.queue.release(late)
        if study.queue.counts().waiting:
            other = claim(study)
    study.queue.finish(other, TrialState.COMPLETE, 0.9, {"record": {"by": "other"}})
    with pytest.raises(LeaseLost):
        study.queue.finish(late, TrialState.COMPLETE, 0.1, {"record": {"by": "late"}})
    (trial,) = study.trials.get_trials()
    assert trial.value == 0.9
    assert trial.user_attrs["record"] == {"by": "other"}


def test_a_finish_whose_answer_was_lost_can_be_repeated(make: MakeStudy) -> None:
    study = make(1)
    mine = claim(study)
    for _ in range(2):
        study.queue.finish(mine, TrialState.COMPLETE, 0.9, {"record": {}})
    assert study.queue.counts() == Counts(complete=1)


def test_a_worker_with_a_recent_heartbeat_keeps_its_run(make: MakeStudy) -> None:
    study = make(2)
    mine, _ = claim(study), claim(study)
    silence(study)
    study.queue.heartbeat(mine)
    study.queue.requeue_stale()
    assert study.queue.counts() == Counts(waiting=1, running=1)
    study.queue.check(mine)


def test_a_released_run_is_the_same_trial(make: MakeStudy) -> None:
    study = make(2)
    mine = claim(study)
    trials = study.begun_trials()
    trials.get_trials()
    trial = optuna.Trial(trials, mine.trial_id)
    drawn = trial.suggest_float("lr", 0, 1)
    trial.report(0.5, 1)
    study.queue.release(mine)
    again = claim(study)
    assert again.number == mine.number
    assert again.token != mine.token
    trial = optuna.Trial(study.begun_trials(), again.trial_id)
    assert trial.params == {"lr": drawn}
    assert study.trials.get_trials()[mine.number].intermediate_values == {1: 0.5}


def test_a_run_that_kills_its_workers_fails_unless_it_progresses(make: MakeStudy) -> None:
    study = make(1)

    def die() -> None:
        mine = claim(study)
        study.queue.requeue_dead(mine.trial_id, mine.token)

    for _ in range(queues.MAX_ATTEMPTS - 1):
        die()
    assert study.queue.counts().waiting == 1
    mine = claim(study)
    optuna.Trial(study.begun_trials(), mine.trial_id).report(0.5, 1)
    study.queue.release(mine)
    for _ in range(queues.MAX_ATTEMPTS):
        assert study.queue.counts().waiting == 1, "another epoch: the count starts again"
        die()
    assert study.queue.counts() == Counts(failed=1)
    assert "died 10 times" in study.trials.get_trials()[0].user_attrs["error"]


def test_cancelled_and_failed_runs_are_retried_with_their_parameters(make: MakeStudy) -> None:
    study = make(3)
    done, mine = claim(study), claim(study)
    study.queue.finish(done, TrialState.COMPLETE, 0.5, {"record": {}})
    trials = study.begun_trials()
    trials.get_trials()
    drawn = optuna.Trial(trials, mine.trial_id).suggest_float("lr", 0, 1)
    assert study.queue.cancel() == 2
    with pytest.raises(LeaseLost):
        study.queue.heartbeat(mine)
    assert study.queue.counts() == Counts(complete=1, failed=2)
    runs = study.plan().runs()
    assert study.queue.enqueue(runs, retry=False) == 0
    assert study.queue.enqueue(runs) == 2
    assert study.queue.counts() == Counts(waiting=2, complete=1)
    again, trials = claim(study), study.begun_trials()
    trials.get_trials()
    retried = optuna.Trial(trials, again.trial_id)
    assert retried.suggest_float("lr", 0, 1) == drawn


def test_samplers_see_trials_that_have_begun_as_they_change(make: MakeStudy) -> None:
    study = make(4)
    begun = study.begun_trials()
    assert begun.get_trials() == []
    first, second = claim(study), claim(study)
    assert [t.state for t in begun.get_trials()] == [TrialState.RUNNING] * 2
    study.queue.finish(first, TrialState.COMPLETE, 0.5, {"record": {}})
    study.queue.release(second)
    assert [(t.number, t.value) for t in begun.get_trials()] == [(0, 0.5)]
    study.queue.finish(claim(study), TrialState.PRUNED, 0.1, {})
    assert [(t.number, t.value) for t in begun.get_trials()] == [(0, 0.5), (1, 0.1)]


def test_calls_are_retried_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    away = sqlalchemy.exc.OperationalError("SELECT", {}, Exception("server closed the connection"))
    assert retry_transient(Mock(side_effect=[away, away, away, "there"])) == "there"
    with pytest.raises(UserError, match=r"cannot be reached.*server closed"):
        retry_transient(Mock(side_effect=away), timeout=0.0)
    full = sqlalchemy.exc.OperationalError("x", {}, Exception("database or disk is full"))
    assert not is_transient(full)
    assert not is_transient(ValueError("x"))


def test_two_studies_in_one_database_are_independent(tmp_path: Path, postgres: Postgres) -> None:
    names = [f"{tmp_path.name}-{name}" for name in "ab"]
    places = [Location(tmp_path / name, postgres.url(), name) for name in names]
    studies = [stub_study.make_study(place, 3) for place in places]
    claim(studies[0])
    assert [study.queue.counts().waiting for study in studies] == [2, 3]
    assert studies[1].queue.cancel() == 3
    assert studies[0].queue.counts() == Counts(waiting=2, running=1)
