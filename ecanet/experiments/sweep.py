"""A sweep: settings chosen by a sampler, each tried on the validation split, the best confirmed."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ecanet.activity import activity
from ecanet.config import DetectionSettings, SweepSettings, TrainingSettings
from ecanet.errors import UserError, prefixed
from ecanet.experiments.compare import check_study, guess_of
from ecanet.experiments.costs import estimate_step_memory, measure, single_thread
from ecanet.experiments.live import Watch, shown
from ecanet.experiments.plans.compare import with_attention
from ecanet.experiments.plans.sweep import SweepPlan, with_values
from ecanet.experiments.plans.sweep_file import Sweep, parse_sweep, read_sweep
from ecanet.experiments.result import SweepResult, result_of
from ecanet.experiments.run import open_study, run_study
from ecanet.experiments.study.location import Location, locate
from ecanet.experiments.study.study import Study, check_folder
from ecanet.experiments.study.weights import hash_weights
from ecanet.recipe_file import settings_class, with_settings
from ecanet.record import Cost
from ecanet.training.train import task_of

log = logging.getLogger(__name__)

# Trials where neither the command nor the file says how many, and there is no grid.
TRIALS = 20
MOST_TRIALS = 100_000


def sweep(
    file: str | Path | Mapping[str, Any],
    out: str | Path,
    settings: TrainingSettings | None = None,
    sweep_settings: SweepSettings | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    jobs: int | None = None,
    trust_plugins: bool = False,
    progress: bool = True,
    **keywords: Any,
) -> SweepResult:
    """Run the sweep of a W&B sweep file on this machine, and write the report to ``out/report``.

    Called again with the same arguments it resumes; with more trials, or more settings or seeds to
    confirm, it adds their runs.

    Example::

        space = {"lr": {"min": 0.001, "max": 0.5, "distribution": "log_uniform_values"}}
        sweep = ecanet.sweep({"method": "bayes", "parameters": space}, "sweep", data="digits", trials=12)
        sweep.best                                                # {"lr": 0.08}
        ecanet.compare("study", **sweep.recipe | {"attention": ["none", "eca"]})

    Args:
        file: the sweep file, or what one holds as a dict.
        out: the study's folder; made if missing.
        settings: what all runs share, for classifiers (the default) or detectors; what the file sets
            takes precedence.
        sweep_settings: how many trials, and what is done with the best.
        storage, name, jobs, trust_plugins, progress: as in :func:`ecanet.compare`.
        keywords: settings by name, as in :func:`ecanet.compare`: ``trials=12``, ``epochs=8``.

    Returns:
        The trials, the confirmed settings and the best of them, with tables and charts.

    Raises:
        UserError: anything the caller can put right; nothing half-written is left behind.
    """
    chosen, given = with_settings(
        keywords, sweep_settings or SweepSettings(), settings or settings_class(keywords)
    )
    location = locate(out, storage, name)
    if isinstance(file, Mapping):
        found = parse_sweep(dict(file), type(given), given.best)
    else:
        found = read_sweep(file, type(given), given.best)
    with shown(progress) as watch:
        return _sweep(
            found,
            location,
            given,
            chosen,
            jobs=jobs,
            trust_plugins=trust_plugins,
            watch=watch,
        )


def plan_sweep(
    found: Sweep,
    location: Location,
    given: TrainingSettings,
    chosen: SweepSettings,
    jobs: int | None,
) -> tuple[SweepPlan, Any, list[Any], list[str]]:
    """Read the data, check all that can be checked, and return the plan of a sweep.

    Returns:
        The plan, the data, the resolved settings of each network, the last of which needs the most memory,
        and the attention modules.

    Raises:
        UserError: a setting, a parameter or the data cannot be used.
    """
    for note in found.notes:
        log.info("%s", note)
    shared = with_values(given, found.constants)
    shared = dataclasses.replace(shared, attention=shared.attention or "none")
    if found.metric not in ("val_loss", "val_accuracy", shared.best):
        # These two are always measured.
        shared = dataclasses.replace(shared, metric=found.metric.removeprefix("val_"))
    check_sweep(found, shared, jobs)
    check_folder(location)
    task = task_of(shared)
    data = task.read(shared)
    values = {p.setting: p.bounds for p in found.parameters}
    sizes = values.get("batch_size")
    attention = values.get("attention", [shared.attention])
    # Each network is tried with the smallest batch, and last with the largest, whose memory counts.
    tried = []
    with single_thread(), activity("checking the networks"):
        for model in values.get("model", [shared.model]):
            one = dataclasses.replace(shared, model=model)
            for size in sorted({min(sizes), max(sizes)}) if sizes else [shared.batch_size]:
                resolved = task.resolve(dataclasses.replace(one, batch_size=size), data)
                for module in attention:
                    task.check(with_attention(resolved, module), data)
            tried.append(resolved)
    lines = [line for one in tried for line in task.notices(one, data, compared=len(attention) > 1)]
    if (majority := task.majority(data)) is not None:
        lines.append(guess_of(majority))
    for line in dict.fromkeys(lines):
        log.info("%s", line)
    plan = SweepPlan(
        settings=dataclasses.replace(
            tried[-1],
            model=shared.model or tried[-1].model,
            batch_size=shared.batch_size or tried[-1].batch_size,
            # A rate that nobody has given follows each run's optimizer and batch.
            optimizer=shared.optimizer,
            plugin=[],
        ),
        data_fingerprint=data.fingerprint,
        weights_hash=hash_weights(shared),
        skipped_images=list(data.skipped),
        plugin=[str(Path(plugin).resolve()) for plugin in shared.plugin],
        metric=found.metric,
        direction="maximize" if found.maximize else "minimize",
        sweep=found.content,
        trials=planned_trials(found, chosen),
        confirm=chosen.confirm,
        confirm_seeds=chosen.confirm_seeds,
    )
    return plan, data, tried, attention


def _sweep(
    found: Sweep,
    location: Location,
    given: TrainingSettings,
    chosen: SweepSettings,
    *,
    jobs: int | None,
    trust_plugins: bool,
    watch: Watch | None,
) -> SweepResult:
    plan, data, tried, attention = plan_sweep(found, location, given, chosen, jobs)

    def estimate_memory() -> tuple[list[Cost], int]:
        if isinstance(given, DetectionSettings):
            costs = measure(tried[-1], attention, data)
            return [], max(cost.train_peak_bytes or 0 for cost in costs)
        return [], max(estimate_step_memory(one, name, data) for one in tried for name in attention)

    with activity("estimating the memory of a run"):
        study, jobs = open_study(
            location, plan, estimate_memory, jobs=jobs, trust_plugins=trust_plugins
        )
    if found.early and plan.pruner() is None:
        log.info("early_terminate has no effect: runs have at most %d epochs", plan.epochs())
    trusted = None if trust_plugins else plan.plugin
    watching: list[AbstractContextManager[None]] = [_stopping(study, plan, chosen.timeout)]
    if watch:
        watching.append(watch(study))
    run_study(study, data, jobs, plugin=trusted, watching=_all(watching))
    summary = result_of(study)
    assert isinstance(summary, SweepResult)
    return summary


def check_sweep(found: Sweep, settings: TrainingSettings, jobs: int | None) -> None:
    """Refuse what cannot be run, before anything is read or written.

    Raises:
        UserError: one line that names the parameter or flag.
    """
    check_study(settings, [str(settings.attention)], 1, jobs)
    for p in found.parameters:
        for value in p.bounds:
            with prefixed(f"parameter {p.name}: "):
                tried = with_values(settings, {p.setting: value})
                check_study(tried, [str(tried.attention)], 1, jobs)
    for p, q in itertools.combinations(found.parameters, 2):
        # Of long lists the first values: each pair is a millisecond's work.
        for first, second in itertools.product(p.bounds[:20], q.bounds[:20]):
            with prefixed(f"parameters {p.name} and {q.name} exclude each other, leave one out: "):
                with_values(settings, {p.setting: first, q.setting: second})


def planned_trials(found: Sweep, chosen: SweepSettings) -> int:
    """Return how many trials there shall be: as requested, within a grid's size and the file's cap."""
    wanted = chosen.trials
    limits = [found.run_cap] if found.run_cap else []
    if found.method == "grid":
        limits.append(found.grid_size())
    planned = min([wanted or math.inf, *limits]) if wanted or limits else TRIALS
    if planned > MOST_TRIALS:
        raise UserError(
            f"the sweep has {planned} trials, and a study may have {MOST_TRIALS}: give --trials or run_cap"
        )
    if wanted and limits and wanted > min(limits):
        why = "all of the grid" if min(limits) != found.run_cap else "the maximum by run_cap"
        log.info("--trials %d: running %d trials, %s", wanted, min(limits), why)
    return int(planned)


@contextmanager
def _all(contexts: Iterable[AbstractContextManager[None]]) -> Iterator[None]:
    """Enter several contexts."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@contextmanager
def _stopping(study: Study, plan: SweepPlan, timeout: float | None) -> Iterator[None]:
    """Take what waits out of the queue when the time is up, or a trial has reached the target."""
    deadline = time.monotonic() + (timeout or math.inf)
    reached = plan.file.target is None
    closed = threading.Event()

    def poll() -> None:
        nonlocal reached
        if time.monotonic() > deadline:
            if number := study.queue.cancel(running=False):
                log.info(
                    "--timeout is over: %d runs are left; run the same command to resume", number
                )
        elif not reached and plan.target_reached(study.read_trials()):
            # Once: the runs that confirm the best come later.
            reached = True
            number = study.queue.cancel(running=False)
            log.info("a trial reached the target: skipping the remaining %d", number)

    def keep_polling() -> None:
        # What is wrong with the study is said by the one who works on it.
        with suppress(UserError):
            while not closed.wait(1.0):
                poll()

    if timeout or not reached:
        poll()
        threading.Thread(target=keep_polling, daemon=True).start()
    try:
        yield
    finally:
        closed.set()
