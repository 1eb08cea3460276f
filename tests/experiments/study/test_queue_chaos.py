"""Workers killed at random and a database restarted: every run ends once, with undisturbed results."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import stub_study
from helpers.postgres_server import Postgres

from ecanet.experiments.study.location import Location
from ecanet.experiments.study.queue import Counts
from ecanet.experiments.study.study import Study

RUNS = 200


def check(study: Study, folders: list[Path], calm: Path) -> None:
    """Check that every run has ended exactly once, with the results of one undisturbed worker."""
    assert study.queue.counts() == Counts(complete=RUNS), study.failed_runs()
    trials = study.trials.get_trials(deepcopy=False)
    assert len(trials) == RUNS, "a run is one trial, however often it was requeued"
    undisturbed = stub_study.make_study(Location(calm), RUNS, seconds=0.0)
    worker = stub_study.start(undisturbed, calm)
    worker.join(120)
    assert worker.exitcode == 0
    assert stub_study.outcome(study) == stub_study.outcome(undisturbed)
    for folder in folders:
        assert not list(folder.glob("runs/*/twice-at-once"))


def disturb(study: Study, folders: list[Path], halfway: Callable[[], None] = lambda: None) -> None:
    """Keep a worker running in each of ``folders``, and kill one whenever a few more runs have ended.

    Args:
        halfway: called once, when half of the runs have ended.
    """
    rng, ended, killed, next_kill = random.Random(0), 0, 0, 3
    workers = [stub_study.start(study, folder) for folder in folders]
    deadline = time.monotonic() + 240
    try:
        while (counts := study.queue.counts()).open:
            assert time.monotonic() < deadline, counts
            time.sleep(rng.uniform(0.0, 0.1))
            if counts.ended >= next_kill:
                rng.choice(workers).kill()
                killed, next_kill = killed + 1, counts.ended + rng.randint(1, 6)
            if counts.ended >= RUNS / 2 > ended:
                halfway()
            ended = counts.ended
            for i, worker in enumerate(workers):
                # Also those that gave up while the storage was away: a scheduler restarts them.
                if not worker.is_alive():
                    workers[i] = stub_study.start(study, folders[i])
        for worker in workers:
            worker.join(60)
    finally:
        for worker in workers:
            worker.kill()
    assert killed >= 20


@pytest.mark.slow
def test_workers_on_postgresql_killed_at_random_and_the_database_restarted(
    tmp_path: Path, postgres: Postgres
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    study = stub_study.make_study(Location(here, postgres.url(), "chaos"), RUNS)

    def restart() -> None:
        postgres.stop()
        time.sleep(2)
        postgres.start()

    # Half of the workers have another folder, as on another machine: a dead worker of the other half is
    # recognized by its heartbeat alone.
    disturb(study, [here] * 4 + [there] * 4, halfway=restart)
    check(study, [here, there], tmp_path / "calm")


@pytest.mark.slow
def test_workers_on_sqlite_killed_at_random(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = stub_study.make_study(Location(folder), RUNS)
    disturb(study, [folder] * 4)
    check(study, [folder], tmp_path / "calm")
