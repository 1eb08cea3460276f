"""Study progress by direct SQL; its cost does not grow with the number of runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from optuna.trial import TrialState
from sqlalchemy import Connection

from ecanet.experiments.study import rows
from ecanet.experiments.study.location import valid_run_name
from ecanet.experiments.study.queue import Counts, readable
from ecanet.experiments.study.retry import retry_transient
from ecanet.experiments.study.rows import ATTRIBUTES, HEARTBEATS, STEPS, TRIALS, VALUES
from ecanet.experiments.study.study import Study

_LATEST = 50  # completed runs from whose duration the time left is estimated
_FAILURES = 1000  # failures that are listed
# Attributes of a trial that are read.
_READ = ("run", "attention", "seed", "of", "host", "how_far", "error")


@dataclass
class RunningRun:
    """A run in a worker's hands."""

    run: str
    title: str
    """What it is: the module and seed, or a trial's settings."""
    attention: str | None
    seed: int | None
    """Of a comparison's run, as :attr:`attention`."""
    host: str
    epochs: float
    """Completed epochs, and as far as it is known the part of the next one that is done."""
    value: float | None
    """The metric after the last completed epoch."""
    seconds: float
    """Since the worker claimed it."""
    silent: float
    """Seconds since the last heartbeat."""
    seconds_left: float | None
    """About how long it will take; None where that is not known yet."""


@dataclass
class BestRun:
    """The best run of a sweep so far."""

    run: str
    title: str
    """Its settings."""
    value: float
    """Of the metric."""


@dataclass
class ModuleProgress:
    """The runs of one module of a comparison."""

    attention: str
    complete: int = 0
    running: int = 0
    waiting: int = 0
    failed: int = 0
    mean: float | None = None
    """Of the metric, over the complete runs."""


@dataclass
class StudyProgress:
    """How far a study is."""

    title: str
    kind: str
    metric: str
    epochs: int | None
    """Of a whole run, if known."""
    counts: Counts
    at_most: int
    """Runs that the study may come to have: with --seeds auto, more than there are yet."""
    modules: list[ModuleProgress]
    """Of a comparison, in its order; empty for a sweep."""
    best: BestRun | None
    """Of a sweep."""
    running: list[RunningRun]
    failed: list[tuple[str, str]]
    """Run and error of the latest failures that were not queued again."""
    seconds_left: float | None
    """For the runs that there are; None while none is running, and until it can be estimated."""


def progress(study: Study) -> StudyProgress:
    """Read how far a study is.

    Raises:
        UserError: the study cannot be read.
    """
    plan = study.plan()
    counts = study.queue.counts()

    def read() -> StudyProgress:
        with study.storage.engine.connect() as connection:
            each = _mean_seconds(connection, study)
            running = _running(connection, study, plan, each)
            return StudyProgress(
                title=plan.settings.title(),
                kind=plan.kind,
                metric=plan.metric,
                epochs=getattr(plan.settings, "epochs", None),
                counts=counts,
                at_most=max(plan.most_runs(), counts.total),
                modules=_modules(connection, study, plan),
                best=None if plan.kind == "compare" else _best(connection, study, plan),
                running=running,
                failed=_failed(connection, study) if counts.failed else [],
                seconds_left=_seconds_left(counts, running, each),
            )

    with readable(study.location):
        return retry_transient(read, study.queue.timeout)


def finished_seconds(study: Study) -> float | None:
    """Return how long the study's latest runs took, on average; None if none has finished.

    Raises:
        UserError: the study cannot be read.
    """

    def read() -> float | None:
        with study.storage.engine.connect() as connection:
            return _mean_seconds(connection, study)

    with readable(study.location):
        return retry_transient(read, study.queue.timeout)


