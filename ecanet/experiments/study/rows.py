"""A study's rows in Optuna's tables: statements on an open connection, the steps of transactions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sql
from optuna.distributions import json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

STUDIES = models.StudyModel.__table__
STUDY_ATTRIBUTES = models.StudyUserAttributeModel.__table__
TRIALS = models.TrialModel.__table__
ATTRIBUTES = models.TrialUserAttributeModel.__table__
SYSTEM_ATTRIBUTES = models.TrialSystemAttributeModel.__table__
PARAMS = models.TrialParamModel.__table__
VALUES = models.TrialValueModel.__table__
STEPS = models.TrialIntermediateValueModel.__table__
HEARTBEATS = models.TrialHeartbeatModel.__table__


def lock_study(connection: Connection, study_id: int) -> bool:
    """Lock a study's row until the transaction ends; return whether the study exists."""
    row = STUDIES.update().where(STUDIES.c.study_id == study_id)
    return bool(connection.execute(row.values(study_name=STUDIES.c.study_name)).rowcount)


def lock_trial(connection: Connection, trial_id: int) -> tuple[TrialState | None, str | None]:
    """Lock a trial's row until the transaction ends; return as :func:`state_and_token` does."""
    # A write locks on every database. A read before it could be outdated once the lock is held.
    update_trial(connection, trial_id, state=TRIALS.c.state)
    return state_and_token(connection, trial_id)


def state_and_token(connection: Connection, trial_id: int) -> tuple[TrialState | None, str | None]:
    """Return a trial's state and its worker's token; None and None if its study was deleted."""
    its_token = (ATTRIBUTES.c.trial_id == TRIALS.c.trial_id) & (ATTRIBUTES.c.key == "token")
    row = connection.execute(
        sql.select(TRIALS.c.state, ATTRIBUTES.c.value_json)
        .outerjoin(ATTRIBUTES, its_token)
        .where(TRIALS.c.trial_id == trial_id)
    ).one_or_none()
    if row is None:
        return None, None
    state, token = row
    return state, None if token is None else json.loads(token)


def update_trial(connection: Connection, trial_id: int, **columns: Any) -> None:
    """Set columns of a trial's row."""
    connection.execute(TRIALS.update().where(TRIALS.c.trial_id == trial_id).values(**columns))


def latest_trials(connection: Connection, study_id: int) -> dict[str, tuple[int, TrialState]]:
    """Return id and state of each run's trial, by the run's name: of a retried run, the last one."""
    rows = connection.execute(
        sql.select(ATTRIBUTES.c.value_json, TRIALS.c.trial_id, TRIALS.c.state)
        .join(TRIALS, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id)
        .where(TRIALS.c.study_id == study_id, ATTRIBUTES.c.key == "run")
        .order_by(TRIALS.c.trial_id)
    ).all()
    return {json.loads(name): (trial_id, state) for name, trial_id, state in rows}


def attributes(connection: Connection, *conditions: Any) -> dict[int, dict[str, Any]]:
    """Return attributes by trial id: all rows of TRIALS joined with ATTRIBUTES that meet ``conditions``."""
    rows = connection.execute(
        sql.select(TRIALS.c.trial_id, ATTRIBUTES.c.key, ATTRIBUTES.c.value_json)
        .join(ATTRIBUTES, ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .where(*conditions)
    ).all()
    found: dict[int, dict[str, Any]] = {}
    for trial_id, key, value in rows:
        found.setdefault(trial_id, {})[key] = json.loads(value)
    return found


def set_attributes(connection: Connection, trial_id: int, values: dict[str, Any]) -> None:
    """Set user attributes of a trial; the others stay."""
    upsert(connection, ATTRIBUTES, "value_json", json_rows({"trial_id": trial_id}, values))


def set_heartbeat(connection: Connection, trial_id: int) -> None:
    """Record a heartbeat of the trial's worker, by the database's clock."""
    row = {"trial_id": trial_id, "heartbeat": sql.func.current_timestamp()}
    upsert(connection, HEARTBEATS, "heartbeat", [row])


def set_value(connection: Connection, trial_id: int, value: float) -> None:
    """Store the value that a trial is judged by."""
    stored, kind = models.TrialValueModel.value_to_stored_repr(value)
    row = {"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind}
    connection.execute(VALUES.insert().values(row))


def last_step(connection: Connection, trial_id: int) -> int | None:
    """Return the last step for which a trial has reported a value; None if it has reported none."""
    query = sql.select(sql.func.max(STEPS.c.step)).where(STEPS.c.trial_id == trial_id)
    return connection.execute(query).scalar()


def params(connection: Connection, trial_id: int) -> dict[str, Any]:
    """Return the parameters that were given to a trial or suggested for it."""
    system, table = SYSTEM_ATTRIBUTES.c, PARAMS.c
    fixed = (system.trial_id == trial_id) & (system.key == "fixed_params")
    given = connection.execute(sql.select(system.value_json).where(fixed)).scalar()
    columns = sql.select(table.param_name, table.param_value, table.distribution_json)
    rows = connection.execute(columns.where(table.trial_id == trial_id)).all()
    return json.loads(given or "{}") | {
        name: json_to_distribution(distribution).to_external_repr(value)
        for name, value, distribution in rows
    }


def insert_trials(
    connection: Connection, study_id: int, trials: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """Add waiting trials, each of attributes and given parameters; Optuna can add one at a time only."""
    if not trials:
        return
    count = sql.select(sql.func.count()).where(TRIALS.c.study_id == study_id)
    number = connection.execute(count).scalar_one()
    new = {"study_id": study_id, "state": TrialState.WAITING}
    connection.execute(TRIALS.insert(), [{**new, "number": number + i} for i in range(len(trials))])
    ids = connection.execute(
        sql.select(TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.number >= number)
        .order_by(TRIALS.c.number)
    ).scalars()
    user, system = [], []
    for trial_id, (values, given) in zip(ids, trials, strict=True):
        user += json_rows({"trial_id": trial_id}, values)
        system += json_rows({"trial_id": trial_id}, {"fixed_params": given})
    connection.execute(ATTRIBUTES.insert(), user)
    connection.execute(SYSTEM_ATTRIBUTES.insert(), system)


def upsert(
    connection: Connection, table: sql.Table, column: str, rows: list[dict[str, Any]]
) -> None:
    """Insert rows; where one exists that differs in ``column`` alone, set that."""
    if rows:
        keys = [key for key in rows[0] if key != column]
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        new: Any = insert(table).values(rows)
        connection.execute(
            new.on_conflict_do_update(index_elements=keys, set_={column: new.excluded[column]})
        )


def database_time(connection: Connection) -> datetime:
    """Return the time by the database's clock, in UTC without a zone, as heartbeats are stored."""
    now: datetime = connection.execute(sql.select(sql.func.current_timestamp())).scalar_one()
    return now.astimezone(timezone.utc).replace(tzinfo=None) if now.tzinfo else now


def local_time() -> datetime:
    """Return the time by this machine's clock, as Optuna stores it."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


def json_rows(owner: dict[str, int], values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows of a table of attributes; ``owner`` is the id of the trial or study in its column."""
    return [{**owner, "key": key, "value_json": json.dumps(v)} for key, v in values.items()]
