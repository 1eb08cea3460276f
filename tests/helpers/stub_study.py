"""A kind of study whose runs take milliseconds, with the real queue, workers and storage.

An epoch is a step of a chain of hashes, so that a run that resumed wrongly, or was trained twice at once,
does not end with the same numbers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import optuna

from ecanet.cli.main import main
from ecanet.config import ClassificationSettings
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.study import plan as plans
from ecanet.experiments.study import study as studies
from ecanet.experiments.study import worker as workers
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.plan import Job
from ecanet.experiments.study.study import Study, create_study, load_study
from ecanet.files import write_atomic
from ecanet.record import Record
from ecanet.signals import raise_pending
from ecanet.training import train
from ecanet.training.task import Hooks

EPOCHS = 4

# Workers fork from a process that has imported what they need, so that a killed one is replaced at once.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    [
        "ecanet.experiments.compare",
        "ecanet.experiments.report.compare",
        "ecanet.cli.worker",
        __name__,
    ]
)


STUB = "stub"
"""The data of a stub study, and its kind."""


@dataclass
class StubRun:
    """What a run is trained with."""

    attention: str
    seed: int
    title: str
    seconds: float


@dataclass
class StubPlan(ComparePlan):
    kind: ClassVar[str] = STUB

    seconds: float = 0.05
    """Of an epoch, more or less."""
    sampled: bool = False

    def __post_init__(self) -> None:
        self.settings = replace(self.settings, data=STUB)

    def sampler(self, number: int) -> optuna.samplers.BaseSampler | None:
        return optuna.samplers.RandomSampler(seed=number) if self.sampled else None

    def job(self, trial: optuna.Trial) -> Job:
        job = super().job(trial)
        if self.sampled:
            job.title += f" lr {trial.suggest_float('lr', 1e-3, 1.0, log=True):.3g}"
        job.settings = StubRun(
            job.settings.attention, job.settings.seed, job.title, seconds=self.seconds
        )
        return job


class StubTask:
    @staticmethod
    def read(settings: ClassificationSettings) -> Any:
        return SimpleNamespace(fingerprint=STUB)


def task_of(settings: ClassificationSettings) -> Any:
    """Stand in for the worker's function of that name."""
    stubbed = getattr(settings, "data", None) == STUB  # trainers have no data
    return StubTask if stubbed else train.task_of(settings)


def train_in_study(settings: Any, folder: Path, data: Any, **how: Any) -> Record:
    """Stand in for the worker's function of that name."""
    if not isinstance(settings, StubRun):
        return train.train_in_study(settings, folder, data, **how)
    hooks: Hooks = how["hooks"]
    # Independent of the queue: no other process may train this run.
    witness = (folder / "witness").open("w")
    try:
        fcntl.lockf(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        (folder / "twice-at-once").touch()
    checkpoint = folder / "last.json"
    epochs = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    for epoch in range(len(epochs), EPOCHS):
        end = time.monotonic() + settings.seconds * random.uniform(0.5, 1.5)
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
            hooks.on_step()
            raise_pending()
        before = epochs[-1]["val_loss"] if epochs else 0.0
        digest = hashlib.sha256(f"{settings.title} {epoch} {before!r}".encode()).digest()
        loss = int.from_bytes(digest[:4], "big") / 2**32
        row = {"epoch": epoch, "train_loss": loss, "val_loss": loss, "val_accuracy": 1 - loss}
        epochs.append(row)
        with (folder / "times").open("a") as times:
            times.write(f"{time.time()}\n")
        hooks.on_epoch(row)
        write_atomic(checkpoint, json.dumps(epochs))
    final = epochs[-1] | {"test_accuracy": epochs[-1]["val_accuracy"], "train_seconds": 1.0}
    return Record({"attention": settings.attention, "seed": settings.seed}, {}, epochs, final)


plans.KINDS[STUB] = f"{__name__}:StubPlan"
workers.task_of, workers.train_in_study = task_of, train_in_study


def make_plan(seeds: int = 0, kind: type[Any] = StubPlan, **values: Any) -> Any:
    """Return a plan of so many seeds, with ``values`` in place of the defaults."""
    defaults = {
        "settings": ClassificationSettings(model="resnet20", epochs=30),
        "data_fingerprint": STUB,
        "skipped_images": [],
        "plugin": [],
        "attention": ["none"],
        "seeds": list(range(seeds)),
    }
    return kind(**(defaults | values))


def make_study(
    location: Location, runs: int, *, heartbeat: float = 1.0, grace: float = 8.0, **values: Any
) -> Study:
    """Create a study of ``runs`` waiting runs, whose workers count as dead after ``grace`` seconds."""
    plan = make_plan(runs, **values)
    normal = studies.HEARTBEAT, studies.GRACE
    studies.HEARTBEAT, studies.GRACE = heartbeat, grace
    try:
        create_study(location, plan, [], {})
    finally:
        studies.HEARTBEAT, studies.GRACE = normal
    study = load_study(location)
    study.queue.enqueue(plan.runs())
    return study


def outcome(study: Study) -> dict[str, list[float]]:
    """Return the losses and value of each run, by its name; fail if a run has ended more than once."""
    found: dict[str, list[float]] = {}
    for trial in study.trials.get_trials(deepcopy=False):
        if trial.state == optuna.trial.TrialState.COMPLETE:
            name = trial.user_attrs["run"]
            assert name not in found, f"{name} has ended twice"
            record = Record.from_dict(trial.user_attrs["record"])
            assert trial.value is not None
            found[name] = [epoch["val_loss"] for epoch in record.epochs] + [trial.value]
            reported = [value for _, value in sorted(trial.intermediate_values.items())]
            assert reported == [1 - loss for loss in found[name][:-1]]
    return found


def epochs(folder: Path) -> dict[str, int]:
    """Count the epochs that were trained of each run, repeated ones included."""
    return {file.parent.name: len(file.read_text().split()) for file in folder.glob("runs/*/times")}


def start(study: Study, folder: Path, *more: str) -> BaseProcess:
    """Start ``ecanet worker`` on the study, with its files in ``folder`` and its output beside it."""
    location = Location(folder, study.location.storage, study.location.name)
    flags = [*location.flags(), "--jobs", "1", *more]
    process = forks.Process(target=worker, args=[folder.parent / "news", flags])
    process.start()
    return process


def worker(news: str | Path, arguments: list[str]) -> None:
    """Run ``ecanet worker`` in this process, which knows this kind of study."""
    with Path(news).open("a") as lines:
        os.dup2(lines.fileno(), 2)
    main(["worker", *arguments])


def python(call: str) -> list[str]:
    """Return the command line of a new Python process that makes ``call`` in this module."""
    tests = str(Path(__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {tests!r}); from helpers import stub_study as s; s.{call}"
    )
    return [sys.executable, "-c", code]
