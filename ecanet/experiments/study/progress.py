"""How far a study is, asked of its database in few words: as quick for ten thousand runs as for ten."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sql
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection

from ecanet.experiments.study.location import valid_run_name
from ecanet.experiments.study.queue import Counts, patiently, readable
from ecanet.experiments.study.study import Study

_trials = models.TrialModel.__table__
_attributes = models.TrialUserAttributeModel.__table__
_values = models.TrialValueModel.__table__
_steps = models.TrialIntermediateValueModel.__table__
_beats = models.TrialHeartbeatModel.__table__

# Runs that ended last, from which the time left is told; failures that are listed.
_LATEST, _FAILURES = 50, 1000


@dataclass
class RunUnderWay:
    """A run in a worker's hands."""

    run: str
    host: str
    epochs: int
    """Epochs that have ended."""
    value: float | None
    """The metric after the last of them."""
    seconds: float
    """Since the worker took it."""
    silent: float
    """Seconds since the worker was heard of."""


@dataclass
class Progress:
    """Where a study stands."""

    title: str
    kind: str
    metric: str
    epochs: int
    """Of a whole run."""
    counts: Counts
    best: tuple[str, float] | None
    """The run with the best value, and that value."""
    running: list[RunUnderWay]
    failed: list[tuple[str, str]]
    """Run and error of the latest that failed and were not put into the queue again."""
    seconds_left: float | None
    """Unknown until a run has ended, and while none is under way."""


def progress(study: Study) -> Progress:
    """Ask how far a study is.

    Raises:
        UserError: the study cannot be read.
    """
    plan = study.plan()
    counts = study.queue.counts()

    def look() -> Progress:
        with study.storage.engine.connect() as connection:
            return Progress(
                title=plan.title(),
                kind=plan.kind,
                metric=plan.metric,
                epochs=plan.settings.epochs,
                counts=counts,
                best=_best(connection, study, plan.direction),
                running=_running(connection, study),
                failed=_failed(connection, study) if counts.failed else [],
                seconds_left=_seconds_left(connection, study, counts),
            )

    with readable(study.location):
        found: Progress = patiently(look)
    return found


def _best(connection: Connection, study: Study, direction: str) -> tuple[str, float] | None:
    order = _values.c.value.desc() if direction == "maximize" else _values.c.value
    found = connection.execute(
        sql.select(_trials.c.trial_id, _values.c.value)
        .join(_values, _values.c.trial_id == _trials.c.trial_id)
        .where(_of(study, TrialState.COMPLETE), _values.c.value.is_not(None))
        .order_by(order)
        .limit(1)
    ).first()
    if found is None:
        return None
    trial_id, value = found
    # SQLite keeps a text in a column of numbers.
    return _texts(connection, "run", [trial_id])[trial_id], float(value)


def _running(connection: Connection, study: Study) -> list[RunUnderWay]:
    rows = connection.execute(
        sql.select(_trials.c.trial_id, _trials.c.datetime_start, _beats.c.heartbeat)
        .join(_beats, _beats.c.trial_id == _trials.c.trial_id)
        .where(_of(study, TrialState.RUNNING))
        .order_by(_trials.c.datetime_start)
    ).all()
    ids = [row[0] for row in rows]
    runs, hosts = (_texts(connection, key, ids) for key in ("run", "host"))
    steps: dict[int, list[float | None]] = {}
    for trial_id, value in connection.execute(
        sql.select(_steps.c.trial_id, _steps.c.intermediate_value)
        .where(_steps.c.trial_id.in_(ids))
        .order_by(_steps.c.step)
    ).all():
        steps.setdefault(trial_id, []).append(value)
    # Heartbeats are by the database's clock, the start by that of the worker.
    now = connection.execute(sql.select(sql.func.current_timestamp())).scalar_one()
    now = now.astimezone(timezone.utc).replace(tzinfo=None) if now.tzinfo else now
    return [
        RunUnderWay(
            run=runs[trial_id],
            host=hosts.get(trial_id, "?"),
            epochs=len(steps.get(trial_id, [])),
            value=steps[trial_id][-1] if trial_id in steps else None,
            seconds=_since(started, now),
            silent=_since(heard, now),
        )
        for trial_id, started, heard in rows
    ]


def _failed(connection: Connection, study: Study) -> list[tuple[str, str]]:
    again = sql.select(_attributes.c.value_json).where(_attributes.c.key == "retry_of")
    retried = {int(number) for number in connection.execute(again).scalars()}
    ids = [
        trial_id
        for trial_id in connection.execute(
            sql.select(_trials.c.trial_id)
            .where(_of(study, TrialState.FAIL))
            .order_by(_trials.c.trial_id.desc())
        ).scalars()
        if trial_id not in retried
    ][:_FAILURES]
    runs, errors = (_texts(connection, key, ids) for key in ("run", "error"))
    return [(runs[i], errors.get(i, "?")) for i in ids]


def _seconds_left(connection: Connection, study: Study, counts: Counts) -> float | None:
    if not counts.running:
        return None
    rows = connection.execute(
        sql.select(_trials.c.datetime_start, _trials.c.datetime_complete)
        .where(_of(study, TrialState.COMPLETE))
        .order_by(_trials.c.datetime_complete.desc())
        .limit(_LATEST)
    ).all()
    if not rows:
        return None
    each = sum((end - start).total_seconds() for start, end in rows) / len(rows)
    # Those under way are half done, more or less.
    return each * (counts.waiting + counts.running / 2) / counts.running


def _of(study: Study, state: TrialState) -> Any:
    return (_trials.c.study_id == study.queue.study_id) & (_trials.c.state == state)


def _texts(connection: Connection, key: str, ids: list[int]) -> dict[int, str]:
    """Return an attribute of each of some trials."""
    rows = connection.execute(
        sql.select(_attributes.c.trial_id, _attributes.c.value_json).where(
            _attributes.c.trial_id.in_(ids), _attributes.c.key == key
        )
    ).all()
    found = {trial_id: json.loads(text) for trial_id, text in rows}
    told = valid_run_name if key == "run" else str
    return {trial_id: told(value) for trial_id, value in found.items()}


def _since(then: datetime, now: datetime) -> float:
    return max(0.0, (now - then).total_seconds())
