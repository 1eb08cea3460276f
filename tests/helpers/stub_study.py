"""A kind of study whose runs take milliseconds; queue, workers and storage are the real ones.

An epoch is a step of a chain of hashes, so that a run that was cut off and went on wrongly, or in two
places, does not end with the same numbers.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import optuna

from ecanet.cli.main import main
from ecanet.config import RunSettings
from ecanet.experiments.study import plan as plans
from ecanet.experiments.study import study as studies
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.plan import ComparePlan, Job
from ecanet.experiments.study.study import Study, create_study, load_study
from ecanet.files import write_atomic
from ecanet.record import EpochMetrics, FinalMetrics, Record
from ecanet.signals import obey

EPOCHS = 4

# Workers fork from a process that has imported what they need: a killed one is replaced in no time. It
# finds this module only where the tests' folder is in PYTHONPATH, what takes the time everywhere.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    [
        "ecanet.experiments.compare",
        "ecanet.experiments.report.compare",
        "ecanet.cli.worker",
        __name__,
    ]
)


@dataclass
class StubPlan(ComparePlan):
    kind: ClassVar[str] = "stub"

    seconds: float = 0.05
    """Of an epoch, more or less."""
    sampled: bool = False

    def set_up(self, index: int) -> None:
        pass

    def read_data(self) -> Any:
        return SimpleNamespace(fingerprint="stub")

    def sampler(self, number: int) -> optuna.samplers.BaseSampler | None:
        return optuna.samplers.RandomSampler(seed=number) if self.sampled else None

    def job(self, trial: optuna.Trial) -> Job:
        job = super().job(trial)
        if self.sampled:
            job.title += f" lr {trial.suggest_float('lr', 1e-3, 1.0, log=True):.3g}"
        return job

    def train(
        self,
        job: Job,
        data: Any,
        folder: Path,
        *,
        progress: bool,
        on_epoch: Callable[[Any], None],
        on_step: Callable[[], None],
    ) -> Record:
        # A witness of its own: nobody else may be at this run, whatever the queue believes.
        witness = (folder / "witness").open("w")
        try:
            fcntl.lockf(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            (folder / "twice-at-once").touch()
        checkpoint = folder / "last.json"
        epochs = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
        for epoch in range(len(epochs), EPOCHS):
            end = time.monotonic() + self.seconds * random.uniform(0.5, 1.5)
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, 0.05))
                on_step()
                obey()
            before = epochs[-1]["val_loss"] if epochs else 0.0
            digest = hashlib.sha256(f"{job.title} {epoch} {before!r}".encode()).digest()
            loss = int.from_bytes(digest[:4], "big") / 2**32
            metrics = EpochMetrics(epoch, loss, 0.5, loss, 1 - loss, 0.1, 1.0)
            epochs.append(asdict(metrics))
            with (folder / "times").open("a") as times:
                times.write(f"{time.time()}\n")
            on_epoch(metrics)
            write_atomic(checkpoint, json.dumps(epochs))
        loss = epochs[-1]["val_loss"]
        final = FinalMetrics(1 - loss, loss, 1 - loss, EPOCHS - 1, 1.0)
        return Record(
            job.attention, job.seed, {}, {}, [EpochMetrics(**epoch) for epoch in epochs], final
        )


def make_study(
    location: Location, runs: int, *, heartbeat: float = 1.0, grace: float = 8.0, **how: Any
) -> Study:
    """Create a study of so many waiting runs, whose workers are taken for dead after ``grace`` seconds."""
    plan = StubPlan(
        attention=["none"],
        seeds=list(range(runs)),
        plugin=[],
        settings=RunSettings(),
        data_fingerprint="stub",
        skipped_images=[],
        **how,
    )
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
    """Return every run's losses and value, by its name; fails if a run has ended more than once."""
    found: dict[str, list[float]] = {}
    for trial in study.trials.get_trials(deepcopy=False):
        if trial.state == optuna.trial.TrialState.COMPLETE:
            name = trial.user_attrs["run"]
            assert name not in found, f"{name} has ended twice"
            record = Record.from_dict(trial.user_attrs["record"])
            assert trial.value is not None
            found[name] = [epoch.val_loss for epoch in record.epochs] + [trial.value]
            reported = [value for _, value in sorted(trial.intermediate_values.items())]
            assert reported == [1 - loss for loss in found[name][:-1]]
    return found


plans.KINDS["stub"] = f"{__name__}:StubPlan"


def start(study: Study, folder: Path, *more: str) -> BaseProcess:
    """Start ``ecanet worker`` on the study, with its files in ``folder`` and its news beside it."""
    location = Location(folder, study.location.storage, study.location.name)
    flags = [*location.flags(), "--jobs", "1", *more]
    process = forks.Process(target=worker, args=[folder.parent / "news", flags])
    process.start()
    return process


def worker(news: Path, arguments: list[str]) -> None:
    """Be ``ecanet worker``, in a process of its own that knows this kind of study."""
    with news.open("a") as lines:
        os.dup2(lines.fileno(), 2)
    main(["worker", *arguments])


if __name__ == "__main__":
    from helpers import stub_study

    stub_study.worker(Path(sys.argv[1]), sys.argv[2:])
