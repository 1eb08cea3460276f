"""Workers killed at random, databases restarted, links cut: every run ends once, as if nothing had been."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import stub_study
from helpers.postgres_server import Postgres
from optuna.trial import TrialState

from ecanet.experiments.study.location import Location
from ecanet.experiments.study.study import Study, failures


def outcome_of_one_worker(study: Study, folder: Path) -> dict[str, list[float]]:
    """Return what the study's runs come to when one worker makes them undisturbed."""
    runs = len(study.plan().runs())
    calm = stub_study.make_study(Location(folder), runs, seconds=0.0)
    worker = stub_study.start(calm, folder)
    worker.join(120)
    assert worker.exitcode == 0
    return stub_study.outcome(calm)


def check(study: Study, runs: int, folders: list[Path], calm: Path) -> None:
    """Every run has ended exactly once, none lost, none doubled, with one worker's results."""
    counts = study.queue.counts()
    assert counts.complete == counts.total == runs, failures(study)
    trials = study.trials.get_trials(deepcopy=False)
    assert len(trials) == runs, "a run is one trial, however often it was given back"
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert stub_study.outcome(study) == outcome_of_one_worker(study, calm)
    for folder in folders:
        assert not list(folder.glob("runs/*/twice-at-once"))


def torment(study: Study, folders: list[Path], halfway: Callable[[], None] | None = None) -> int:
    """Keep a worker at work in each of ``folders``, kill one whenever some more runs have ended, until
    all have; return how many were killed.

    Args:
        halfway: called once, when half of the runs have ended.
    """
    chance, killed, next_kill = random.Random(0), 0, 3
    total = study.queue.counts().total
    workers = [stub_study.start(study, folder) for folder in folders]
    deadline = time.monotonic() + 240
    try:
        while (counts := study.queue.counts()).open:
            assert time.monotonic() < deadline, counts
            time.sleep(chance.uniform(0.0, 0.1))
            if counts.ended >= next_kill:
                chance.choice(workers).kill()
                killed, next_kill = killed + 1, counts.ended + chance.randint(1, 6)
            if halfway and counts.ended >= total / 2:
                halfway()
                halfway = None
            for i, worker in enumerate(workers):
                # Also those that gave up while the storage was away: a scheduler starts them again.
                if not worker.is_alive():
                    workers[i] = stub_study.start(study, folders[i])
        for worker in workers:
            worker.join(60)
    finally:
        for worker in workers:
            worker.kill()
    return killed


@pytest.mark.slow
def test_workers_on_postgresql_killed_at_random_and_the_database_restarted(
    tmp_path: Path, postgres: Postgres
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    study = stub_study.make_study(Location(here, postgres.url(), "chaos"), 200)

    def restart() -> None:
        postgres.stop()
        time.sleep(2)
        postgres.start()

    # Half of the workers keep their files elsewhere, as on another machine: of each other's death the
    # two halves learn by silence alone.
    folders = [here] * 4 + [there] * 4
    killed = torment(study, folders, halfway=restart)
    assert killed >= 20
    check(study, 200, [here, there], tmp_path / "calm")


@pytest.mark.slow
def test_workers_on_sqlite_killed_at_random(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = stub_study.make_study(Location(folder), 200)
    killed = torment(study, [folder] * 4)
    assert killed >= 20
    check(study, 200, [folder], tmp_path / "calm")
