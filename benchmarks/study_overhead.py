"""What the queue of a study costs a run: ecanet's worker beside Optuna's own queue, as a ratio.

    python benchmarks/study_overhead.py --out results/benchmarks
    python benchmarks/study_overhead.py --storage postgresql://user@host/database --out results/benchmarks

Runs that train nothing: what is left is claim, lock, heartbeat, one epoch reported, record, end, and the
line of news. At each size of the study the two sides take turns on one database: ecanet's worker for
some runs, then Optuna's own ``optimize`` with its heartbeats, over as many waiting trials, for some.
A side's figure is the median over its runs, the ratio the median of the ratios turn by turn. "sampled"
runs draw three parameters from a random sampler and ask a Hyperband pruner. Then several workers share
400 runs.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import optuna
from sides import write_record

from ecanet.config import ClassificationSettings
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.study import plan as plans
from ecanet.experiments.study import worker
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.plan import Job
from ecanet.experiments.study.queue import Queue, Run
from ecanet.experiments.study.study import Study, create_study, load_study
from ecanet.record import Record
from ecanet.training.task import Hooks

EPOCH = {
    "epoch": 1,
    "train_loss": 0.5,
    "val_loss": 0.5,
    "val_accuracy": 0.5,
    "lr": 0.1,
    "seconds": 1.0,
}
SHARED_RUNS = 400
DATA = SimpleNamespace(fingerprint="none")


@dataclass
class EmptyPlan(ComparePlan):
    """Runs that train nothing."""

    kind: ClassVar[str] = "empty"

    sampled: bool = False

    def sampler(self, number: int) -> optuna.samplers.BaseSampler | None:
        return optuna.samplers.RandomSampler(seed=number) if self.sampled else None

    def pruner(self) -> optuna.pruners.BasePruner | None:
        return optuna.pruners.HyperbandPruner(1, 27) if self.sampled else None

    def job(self, trial: optuna.Trial) -> Job:
        if self.sampled:
            for name in ("lr", "momentum", "weight_decay"):
                trial.suggest_float(name, 1e-4, 1.0, log=True)
        return super().job(trial)


def train_nothing(settings: Any, folder: Path, data: Any, *, hooks: Hooks, **_: Any) -> Record:
    """Stand in for the training of a run."""
    hooks.on_step()
    hooks.on_epoch(EPOCH)
    final = EPOCH | {"test_accuracy": 0.5, "test_loss": 0.5, "train_seconds": 1.0}
    return Record({"attention": settings.attention, "seed": settings.seed}, {}, [EPOCH] * 30, final)


worker.train_in_study = train_nothing  # type: ignore[assignment]
plans.KINDS["empty"] = f"{__name__}:EmptyPlan"


class Enough(Exception):
    """As many runs as were wanted have ended."""


def make(location: Location, runs: int, sampled: bool = False) -> Study:
    """Create a study in which so many runs wait."""
    plan = EmptyPlan(
        attention=["none"],
        seeds=list(range(runs)),
        plugin=[],
        settings=ClassificationSettings(),
        data_fingerprint="none",
        skipped_images=[],
        sampled=sampled,
    )
    create_study(location, plan, [], {})
    study = load_study(location)
    study.queue.enqueue(plan.runs())
    return study


def ours(study: Study, runs: int) -> list[float]:
    """Let a worker end so many runs; return the seconds of each, its start left out."""
    times = [time.perf_counter()]

    class Clock(logging.Handler):
        """Takes the time of each line, of which the worker logs one for a run."""

        def emit(self, record: logging.LogRecord) -> None:
            times.append(time.perf_counter())
            if len(times) > runs + 1:
                raise Enough

    clock = Clock()
    worker.log.setLevel(logging.INFO)
    worker.log.addHandler(clock)
    with suppress(Enough):
        worker.work(study, data=DATA)
    worker.log.removeHandler(clock)
    return [after - before for before, after in itertools.pairwise(times[1:])]


def optunas(study: optuna.Study, runs: int) -> list[float]:
    """The same of Optuna's own queue."""

    def objective(trial: optuna.Trial) -> float:
        trial.report(EPOCH["val_accuracy"], 1)
        record = Record({"attention": "none", "seed": 0}, {}, [EPOCH] * 30, EPOCH)
        trial.set_user_attr("record", record.to_dict())
        return EPOCH["val_accuracy"]

    times = []
    for _ in range(runs):
        start = time.perf_counter()
        study.optimize(objective, n_trials=1)
        times.append(time.perf_counter() - start)
    return times


