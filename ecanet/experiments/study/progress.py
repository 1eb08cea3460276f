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


@dataclass
class RunningRun:
    """A run in a worker's hands."""

    run: str
    host: str
    epochs: int
    """Completed epochs."""
    value: float | None
    """The metric after the last of them."""
    seconds: float
    """Since the worker claimed it."""
    silent: float
    """Seconds since the last heartbeat."""


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
    modules: list[ModuleProgress]
    """Of a comparison, in its order; empty for a sweep."""
    best: tuple[str, float] | None
    """Of a sweep: the trial with the best value, and that value."""
    running: list[RunningRun]
    failed: list[tuple[str, str]]
    """Run and error of the latest failures that were not queued again."""
    seconds_left: float | None
    """None until a run has ended, and while none is running."""


def progress(study: Study) -> StudyProgress:
    """Read how far a study is.

    Raises:
        UserError: the study cannot be read.
    """
    plan = study.plan()
    counts = study.queue.counts()

    def read() -> StudyProgress:
        with study.storage.engine.connect() as connection:
            return StudyProgress(
                title=plan.settings.title(),
                kind=plan.kind,
                metric=plan.metric,
                epochs=getattr(plan.settings, "epochs", None),
                counts=counts,
                modules=_modules(connection, study, plan),
                best=None if plan.kind == "compare" else _best(connection, study, plan.direction),
                running=_running(connection, study),
                failed=_failed(connection, study) if counts.failed else [],
                seconds_left=_seconds_left(connection, study, counts),
            )

    with readable(study.location):
        return retry_transient(read)


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


def _best(connection: Connection, study: Study, direction: str) -> tuple[str, float] | None:
    order = VALUES.c.value.desc() if direction == "maximize" else VALUES.c.value
    known = study.queue.in_state(TrialState.COMPLETE) & VALUES.c.value.is_not(None)
    values = sql.select(TRIALS.c.trial_id, VALUES.c.value).join(
        VALUES, VALUES.c.trial_id == TRIALS.c.trial_id
    )
    found = connection.execute(values.where(known).order_by(order).limit(1)).first()
    if found is None:
        return None
    trial_id, value = found
    # SQLite keeps a text in a column of numbers.
    return _runs(connection, [trial_id])[0][0], float(value)


def _running(connection: Connection, study: Study) -> list[RunningRun]:
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
    return [
        RunningRun(
            run=run,
            host=str(attributes.get("host", "?")),
            epochs=len(values[trial_id]),
            value=values[trial_id][-1] if values[trial_id] else None,
            seconds=max(0.0, (now - started).total_seconds()),
            silent=max(0.0, (now - heartbeat).total_seconds()),
        )
        for (trial_id, started, heartbeat), (run, attributes) in zip(
            found, _runs(connection, ids), strict=True
        )
    ]


def _failed(connection: Connection, study: Study) -> list[tuple[str, str]]:
    again = sql.select(ATTRIBUTES.c.value_json).where(ATTRIBUTES.c.key == "retry_of")
    retried = {int(number) for number in connection.execute(again).scalars()}
    latest = sql.select(TRIALS.c.trial_id).order_by(TRIALS.c.trial_id.desc())
    failed = connection.execute(latest.where(study.queue.in_state(TrialState.FAIL))).scalars()
    ids = [trial_id for trial_id in failed if trial_id not in retried][:_FAILURES]
    return [(run, str(found.get("error", "?"))) for run, found in _runs(connection, ids)]


def _seconds_left(connection: Connection, study: Study, counts: Counts) -> float | None:
    if not counts.running:
        return None
    latest = connection.execute(
        sql.select(TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
        .where(study.queue.in_state(TrialState.COMPLETE))
        .order_by(TRIALS.c.datetime_complete.desc())
        .limit(_LATEST)
    ).all()
    if not latest:
        return None
    each = sum((end - start).total_seconds() for start, end in latest) / len(latest)
    # On average, the running ones are half done.
    return each * (counts.waiting + counts.running / 2) / counts.running


def _runs(connection: Connection, ids: list[int]) -> list[tuple[str, dict[str, Any]]]:
    """Return name and worker's attributes of each trial's run."""
    keys = ATTRIBUTES.c.key.in_(["run", "host", "error"])
    found = rows.attributes(connection, TRIALS.c.trial_id.in_(ids), keys)
    return [(valid_run_name(found[i]["run"]), found[i]) for i in ids]
