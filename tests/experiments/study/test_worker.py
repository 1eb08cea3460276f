"""A worker in a separate process: interrupted, disconnected, its run requeued."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import stub_study
from helpers.postgres_server import Postgres
from helpers.stub_study import epochs
from helpers.waiting import wait_until
from test_compare import COMMAND, outcome

from ecanet.experiments.study.location import Location
from ecanet.experiments.study.queue import Counts
from ecanet.experiments.study.study import load_study


def test_sigterm_requeues_the_run_and_the_next_worker_resumes_it(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = stub_study.make_study(Location(folder), 1, seconds=0.5)
    worker = stub_study.start(study, folder)
    wait_until(lambda: epochs(folder) == {"none-seed0": 2})
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 75, "the exit code on which schedulers requeue"
    assert study.queue.counts() == Counts(waiting=1)
    assert "received SIGTERM" in (tmp_path / "news").read_text().splitlines()[-1]
    stub_study.start(study, folder).join(60)
    assert study.queue.counts() == Counts(complete=1)
    # The second epoch's checkpoint may not have been written when the signal came.
    assert epochs(folder)["none-seed0"] <= stub_study.EPOCHS + 1
    stub_study.outcome(study)


def test_a_worker_whose_run_was_requeued_or_cancelled_stops_at_once(tmp_path: Path) -> None:
    """In the middle of an epoch that would last minutes, it notices and claims another run."""
    folder = tmp_path / "study"
    study = stub_study.make_study(Location(folder), 3, seconds=200.0, heartbeat=0.2)
    worker = stub_study.start(study, folder)
    wait_until(lambda: study.queue.running())
    ((trial_id, attributes),) = study.queue.running()
    study.queue.requeue_dead(trial_id, attributes["token"])
    taken = study.queue.claim({"host": "other", "host_key": "elsewhere"})
    assert taken.trial_id == trial_id
    wait_until(lambda: len(study.queue.running()) == 2)
    study.queue.check(taken)
    assert epochs(folder) == {}
    # A run that is cancelled is stopped as well.
    assert study.queue.cancel() == 3
    worker.join(60)
    assert worker.exitcode == 0
    assert study.queue.counts() == Counts(failed=3)


@pytest.mark.slow
def test_a_database_that_is_away_for_a_while_costs_no_epoch(
    tmp_path: Path, postgres: Postgres
) -> None:
    folder = tmp_path / "study"
    location = Location(folder, postgres.url(), tmp_path.name)
    study = stub_study.make_study(location, 2, seconds=0.3, heartbeat=0.2, grace=1.5)
    worker = stub_study.start(study, folder)
    wait_until(lambda: sum(epochs(folder).values()) >= 2)
    postgres.stop()
    time.sleep(4)
    held = epochs(folder)
    time.sleep(1.0)
    assert epochs(folder) == held, "no worker trains without a heartbeat"
    postgres.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert study.queue.counts() == Counts(complete=2)
    assert set(epochs(folder).values()) == {stub_study.EPOCHS}
    stub_study.outcome(study)


def test_a_worker_waits_for_requeued_runs_unless_no_wait(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = stub_study.make_study(Location(folder), 1)
    mine = study.queue.claim({"host": "other", "host_key": "elsewhere"})
    leaves = stub_study.start(study, folder, "--no-wait")
    leaves.join(30)
    assert leaves.exitcode == 0
    stays = stub_study.start(study, folder)
    stays.join(1.5)
    assert stays.is_alive()
    study.queue.release(mine)
    stays.join(30)
    assert stays.exitcode == 0
    assert study.queue.counts() == Counts(complete=1)


def test_other_images_are_refused_and_the_run_stays_in_the_queue(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = stub_study.make_study(Location(folder), 1, data_fingerprint="others")
    worker = stub_study.start(study, folder)
    worker.join(30)
    assert worker.exitcode == 2
    assert "are not those" in (tmp_path / "news").read_text()
    assert study.queue.counts() == Counts(waiting=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_interrupted_compare_on_postgresql_is_completed_by_a_worker(
    tmp_path: Path, postgres: Postgres
) -> None:
    """Real training, with the results of one undisturbed command."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    subprocess.run([*COMMAND, "--out", str(whole)], check=True, capture_output=True)
    command = [*COMMAND, "--out", str(shared), "--storage", postgres.url(), "--study", "real"]
    stopped = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(shared.glob("runs/*/checkpoints/*.ckpt")), 240)
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 75, err
    study = load_study(shared)
    assert study.queue.counts() == Counts(waiting=4)
    assert (shared / "report/index.html").exists()
    worker = [sys.executable, "-m", "ecanet", "worker", str(shared), "--jobs", "1"]
    subprocess.run(worker, check=True, timeout=600)
    assert study.queue.counts() == Counts(complete=4)
    assert outcome(shared) == outcome(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted_runs_on_two_devices_resume(tmp_path: Path, number: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [*COMMAND, "--devices", "2", "--attention", "eca", "--seeds", "1", "--epochs", "4"]
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    stopped = subprocess.Popen([*command, "--out", str(cut)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(cut.glob("runs/*/checkpoints/*.ckpt")), 240)
    stopped.send_signal(number)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == {signal.SIGTERM: 75, signal.SIGINT: 130}.get(number, -number), err
    assert "Traceback" not in err
    subprocess.run([*command, "--out", str(cut)], check=True)
    assert load_study(cut).queue.counts() == Counts(complete=1)
    assert outcome(cut) == outcome(whole)
