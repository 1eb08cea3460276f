"""Creation of studies and runs: by two processes at once, or by one that is killed meanwhile."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import stub_study
from helpers.postgres_server import Postgres
from helpers.stub_study import forks

from ecanet.config import ClassificationSettings
from ecanet.errors import UserError
from ecanet.experiments.run import open_study, run_study
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.queue import Counts
from ecanet.experiments.study.study import check_folder, load_study
from ecanet.files import is_temporary
from ecanet.training.run_folder import claim_folder

ODD_NAMES = ["a?b", "100%25", "#1", "{0}", "a\nb 'é\"", "[bold]"]


def plan(seeds: int, epochs: int = 1) -> Any:
    return stub_study.make_plan(seeds, settings=ClassificationSettings(epochs=epochs), seconds=0.01)


def compare(location: Location, wanted: Any) -> None:
    """What ``ecanet compare`` does, with runs that take milliseconds."""
    check_folder(location)
    study, jobs = open_study(location, wanted, lambda: ([], 0), jobs=1)
    run_study(study, stub_study.StubTask.read(wanted.settings), jobs)


def race(location: Location, wanted: Any, start: Any, answers: Any) -> None:
    start.wait()
    try:
        compare(location, wanted)
        answers.put("done")
    except UserError as error:
        answers.put(str(error))


def check_race(locations: list[Location], epochs: list[int]) -> None:
    """Start a comparison at each location at the same moment, and check that the study is one of them."""
    start, answers = forks.Barrier(len(locations)), forks.Queue()
    racers = [
        forks.Process(target=race, args=[location, plan(2 + i, epochs[i]), start, answers])
        for i, location in enumerate(locations)
    ]
    for racer in racers:
        racer.start()
    said = [answers.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(60)
    assert "done" in said
    refusals = ("another process works on", "other settings")
    for line in said:
        assert line == "done" or any(refusal in line for refusal in refusals), line
    study = load_study(locations[0])
    there = study.plan()
    assert there.settings.epochs in epochs
    if len(set(epochs)) > 1:
        assert len(there.runs()) == 2 + epochs.index(there.settings.epochs), "one of them, whole"
    if study.location.storage is None:
        with sqlite3.connect(study.folder / "study.db") as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    # The next command completes it.
    compare(study.location, there)
    assert study.queue.counts() == Counts(complete=len(there.runs()))
    assert not [name for name in os.listdir(study.folder) if is_temporary(name)]


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [[1, 1], [1, 2]], ids=["the same", "other settings"])
def test_two_comparisons_on_one_new_folder(tmp_path: Path, epochs: list[int]) -> None:
    for attempt in range(10):
        check_race([Location(tmp_path / str(attempt))] * 2, epochs)


@pytest.mark.slow
def test_two_comparisons_of_one_name_in_one_database(tmp_path: Path, postgres: Postgres) -> None:
    """From two folders, as on two machines."""
    for name in (f"race{attempt}" for attempt in range(6)):
        folders = [tmp_path / f"{name}-{i}" for i in range(2)]
        check_race([Location(folder, postgres.url(), name) for folder in folders], [1, 2])


def check_that_it_can_be_completed(location: Location) -> None:
    compare(location, plan(2))
    assert load_study(location).queue.counts() == Counts(complete=2)
    assert [path for path in location.folder.rglob("*") if is_temporary(path.name)] == []


def die_at(moment: int, location: Location) -> None:
    """Create a study, and be killed at the ``moment``-th file operation."""
    left = [moment]
    events = {
        "open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod",
        "sqlite3.connect", "sqlite3.connect/handle",
    }  # fmt: skip
    here = str(location.folder)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in events and (event.startswith("sqlite3") or here in str(arguments[0])):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    compare(location, plan(2))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_a_kill_at_any_file_operation_the_same_command_succeeds(tmp_path: Path) -> None:
    """SIGKILL as it opens, creates, moves or removes a file: at every third operation, then less often."""
    moment, killed = 1, 0
    while True:
        location = Location(tmp_path / str(moment))
        process = forks.Process(target=die_at, args=[moment, location])
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        check_that_it_can_be_completed(location)
        moment += max(3, moment // 4)
    assert killed > 8


@pytest.mark.slow
def test_after_a_kill_at_random_the_same_command_succeeds(tmp_path: Path) -> None:
    rng = random.Random(0)
    for attempt in range(25):
        location = Location(tmp_path / str(attempt))
        process = forks.Process(target=compare, args=[location, plan(2)])
        process.start()
        time.sleep(rng.uniform(0.0, 2.0))
        process.kill()
        process.join()
        check_that_it_can_be_completed(location)


def begin_run(folder: Path, answers: Any, release: Any = None, *, dies: bool = False) -> None:
    """Claim a run's folder, and hold it until ``release`` is set."""
    if dies:
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
    try:
        with claim_folder(folder, ClassificationSettings(epochs=3), accept=False):
            answers.put("claimed")
            if release:
                release.wait(60)
    except UserError as error:
        answers.put(str(error))


@pytest.mark.slow
def test_two_runs_in_one_new_folder(tmp_path: Path) -> None:
    for attempt in range(5):
        answers, release = forks.Queue(), forks.Event()
        args = [tmp_path / str(attempt), answers, release]
        racers = [forks.Process(target=begin_run, args=args) for _ in range(2)]
        for racer in racers:
            racer.start()
        said = sorted(answers.get(timeout=60) for _ in racers)
        release.set()
        for racer in racers:
            racer.join()
        assert said[1] == "claimed"
        assert "another process trains in" in said[0]


def test_a_run_killed_as_it_began_does_not_block_its_folder(tmp_path: Path) -> None:
    answers = forks.Queue()
    killed = forks.Process(target=begin_run, args=[tmp_path, answers], kwargs={"dies": True})
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert [is_temporary(name) for name in os.listdir(tmp_path) if name != ".lock"] == [True]
    begin_run(tmp_path, answers)
    assert answers.get(timeout=10) == "claimed"
    assert set(os.listdir(tmp_path)) <= {"settings.json", ".lock"}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_of_any_name_has_a_study_of_its_own(tmp_path: Path, name: str) -> None:
    study = stub_study.make_study(Location(tmp_path / name), 3)
    other = stub_study.make_study(Location(tmp_path / f"{name}?"), 1)
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}?"}
    assert study.queue.counts() == Counts(waiting=3)
    assert other.queue.counts() == Counts(waiting=1)
    study.queue_for_heartbeats().heartbeat(study.queue.claim({}))
    assert load_study(tmp_path / name).queue.counts() == Counts(waiting=2, running=1)


def test_a_folder_that_is_not_utf8_is_refused_before_the_first_run(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(UserError, match="UTF-8"):
        compare(Location(folder), plan(1))
    folder.mkdir()
    with pytest.raises(UserError, match="UTF-8"):
        compare(Location(folder / "study"), plan(1))
    assert os.listdir(folder) == []