def peer(url: str, name: str, runs: int) -> optuna.Study:
    """Create a study of Optuna's own in which so many trials wait."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = optuna.storages.RDBStorage(
            url,
            engine_kwargs={} if url.startswith("postgresql") else {"connect_args": {"timeout": 60}},
            heartbeat_interval=30,
            grace_period=120,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
    study = optuna.create_study(storage=storage, study_name=name, pruner=optuna.pruners.NopPruner())
    # As ``enqueue_trial`` would, which takes minutes for ten thousand.
    waiting = [Run(f"none-seed{seed}", {"attention": "none", "seed": seed}) for seed in range(runs)]
    Queue(storage.engine, study._study_id, 120).enqueue(waiting)
    return study


def at_size(where: Callable[[str], Location], size: int, turns: int) -> dict[str, Any]:
    """Measure both sides in studies of ``size`` runs."""
    mine, sampled = make(where(f"plain{size}"), size), make(where(f"sampled{size}"), size, True)
    location = where(f"optuna{size}")
    location.folder.mkdir(parents=True, exist_ok=True)
    url = location.storage or f"sqlite:///{location.folder}/study.db"
    if not location.storage:
        # The same journal on both sides.
        with closing(sqlite3.connect(location.folder / "study.db")) as database:
            database.execute("PRAGMA journal_mode = WAL")
    theirs = peer(url, location.name, size)
    each = max(1, min(10, size // (2 * turns)))
    seconds: dict[str, list[list[float]]] = {"ecanet": [], "ecanet, sampled": [], "optuna": []}
    for _ in range(turns):
        seconds["ecanet"].append(ours(mine, each))
        seconds["optuna"].append(optunas(theirs, min(each, 2)))
        seconds["ecanet, sampled"].append(ours(sampled, each))
    ratios = [
        statistics.median(b) / statistics.median(a)
        for a, b in zip(seconds["ecanet"], seconds["optuna"], strict=True)
    ]
    return {
        "runs": size,
        "milliseconds": {
            side: 1000 * statistics.median(t for turn in found for t in turn)
            for side, found in seconds.items()
        },
        "optuna_over_ecanet": statistics.median(ratios),
    }


def with_workers(where: Callable[[str], Location], workers: int) -> dict[str, Any]:
    """Let so many workers share runs; return how long a run took each of them."""
    study = make(where(f"workers{workers}"), SHARED_RUNS)
    command = [sys.executable, __file__, "--work", *study.location.flags()]
    processes = [subprocess.Popen(command) for _ in range(workers)]
    for process in processes:
        process.wait()
    ended = sorted(t.datetime_complete for t in study.trials.get_trials(deepcopy=False))  # type: ignore[type-var]
    assert study.queue.counts().complete == SHARED_RUNS
    # Without the first and last: workers start and leave one after the other.
    cut = SHARED_RUNS // 10
    seconds = (ended[-cut] - ended[cut]).total_seconds()  # type: ignore[operator]
    rate = (SHARED_RUNS - 2 * cut) / seconds
    return {"workers": workers, "runs_per_second": rate, "milliseconds": 1000 * workers / rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--storage", help="postgresql://…; by default SQLite in a temporary folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the record")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    flags, rest = parser.parse_known_args()
    if flags.work:
        name = rest[rest.index("--study") + 1] if "--study" in rest else "study"
        study = load_study(Location(Path(flags.work[0]), flags.storage, name))
        worker.work(study, data=DATA)
        return
    kind = "postgresql" if flags.storage else "sqlite"
    stamp = int(time.time())
    with tempfile.TemporaryDirectory() as folder:

        def where(name: str) -> Location:
            path = Path(folder) / name
            return (
                Location(path, flags.storage, f"{name}-{stamp}")
                if flags.storage
                else Location(path)
            )

        sizes = []
        for size in flags.sizes:
            sizes.append(at_size(where, size, flags.turns))
            shown = sizes[-1]["milliseconds"]
            print(
                f"{size:6} runs: "
                + ", ".join(f"{side} {ms:.1f} ms" for side, ms in shown.items())
                + f"; optuna / ecanet {sizes[-1]['optuna_over_ecanet']:.1f}"
            )
        shared = []
        for workers in flags.workers:
            shared.append(with_workers(where, workers))
            print(
                f"{workers} workers: {shared[-1]['runs_per_second']:.0f} runs/s, "
                f"{shared[-1]['milliseconds']:.1f} ms of each a run"
            )
    record = {
        "what": f"overhead of the queue a run, on {kind}",
        "sizes": sizes,
        "workers": shared,
        "turns": flags.turns,
    }
    write_record(flags.out, f"study-overhead-{kind}", record)


if __name__ == "__main__":
    main()
