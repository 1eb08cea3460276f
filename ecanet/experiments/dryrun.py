"""What a command would run, how long that takes and how much memory: measured, and nothing is written.

A few steps of each network are made on its real data and device. Where the study has finished runs, how long
these took counts instead.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ecanet.activity import activity
from ecanet.config import (
    AnySettings,
    OutsideSettings,
    StudySettings,
    SweepSettings,
    TrainingSettings,
)
from ecanet.errors import counted, duration
from ecanet.experiments.compare import existing_plan, images_of, plan_comparison
from ecanet.experiments.costs import measure, single_thread
from ecanet.experiments.plans.compare import with_attention
from ecanet.experiments.plans.controls import is_control
from ecanet.experiments.plans.sweep_file import read_sweep
from ecanet.experiments.run import check_workers_can_import
from ecanet.experiments.study.location import Location, locate
from ecanet.experiments.study.plan import Plan
from ecanet.experiments.study.pool import fitting_jobs
from ecanet.experiments.study.progress import finished_seconds
from ecanet.experiments.study.queue import Counts
from ecanet.experiments.study.study import check_fits, check_folder, is_study, load_study
from ecanet.experiments.sweep import plan_sweep
from ecanet.training.device import threads_kept
from ecanet.training.launch import begin
from ecanet.training.run_folder import check_out
from ecanet.training.task import Hooks
from ecanet.training.train import task_of, warnings_only
from ecanet.training.trainer import Trainer

_WARM_UP = 3  # steps that are not timed
_STEPS = 20  # steps that are timed, at most
_SECONDS = 3.0  # s in which they are
# Batches of validation images up to which a validation is timed as a whole.
_BATCHES = 40


@dataclass
class DryRun:
    """What a command would do."""

    title: str
    attention: list[str]
    images: dict[str, int]
    """Number of images in each split."""
    skipped: int
    """Images that cannot be read."""
    steps: int | None
    """Of an epoch; None if others train."""
    epochs: int | None
    runs: int
    """That would be trained at least, those that are done included."""
    most_runs: int
    """With --seeds auto, at most."""
    done: int
    jobs: int
    """Runs at the same time."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of a run with each module; empty if nothing is known."""
    known_by: str = ""
    """Where :attr:`seconds` are from."""
    fixed_seconds: float = 0.0
    """For the imports, the data, the costs and the start of workers."""
    bytes_per_run: int | None = None
    """What a training step holds in memory."""

    @property
    def total_seconds(self) -> tuple[float, float] | None:
        """About how long the command takes, at least and at most."""
        if not self.seconds:
            return None
        each = sum(self.seconds.values()) / len(self.seconds)

        def total(runs: int) -> float:
            left = max(0, runs - self.done)
            return self.fixed_seconds + each * math.ceil(left / min(self.jobs, max(1, left)))

        return total(self.runs), total(self.most_runs)

    def lines(self) -> list[str]:
        """Return it as text."""
        images = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        lines = [self.title, f"attention: {', '.join(self.attention)}"]
        if images:
            skipped = f"; {counted(self.skipped, 'image')} cannot be read" if self.skipped else ""
            lines.append(f"images: {images}{skipped}")
        if self.steps:
            lines.append(
                f"each run: {counted(self.epochs or 0, 'epoch')} of {counted(self.steps, 'step')}"
            )
        runs = counted(self.runs, "run")
        if self.most_runs > self.runs:
            runs = f"{self.runs} to {counted(self.most_runs, 'run')}"
        lines.append(f"runs: {runs}, {self.done} of them done, {self.jobs} at the same time")
        if (total := self.total_seconds) is None:
            lines.append("time: unknown until a run has finished")
        else:
            low, high = map(duration, total)
            each = ", ".join(f"{name} {duration(s)}" for name, s in self.seconds.items())
            lines.append(f"time: about {low}" + (f" to {high}" if high != low else ""))
            lines.append(f"time of a run, {self.known_by}: {each}")
        if self.bytes_per_run:
            lines.append(f"memory: about {self.bytes_per_run / 1e9:.2f} GB for a training step")
        return [*lines, "Nothing was trained or written."]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**vars(self), "total_seconds": self.total_seconds}


def dry_run_comparison(
    out: str | Path,
    settings: AnySettings,
    study: StudySettings,
    *,
    storage: str | None = None,
    name: str | None = None,
    jobs: int | None = None,
) -> DryRun:
    """Return what :func:`ecanet.compare` with these arguments would do, after the same checks.

    Raises:
        UserError: as it would.
    """
    location = locate(out, storage, name)
    check_folder(location)
    there = existing_plan(location)
    plan, data = plan_comparison(settings, study, there, jobs=jobs)
    return _dry_run(location, plan, data, list(plan.attention), jobs, len(plan.runs()))


def dry_run_sweep(
    file: str | Path,
    out: str | Path,
    settings: TrainingSettings,
    chosen: SweepSettings,
    *,
    storage: str | None = None,
    name: str | None = None,
    jobs: int | None = None,
) -> DryRun:
    """Return what :func:`ecanet.sweep` with these arguments would do, after the same checks.

    The time is that of the network that needs the most memory.

    Raises:
        UserError: as it would.
    """
    location = locate(out, storage, name)
    found = read_sweep(file, type(settings), settings.best)
    plan, data, tried, attention = plan_sweep(found, location, settings, chosen, jobs)
    trial = dataclasses.replace(tried[-1], plugin=[])
    return _dry_run(location, plan, data, attention, jobs, plan.most_runs(), trial)