def _modules(connection: Connection, study: Study, plan: Any) -> list[ModuleProgress]:
    """Count each module's runs, and average their metric; failed runs that were retried count."""
    name = ATTRIBUTES.c.value_json
    found = connection.execute(
        sql.select(name, TRIALS.c.state, sql.func.count(), sql.func.avg(VALUES.c.value))
        .join(ATTRIBUTES, ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .outerjoin(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study.queue.study_id, ATTRIBUTES.c.key == "attention")
        .group_by(name, TRIALS.c.state)
    ).all()
    modules = {attention: ModuleProgress(attention) for attention in getattr(plan, "attention", ())}
    states = {
        TrialState.COMPLETE: "complete",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
        TrialState.FAIL: "failed",
    }
    for text, state, count, mean in found:
        module = modules.get(json.loads(text))
        if module is None or state not in states:
            continue
        setattr(module, states[state], count)
        if state == TrialState.COMPLETE and mean is not None:
            module.mean = float(mean)
    return list(modules.values())


def _best(connection: Connection, study: Study, plan: Any) -> BestRun | None:
    order = VALUES.c.value.desc() if plan.direction == "maximize" else VALUES.c.value
    known = study.queue.in_state(TrialState.COMPLETE) & VALUES.c.value.is_not(None)
    values = sql.select(TRIALS.c.trial_id, VALUES.c.value).join(
        VALUES, VALUES.c.trial_id == TRIALS.c.trial_id
    )
    found = connection.execute(values.where(known).order_by(order).limit(1)).first()
    if found is None:
        return None
    trial_id, value = found
    # SQLite keeps a text in a column of numbers.
    ((run, attributes),) = _runs(connection, [trial_id])
    title = plan.title(attributes, rows.params(connection, trial_id))
    return BestRun(run, title, float(value))


def _running(
    connection: Connection, study: Study, plan: Any, each: float | None
) -> list[RunningRun]:
    """Return the runs in workers' hands; ``each`` is how long a run takes."""
    found = connection.execute(
        sql.select(TRIALS.c.trial_id, TRIALS.c.datetime_start, HEARTBEATS.c.heartbeat)
        .join(HEARTBEATS, HEARTBEATS.c.trial_id == TRIALS.c.trial_id)
        .where(study.queue.in_state(TrialState.RUNNING))
        .order_by(TRIALS.c.datetime_start)
    ).all()
    ids = [trial_id for trial_id, _, _ in found]
    values: dict[int, list[float | None]] = {trial_id: [] for trial_id in ids}
    steps = sql.select(STEPS.c.trial_id, STEPS.c.intermediate_value).order_by(STEPS.c.step)
    for trial_id, value in connection.execute(steps.where(STEPS.c.trial_id.in_(ids))).all():
        values[trial_id].append(value)
    # Heartbeats are by the database's clock, the start by that of the worker.
    now = rows.database_time(connection)
    running = []
    for (trial_id, started, heartbeat), (run, attributes) in zip(
        found, _runs(connection, ids), strict=True
    ):
        how_far = attributes.get("how_far") or {}
        params = {} if "attention" in attributes else rows.params(connection, trial_id)
        one = RunningRun(
            run=run,
            title=plan.title(attributes, params),
            attention=attributes.get("attention"),
            seed=attributes.get("seed"),
            host=str(attributes.get("host", "?")),
            epochs=max(float(len(values[trial_id])), float(how_far.get("epochs", 0.0))),
            value=values[trial_id][-1] if values[trial_id] else None,
            seconds=max(0.0, (now - started).total_seconds()),
            silent=max(0.0, (now - heartbeat).total_seconds()),
            seconds_left=None,
        )
        one.seconds_left = _left(one, how_far, getattr(plan.settings, "epochs", None), each)
        running.append(one)
    return running


def _left(
    one: RunningRun, how_far: dict[str, Any], epochs: int | None, each: float | None
) -> float | None:
    """Return about how long a run will take: by its worker, its own epochs or the runs that have ended."""
    if (left := how_far.get("seconds_left")) is not None:
        return max(0.0, float(left) - one.silent)
    if epochs and 0 < one.epochs <= epochs:
        return one.seconds / one.epochs * (epochs - one.epochs)
    return None if each is None else max(0.0, each - one.seconds)


def _failed(connection: Connection, study: Study) -> list[tuple[str, str]]:
    again = sql.select(ATTRIBUTES.c.value_json).where(ATTRIBUTES.c.key == "retry_of")
    retried = {int(number) for number in connection.execute(again).scalars()}
    latest = sql.select(TRIALS.c.trial_id).order_by(TRIALS.c.trial_id.desc())
    failed = connection.execute(latest.where(study.queue.in_state(TrialState.FAIL))).scalars()
    ids = [trial_id for trial_id in failed if trial_id not in retried][:_FAILURES]
    return [(run, str(found.get("error", "?"))) for run, found in _runs(connection, ids)]


def _mean_seconds(connection: Connection, study: Study) -> float | None:
    """Return how long the latest runs took, on average; None if none has ended."""
    latest = connection.execute(
        sql.select(TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
        .where(study.queue.in_state(TrialState.COMPLETE))
        .order_by(TRIALS.c.datetime_complete.desc())
        .limit(_LATEST)
    ).all()
    if not latest:
        return None
    return sum((end - start).total_seconds() for start, end in latest) / len(latest)


def _seconds_left(counts: Counts, running: list[RunningRun], each: float | None) -> float | None:
    lasts = [one.seconds + one.seconds_left for one in running if one.seconds_left is not None]
    if not running or (each is None and not lasts):
        return None
    each = sum(lasts) / len(lasts) if each is None else each
    # On average, those that nothing is known of are half done.
    left = [each / 2 if one.seconds_left is None else one.seconds_left for one in running]
    return max((each * counts.waiting + sum(left)) / len(running), *left)


def _runs(connection: Connection, ids: list[int]) -> list[tuple[str, dict[str, Any]]]:
    """Return name and worker's attributes of each trial's run."""
    keys = ATTRIBUTES.c.key.in_(_READ)
    found = rows.attributes(connection, TRIALS.c.trial_id.in_(ids), keys)
    return [(valid_run_name(found[i]["run"]), found[i]) for i in ids]
