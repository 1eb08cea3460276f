"""Workers that crash or are killed, and studies that disappear meanwhile: reported, and never exit code 0."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import stub_study
from helpers.commands import Run
from helpers.news import news
from helpers.postgres_server import Postgres
from helpers.stub_study import epochs
from helpers.waiting import wait_until
from optuna.trial import TrialState

from ecanet.errors import UserError, how_it_ended
from ecanet.experiments.run import run_study
from ecanet.experiments.study import pool
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.pool import run_workers
from ecanet.experiments.study.queue import Counts
from ecanet.experiments.study.queue import Run as QueuedRun
from ecanet.experiments.study.study import Study


@pytest.fixture
def stub_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stub study known to the workers that a command starts."""
    python = stub_study.python("main(sys.argv[1:])")
    monkeypatch.setattr(pool, "command", lambda *arguments: [*python, *arguments])


def kill_when_both_work(study: Study, number: int, count: int = 1) -> threading.Thread:
    """Kill ``count`` of the study's two workers once both have trained an epoch of a run."""

    def both_work() -> bool:
        runs = [attributes["run"] for _, attributes in study.queue.running()]
        return len(runs) == 2 and set(runs) <= set(epochs(study.folder))

    def kill() -> None:
        wait_until(both_work, 120)
        for _, attributes in study.queue.running()[:count]:
            os.kill(attributes["pid"], number)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_lost_worker_is_reported_with_its_run_and_the_others_continue(
    tmp_path: Path, stub_workers: None, number: int
) -> None:
    study = stub_study.make_study(Location(tmp_path / "study"), 8, seconds=0.5)
    killer = kill_when_both_work(study, number)
    with news() as lines:
        assert run_workers(study, 1, 2) == 1
    killer.join()
    assert study.queue.counts() == Counts(complete=8)
    stub_study.outcome(study)
    (line,) = (line for line in lines if "was lost" in line)
    assert "with run none-seed" in line
    assert f"was killed by {signal.Signals(number).name}" in line
    assert ("out of memory?" in line) == (number == signal.SIGKILL)
    (log,) = (study.folder / "logs").iterdir()
    assert str(log) in line
    # The stack of the native code that crashed.
    assert ("Segmentation fault" in log.read_text()) == (number == signal.SIGSEGV)


@pytest.mark.slow
def test_a_command_whose_workers_are_all_killed_does_not_exit_with_0(
    tmp_path: Path, stub_workers: None, run: Run
) -> None:
    study = stub_study.make_study(Location(tmp_path / "study"), 20, seconds=1.0)
    killer = kill_when_both_work(study, signal.SIGKILL, 2)
    code, _, err = run("worker", study.folder, "--jobs", "2")
    killer.join()
    assert code == 1
    said = err.splitlines()
    assert sum("was lost" in line for line in said) == 2
    counts = study.queue.counts()
    assert f"{counts.waiting} runs are left" in said[-1]
    assert counts == Counts(waiting=20 - counts.complete, complete=counts.complete)


@pytest.mark.slow
def test_workers_that_cannot_start_are_one_line(tmp_path: Path, stub_workers: None) -> None:
    study = stub_study.make_study(Location(tmp_path / "study"), 2, data_fingerprint="others")
    refused = pytest.raises(UserError, match=r"a worker stopped: the images of .* are not those")
    with news() as lines, refused:
        run_workers(study, 1, 2)
    assert lines == []
    assert not list((study.folder / "logs").iterdir())


def test_how_a_process_ended_is_described() -> None:
    assert how_it_ended(-9) == "was killed by SIGKILL (out of memory?)"
    assert how_it_ended(-11) == "was killed by SIGSEGV"
    assert how_it_ended(-200) == "was killed by signal 200"
    assert how_it_ended(3) == "ended with exit code 3"


def test_failed_runs_are_exit_code_1_and_cancelled_ones_are_not(tmp_path: Path, run: Run) -> None:
    study = stub_study.make_study(Location(tmp_path / "study"), 2)
    claim = study.queue.claim({})
    study.queue.cancel(running=False)
    study.queue.finish(claim, TrialState.FAIL, None, {"error": "RuntimeError: no"})
    code, _, err = run("worker", study.folder, "--jobs", "1")
    assert code == 1
    assert "1 run has failed: none-seed0" in err
    study.queue.enqueue([QueuedRun("none-seed0")])
    assert run("worker", study.folder, "--jobs", "1")[0] == 0
    assert study.queue.counts() == Counts(complete=1, failed=1)


def _replace(folder: Path) -> None:
    shutil.copy(folder / "study.db", folder / "copy")
    os.replace(folder / "copy", folder / "study.db")


CHANGES: dict[str, Callable[[Path], object]] = {
    "moved": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "deleted": shutil.rmtree,
    "without its database": lambda folder: (folder / "study.db").unlink(),
    "with another database": _replace,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_study_moved_while_a_worker_runs_is_one_line_and_code_2(
    tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "study"
    study = stub_study.make_study(Location(folder), 2, seconds=0.3)
    worker = stub_study.start(study, folder)
    wait_until(lambda: sum(epochs(folder).values()) >= 1)
    CHANGES[change](folder)
    worker.join(60)
    assert worker.exitcode == 2
    (line,) = (tmp_path / "news").read_text().splitlines()
    assert "was moved, deleted or replaced" in line


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_study_moved_while_a_command_runs_is_one_line_and_code_2(
    tmp_path: Path, stub_workers: None, change: str
) -> None:
    folder = tmp_path / "study"
    study = stub_study.make_study(Location(folder), 4, seconds=1.0)

    def change_folder() -> None:
        wait_until(lambda: len(epochs(folder)) >= 2, 120)
        CHANGES[change](folder)

    thread = threading.Thread(target=change_folder)
    thread.start()
    with pytest.raises(UserError, match="was moved, deleted or replaced"):
        run_study(study, None, 2)
    thread.join()


@pytest.mark.slow
def test_a_study_deleted_from_its_database_is_one_line_and_code_2(
    tmp_path: Path, postgres: Postgres
) -> None:
    location = Location(tmp_path / "study", postgres.url(), "deleted")
    study = stub_study.make_study(location, 3, seconds=200.0, heartbeat=0.2)
    worker = stub_study.start(study, tmp_path / "study")
    wait_until(lambda: study.queue.running())
    study.storage.delete_study(study.queue.study_id)
    worker.join(60)
    assert worker.exitcode == 2
    assert "was deleted" in (tmp_path / "news").read_text().splitlines()[-1]