def _dry_run(
    location: Location,
    plan: Plan,
    data: Any,
    attention: list[str],
    jobs: int | None,
    runs: int,
    trial: TrainingSettings | None = None,
) -> DryRun:
    started = time.time() - psutil.Process().create_time()
    counts, finished, new = Counts(), None, not is_study(location)
    if not new:
        study = load_study(location, "read")
        check_fits(study, plan)
        counts, finished = study.queue.counts(), finished_seconds(study)
    # A study's settings are those of its plan, and a sweep's costs those of a trial.
    plan.settings = trial or plan.settings
    own = not isinstance(plan.settings, OutsideSettings)
    found = DryRun(
        plan.settings.title(), attention, images_of(data), len(data.skipped), None,
        getattr(plan.settings, "epochs", None), runs, plan.most_runs(), counts.complete + counts.pruned, 1,
    )  # fmt: skip
    costs_seconds = 0.0
    if own:
        before = time.perf_counter()
        with single_thread(), activity("measuring the memory of a run"):
            (cost,) = measure(plan.settings, attention[:1], data)
        costs_seconds = (time.perf_counter() - before) * len(attention) if new else 0.0
        found.bytes_per_run = plan.step_bytes = cost.train_peak_bytes or 0
        plan.gpu_share = cost.gpu_share or 1.0
        found.steps, found.seconds = _measured(plan.settings, data, attention)
        found.known_by = "from a few steps of each"
    found.jobs = jobs or fitting_jobs(plan)
    check_workers_can_import(plan, plan.plugin, found.jobs)
    if finished:
        found.seconds = dict.fromkeys(attention, finished)
        found.known_by = "as the study's finished runs took"
    # A worker starts as this command has started.
    found.fixed_seconds = started * (2 if found.jobs > 1 else 1) + costs_seconds
    return found


def dry_run_training(settings: TrainingSettings, out: str | Path) -> DryRun:
    """Return what :func:`ecanet.training.train.train` would do, after the same checks.

    Raises:
        UserError: as it would.
    """
    check_out(Path(out))
    task = task_of(settings)
    data = task.read(settings, alone=True)
    settings = task.resolve(settings, data, alone=True)
    started = time.time() - psutil.Process().create_time()
    attention = settings.attention or "none"
    steps, seconds = _measured(settings, data, [settings.attention])
    with single_thread():
        (cost,) = measure(settings, [attention], data)
    return DryRun(
        settings.title(), [attention], images_of(data), len(data.skipped), steps, settings.epochs,
        1, 1, 0, 1, {attention: seconds[attention]}, "from a few steps", started, cost.train_peak_bytes,
    )  # fmt: skip


@threads_kept()
@warnings_only()
def _measured(
    settings: TrainingSettings, data: Any, attention: Iterable[str | None]
) -> tuple[int, dict[str, float]]:
    """Return the steps of an epoch, and about how many seconds a run with each module takes.

    Controls, which are settled by measuring, are taken to be as fast as the plain network.
    """
    steps, found = 0, {}
    for name in attention:
        if name is not None and is_control(name):
            continue
        with activity(f"measuring {counted(_STEPS, 'step')} with {name or settings.model}"):
            own = with_attention(settings, name) if name else settings
            steps, found[name or "none"] = _run_seconds(own, data)
    return steps, found


def _run_seconds(settings: TrainingSettings, data: Any) -> tuple[int, float]:
    """Return the steps of an epoch, and about how many seconds a run takes."""
    began = time.perf_counter()
    fabric, settings = begin(settings, join=False)
    task = task_of(settings)(settings, data, fabric)
    trainer = Trainer(fabric, task, Path(), Hooks())
    trainer.wrapped.train()
    times: list[float] = []
    with task.tuned():
        built = before = time.perf_counter()
        for batch in trainer.epochs.iterate(0):
            trainer.step(batch).tolist()
            now = time.perf_counter()
            times.append(now - before)
            before = now
            timed = len(times) - _WARM_UP
            if timed >= _STEPS or (timed > 0 and now - built > _SECONDS):
                break
        first, rest = times[:_WARM_UP], times[_WARM_UP:] or times
        step = sum(rest) / len(rest)
        images = images_of(data)
        size = settings.batch_size or 1
        validated = images.get("val", images.get("eval", 0))
        if validated <= _BATCHES * size:
            before = time.perf_counter()
            task.evaluate(trainer.evaluated)
            validation = time.perf_counter() - before
        else:
            # A forward pass is a third of a step.
            validation = validated / size * step / 3
    tested = validation * images.get("test", 0) / max(1, validated)
    epochs, per_epoch = settings.epochs or 1, trainer.epochs.steps(0)
    starting = built - began + max(0.0, sum(first) - step * len(first))
    return per_epoch, starting + epochs * (per_epoch * step + validation) + tested
