"""The queue of a study: the changes of state for which Optuna has no safe words.

A run is a trial, from its first day in the queue to its end. It is WAITING, or RUNNING in the hands of
one worker, or it has ended (COMPLETE, PRUNED, FAIL), and then never changes again. Whoever loses it
(killed, cut off, told to stop) leaves a RUNNING trial, which goes back to WAITING: the same trial,
with the same number, parameters and epochs reported. So there is one row a run, and it ends once.

What makes that hold, with any number of workers, whichever of them dies or hangs at which moment:

1. A claim writes a token of its own beside the trial. Each later change (heartbeat, return, end) first
   locks the trial's row, then reads state and token, then writes, in one transaction. A worker whose
   run was taken from it finds another token, or none, and can change nothing any more: it cannot end a
   run that another now works on, nor one that another has ended.
2. A run's record is written in the transaction that ends it: there is no end without its record and no
   record without its end.
3. A run is taken from its worker when its heartbeat is older than the grace period by the database's
   clock (machines' clocks do not matter), or when its worker ran on this machine and the lock of
   the run's folder is free, which the system sees to when a process ends, however it ends. A worker
   works only while it holds both token and lock.

Optuna's own operations read first and write then; on SQLite, which has no row locks, two processes
could both claim a trial, and its retry is a second trial, added after the first has failed: a kill in
between loses the run. It also reads every waiting trial for each one it takes.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sql
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError

from ecanet.errors import Preempted, UserError, disk_is_full
from ecanet.experiments.study.plan import Run
from ecanet.redaction import redact
from ecanet.signals import obey

_trials = models.TrialModel.__table__
_attributes = models.TrialUserAttributeModel.__table__
_fixed = models.TrialSystemAttributeModel.__table__
_values = models.TrialValueModel.__table__
_steps = models.TrialIntermediateValueModel.__table__
_beats = models.TrialHeartbeatModel.__table__
_studies = models.StudyModel.__table__

# Attributes of a trial that tell of its workers; the others are the run's.
_OWN = ("run", "token", "host", "pid", "place", "deaths", "error", "retry_of")
# What a run is said to have failed of that was taken out of the queue.
CANCELLED = "cancelled"
# Deaths of a run's workers, without an epoch ended in between, after which it counts as failed.
MOST_DEATHS = 10
# Seconds for which a database may be away.
PATIENCE = 300.0
NO_ANSWER = "the study's storage does not answer; the same command goes on when it is back"


class Lost(Exception):
    """The run is no longer this worker's: it was taken for dead, or the run was cancelled."""


@dataclass
class Claim:
    """A run in a worker's hands."""

    trial_id: int
    number: int
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass
class Counts:
    """How many runs stand where."""

    waiting: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    failed: int = 0
    """Those that have not been put into the queue again."""

    @property
    def open(self) -> int:
        return self.waiting + self.running

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.failed

    @property
    def total(self) -> int:
        return self.ended + self.open


class Queue:
    """The runs of one study in one database.

    Every method waits out a database that is away for some minutes.

    Args:
        engine: of a database that holds Optuna's tables.
        study_id: which study.
        grace: seconds without a heartbeat after which a worker counts as dead.
    """

    def __init__(self, engine: Engine, study_id: int, grace: float) -> None:
        self.engine, self.study_id, self.grace = engine, study_id, grace

    def enqueue(self, runs: Sequence[Run], *, retry: bool = True) -> int:
        """Put those of ``runs`` into the queue that are not there yet, nor under way, nor ended.

        Those that have failed count as not there if ``retry``; they keep the parameters they had.
        Any number of processes may do this at the same time. Returns how many were added.
        """

        def add(connection: Connection) -> int:
            self._lock_study(connection)
            last = self._last(connection)
            new = [
                run
                for run in runs
                if run.name not in last or (retry and last[run.name][1] == TrialState.FAIL)
            ]
            failed = {run.name: last[run.name][0] for run in new if run.name in last}
            self._insert(connection, new, failed)
            return len(new)

        return self._transaction(add)

    def retry(self, names: Container[str]) -> int:
        """Put those of the named runs that have failed into the queue again, as they were.

        Returns how many were.
        """

        def add(connection: Connection) -> int:
            self._lock_study(connection)
            failed = {
                name: trial_id
                for name, (trial_id, state) in self._last(connection).items()
                if state == TrialState.FAIL and name in names
            }
            runs = [
                Run(
                    name,
                    {k: v for k, v in self._all(connection, trial_id).items() if k not in _OWN},
                    self._all(connection, trial_id, _fixed).get("fixed_params", {}),
                )
                for name, trial_id in failed.items()
            ]
            self._insert(connection, runs, failed)
            return len(runs)

        return self._transaction(add)

    def claim(self, attributes: dict[str, Any], skip: Iterable[int] = ()) -> Claim | None:
        """Take the first waiting run; None if none waits.

        Args:
            attributes: plain values that tell who works on it.
            skip: trials that are left alone.
        """

        def take(connection: Connection) -> Claim | None:
            self._lock_study(connection)
            query = (
                sql.select(_trials.c.trial_id, _trials.c.number)
                .where(
                    _trials.c.study_id == self.study_id,
                    _trials.c.state == TrialState.WAITING,
                    _trials.c.trial_id.not_in(list(skip)),
                )
                .order_by(_trials.c.trial_id)
                .limit(1)
            )
            found = connection.execute(query).first()
            return self._take(connection, Claim(*found), attributes) if found else None

        return self._transaction(take)

    def beat(self, claim: Claim, *, patience: float = PATIENCE) -> None:
        """Tell that the worker is alive.

        Raises:
            Lost: the run is no longer this worker's.
        """

        def touch(connection: Connection) -> None:
            self._check(connection, claim)
            self._touch(connection, claim.trial_id)

        self._transaction(touch, patience)

    def check(self, claim: Claim) -> None:
        """Look whether the run is in this worker's hands, without a lock.

        Raises:
            Lost: it is not.
        """

        if self._look(lambda c: self._stands(c, claim.trial_id)) != (
            TrialState.RUNNING,
            claim.token,
        ):
            raise Lost

    def finish(
        self, claim: Claim, state: TrialState, value: float | None, attributes: dict[str, Any]
    ) -> None:
        """End a run, with its value and what else is to be kept of it.

        Raises:
            Lost: the run is no longer this worker's; nothing is changed.
        """

        def end(connection: Connection) -> None:
            if self._held(connection, claim.trial_id) == (state, claim.token):
                # Ended by us, in a transaction whose answer was cut off.
                return
            self._check(connection, claim)
            self._end(connection, claim.trial_id, state, attributes)
            if value is not None:
                stored, kind = models.TrialValueModel.value_to_stored_repr(value)
                connection.execute(
                    _values.insert().values(
                        trial_id=claim.trial_id, objective=0, value=stored, value_type=kind
                    )
                )

        self._transaction(end)

    def give_back(self, claim: Claim, *, patience: float = PATIENCE) -> None:
        """Put a run back into the queue; one that is no longer ours is left alone."""

        def put_back(connection: Connection) -> None:
            self._check(connection, claim)
            self._return(connection, claim.trial_id)

        with suppress(Lost):
            self._transaction(put_back, patience)

    def running(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the trials under way and their attributes."""

        def look(connection: Connection) -> list[tuple[int, dict[str, Any]]]:
            rows = connection.execute(
                sql.select(_trials.c.trial_id, _attributes.c.key, _attributes.c.value_json)
                .join(_attributes, _attributes.c.trial_id == _trials.c.trial_id)
                .where(
                    _trials.c.study_id == self.study_id,
                    _trials.c.state == TrialState.RUNNING,
                    _attributes.c.key != "record",
                )
            ).all()
            found: dict[int, dict[str, Any]] = {}
            for trial_id, key, value in rows:
                found.setdefault(trial_id, {})[key] = json.loads(value)
            return list(found.items())

        return self._look(look)

    def taken_by(self, host: str, pid: int) -> str | None:
        """Return the run that a process took last and has not ended; None if there is none."""

        def look(connection: Connection) -> str | None:
            run, its_host, its_pid = (_attributes.alias() for _ in range(3))
            query = (
                sql.select(run.c.value_json)
                .join(_trials, _trials.c.trial_id == run.c.trial_id)
                .join(its_host, its_host.c.trial_id == run.c.trial_id)
                .join(its_pid, its_pid.c.trial_id == run.c.trial_id)
                .join(_beats, _beats.c.trial_id == run.c.trial_id)
                .where(
                    _trials.c.study_id == self.study_id,
                    # Another worker may have put it back already.
                    _trials.c.state.in_([TrialState.RUNNING, TrialState.WAITING]),
                    run.c.key == "run",
                    (its_host.c.key == "host") & (its_host.c.value_json == json.dumps(host)),
                    (its_pid.c.key == "pid") & (its_pid.c.value_json == json.dumps(pid)),
                )
                .order_by(_trials.c.state == TrialState.WAITING, _beats.c.heartbeat.desc())
            )
            found = connection.execute(query).scalars().first()
            return None if found is None else json.loads(found)

        return self._look(look)

    def bury(self, trial_id: int, token: str) -> None:
        """Put the run of a dead worker back into the queue, if it is still in that worker's hands.

        A run that has been the death of many workers, and got no epoch further, has failed.
        """

        def put_back(connection: Connection) -> None:
            if self._held(connection, trial_id) != (TrialState.RUNNING, token):
                return
            step = connection.execute(
                sql.select(sql.func.max(_steps.c.step)).where(_steps.c.trial_id == trial_id)
            ).scalar()
            deaths = self._attribute(connection, trial_id, "deaths") or {"times": 0, "step": step}
            times = deaths["times"] + 1 if deaths["step"] == step else 1
            self._set(connection, trial_id, {"deaths": {"times": times, "step": step}})
            if times < MOST_DEATHS:
                self._return(connection, trial_id)
            else:
                error = f"its worker died {times} times in a row: out of memory, or a crash"
                self._end(connection, trial_id, TrialState.FAIL, {"error": error})

        with suppress(Lost):
            self._transaction(put_back)

    def bury_silent(self) -> None:
        """Put the runs back into the queue whose workers have not been heard of for too long."""

        def look(connection: Connection) -> list[tuple[int, str]]:
            now = connection.execute(sql.select(sql.func.current_timestamp())).scalar_one()
            if now.tzinfo is not None:
                now = now.astimezone(timezone.utc).replace(tzinfo=None)
            rows = connection.execute(
                sql.select(_trials.c.trial_id, _attributes.c.value_json)
                .join(_beats, _beats.c.trial_id == _trials.c.trial_id)
                .join(_attributes, _attributes.c.trial_id == _trials.c.trial_id)
                .where(
                    _trials.c.study_id == self.study_id,
                    _trials.c.state == TrialState.RUNNING,
                    _attributes.c.key == "token",
                    _beats.c.heartbeat < now - timedelta(seconds=self.grace),
                )
            ).all()
            return [(trial_id, json.loads(token)) for trial_id, token in rows]

        for trial_id, token in self._look(look):
            self.bury(trial_id, token)

    def cancel(self, running: bool = True) -> int:
        """End all runs that wait and, unless told otherwise, those under way; return how many.

        Workers notice at their next epoch.
        """

        def end(connection: Connection) -> int:
            self._lock_study(connection)
            open_states = [TrialState.WAITING, *([TrialState.RUNNING] if running else [])]
            found = connection.execute(
                sql.select(_trials.c.trial_id)
                .where(_trials.c.study_id == self.study_id, _trials.c.state.in_(open_states))
                .order_by(_trials.c.trial_id)
            ).all()
            ended = 0
            for (trial_id,) in found:
                state, _ = self._held(connection, trial_id)
                if state in open_states:
                    self._end(connection, trial_id, TrialState.FAIL, {"error": CANCELLED})
                    ended += 1
            return ended

        return self._transaction(end)

    def counts(self) -> Counts:
        """Count the runs by where they stand."""

        def count(connection: Connection) -> Counts:
            rows = connection.execute(
                sql.select(_trials.c.state, sql.func.count())
                .where(_trials.c.study_id == self.study_id)
                .group_by(_trials.c.state)
            ).all()
            found: dict[TrialState, int] = dict(map(tuple, rows))
            failed = found.get(TrialState.FAIL, 0)
            if failed:
                failed -= connection.execute(
                    sql.select(sql.func.count())
                    .select_from(_trials)
                    .join(_attributes, _attributes.c.trial_id == _trials.c.trial_id)
                    .where(_trials.c.study_id == self.study_id, _attributes.c.key == "retry_of")
                ).scalar_one()
            return Counts(
                waiting=found.get(TrialState.WAITING, 0),
                running=found.get(TrialState.RUNNING, 0),
                complete=found.get(TrialState.COMPLETE, 0),
                pruned=found.get(TrialState.PRUNED, 0),
                failed=failed,
            )

        return self._look(count)

    def describe(self, attributes: dict[str, Any]) -> None:
        """Give the study its attributes, the plan among them, unless it has a plan already.

        Of several processes that create a study at the same time, the first does so.
        """
        table = models.StudyUserAttributeModel.__table__

        def put(connection: Connection) -> None:
            self._lock_study(connection)
            there = sql.select(table.c.key).where(
                table.c.study_id == self.study_id, table.c.key == "plan"
            )
            if connection.execute(there).first() is None:
                rows = [
                    {"study_id": self.study_id, "key": key, "value_json": json.dumps(value)}
                    for key, value in attributes.items()
                ]
                self._upsert(connection, table, ["study_id", "key"], "value_json", rows)

        self._transaction(put)

    def change_study(self, key: str, change: Callable[[Any], Any]) -> Any:
        """Replace an attribute of the study by what ``change`` makes of it; return the new value.

        Of several processes that do so, each sees what the one before has written.
        """
        table = models.StudyUserAttributeModel.__table__
        its = (table.c.study_id == self.study_id) & (table.c.key == key)

        def replace(connection: Connection) -> Any:
            self._lock_study(connection)
            old = connection.execute(sql.select(table.c.value_json).where(its)).scalar_one()
            new = change(json.loads(old))
            connection.execute(table.update().where(its).values(value_json=json.dumps(new)))
            return new

        return self._transaction(replace)

    # Steps of a transaction

    def _lock_study(self, connection: Connection) -> None:
        """Let one process at a time add runs, take them, or change the plan: a row lock, or SQLite's.

        Raises:
            UserError: the study was deleted.
        """
        locked = connection.execute(
            _studies.update()
            .where(_studies.c.study_id == self.study_id)
            .values(study_name=_studies.c.study_name)
        )
        if not locked.rowcount:
            raise UserError(
                "the study was deleted from its database while this command worked on it"
            )

    def _held(self, connection: Connection, trial_id: int) -> tuple[TrialState, str | None]:
        """Lock a trial until the transaction ends; return its state and its worker's token."""
        # A write locks on every database. What is read before it could be old by the time of the lock.
        connection.execute(
            _trials.update().where(_trials.c.trial_id == trial_id).values(state=_trials.c.state)
        )
        return self._stands(connection, trial_id)

    def _stands(self, connection: Connection, trial_id: int) -> tuple[TrialState, str | None]:
        ours = (_attributes.c.trial_id == _trials.c.trial_id) & (_attributes.c.key == "token")
        found = connection.execute(
            sql.select(_trials.c.state, _attributes.c.value_json)
            .outerjoin(_attributes, ours)
            .where(_trials.c.trial_id == trial_id)
        ).one_or_none()
        if found is None:
            # Its study was deleted.
            raise Lost
        state, token = found
        return state, None if token is None else json.loads(token)

    def _check(self, connection: Connection, claim: Claim) -> None:
        if self._held(connection, claim.trial_id) != (TrialState.RUNNING, claim.token):
            raise Lost

    def _take(
        self, connection: Connection, claim: Claim, attributes: dict[str, Any]
    ) -> Claim | None:
        taken = connection.execute(
            _trials.update()
            .where(_trials.c.trial_id == claim.trial_id, _trials.c.state == TrialState.WAITING)
            .values(state=TrialState.RUNNING, datetime_start=_now())
        )
        if not taken.rowcount:
            return None
        self._set(connection, claim.trial_id, {**attributes, "token": claim.token})
        self._touch(connection, claim.trial_id)
        return claim

    def _touch(self, connection: Connection, trial_id: int) -> None:
        beat = {"trial_id": trial_id, "heartbeat": sql.func.current_timestamp()}
        self._upsert(connection, _beats, ["trial_id"], "heartbeat", [beat])

    def _return(self, connection: Connection, trial_id: int) -> None:
        connection.execute(
            _trials.update()
            .where(_trials.c.trial_id == trial_id)
            .values(state=TrialState.WAITING, datetime_start=None)
        )
        self._set(connection, trial_id, {"token": None})

    def _end(
        self,
        connection: Connection,
        trial_id: int,
        state: TrialState,
        attributes: dict[str, Any],
    ) -> None:
        connection.execute(
            _trials.update()
            .where(_trials.c.trial_id == trial_id)
            .values(state=state, datetime_complete=_now())
        )
        self._set(connection, trial_id, attributes)

    def _last(self, connection: Connection) -> dict[str, tuple[int, TrialState]]:
        """Return id and state of the trial of each run: the last, if it failed and was tried again."""
        known = connection.execute(
            sql.select(_trials.c.trial_id, _trials.c.state, _attributes.c.value_json)
            .join(_attributes, _attributes.c.trial_id == _trials.c.trial_id)
            .where(_trials.c.study_id == self.study_id, _attributes.c.key == "run")
            .order_by(_trials.c.trial_id)
        ).all()
        return {json.loads(name): (trial_id, state) for trial_id, state, name in known}

    def _all(
        self, connection: Connection, trial_id: int, table: sql.Table = _attributes
    ) -> dict[str, Any]:
        rows = connection.execute(
            sql.select(table.c.key, table.c.value_json).where(table.c.trial_id == trial_id)
        ).all()
        return {key: json.loads(text) for key, text in rows}

    def _attribute(self, connection: Connection, trial_id: int, key: str) -> Any:
        value = connection.execute(
            sql.select(_attributes.c.value_json).where(
                _attributes.c.trial_id == trial_id, _attributes.c.key == key
            )
        ).scalar()
        return None if value is None else json.loads(value)

    def _set(self, connection: Connection, trial_id: int, attributes: dict[str, Any]) -> None:
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]
        if rows:
            self._upsert(connection, _attributes, ["trial_id", "key"], "value_json", rows)

    def _upsert(
        self,
        connection: Connection,
        table: sql.Table,
        keys: list[str],
        column: str,
        rows: list[dict[str, Any]],
    ) -> None:
        insert = postgresql.insert if self.engine.name == "postgresql" else sqlite.insert
        new: Any = insert(table).values(rows)
        connection.execute(
            new.on_conflict_do_update(index_elements=keys, set_={column: new.excluded[column]})
        )

    def _insert(self, connection: Connection, runs: list[Run], failed: dict[str, int]) -> None:
        """Add waiting trials, as Optuna's ``enqueue_trial`` does one by one."""
        if not runs:
            return
        number = connection.execute(
            sql.select(sql.func.count()).where(_trials.c.study_id == self.study_id)
        ).scalar_one()
        rows = [
            {"study_id": self.study_id, "number": number + i, "state": TrialState.WAITING}
            for i in range(len(runs))
        ]
        connection.execute(_trials.insert(), rows)
        ids = connection.execute(
            sql.select(_trials.c.trial_id)
            .where(_trials.c.study_id == self.study_id, _trials.c.number >= number)
            .order_by(_trials.c.number)
        ).scalars()
        attributes, fixed = [], []
        for trial_id, run in zip(ids, runs, strict=True):
            values = {"run": run.name, **run.attributes}
            params = run.params
            if run.name in failed:
                values["retry_of"] = failed[run.name]
                params = self._params(connection, failed[run.name]) or params
            for key, value in values.items():
                attributes.append(
                    {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
                )
            fixed.append(
                {"trial_id": trial_id, "key": "fixed_params", "value_json": json.dumps(params)}
            )
        connection.execute(_attributes.insert(), attributes)
        connection.execute(_fixed.insert(), fixed)

    def _params(self, connection: Connection, trial_id: int) -> dict[str, Any]:
        from optuna.distributions import json_to_distribution

        table = models.TrialParamModel.__table__
        rows = connection.execute(
            sql.select(table.c.param_name, table.c.param_value, table.c.distribution_json).where(
                table.c.trial_id == trial_id
            )
        ).all()
        return {
            name: json_to_distribution(distribution).to_external_repr(value)
            for name, value, distribution in rows
        }

    def _look(self, steps: Callable[[Connection], Any]) -> Any:
        def whole() -> Any:
            with self.engine.connect() as connection:
                # Nothing to begin and to commit: two questions less.
                return steps(connection.execution_options(isolation_level="AUTOCOMMIT"))

        with readable("the study's database"):
            return patiently(whole)

    def _transaction(self, steps: Callable[[Connection], Any], patience: float = PATIENCE) -> Any:
        def whole() -> Any:
            with self.engine.begin() as connection:
                return steps(connection)

        with readable("the study's database"):
            return patiently(whole, patience)


def patiently(call: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Call ``call`` until the database answers, less and less often.

    A transaction whose commit was cut off may have been made: ``call`` must bear being called again.

    Raises:
        UserError: it has not answered for ``patience`` seconds.
        Preempted, KeyboardInterrupt: a signal came while it did not answer.
    """
    started, pause = time.monotonic(), 0.1
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            if time.monotonic() - started + pause > patience:
                raise UserError(f"{NO_ANSWER} ({first_line(database_error(error))})") from None
        obey()
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


@contextmanager
def readable(what: object) -> Iterator[None]:
    """Turn any error that rows raise which ecanet has not written into one line.

    For blocks that read a study and do nothing else.

    Args:
        what: the study, as the line is to name it.

    Raises:
        UserError: the rows cannot be read.
    """
    try:
        yield
    except (UserError, Lost, Preempted):
        raise
    except Exception as error:
        if disk_is_full(error):
            raise
        said = redact(" ".join(str(error).split()))[:100]
        raise UserError(
            f"{what} cannot be read as a study ({type(error).__name__}: {said})"
        ) from None


def is_transient(error: Exception) -> bool:
    """Whether the error is one of a database that is away, restarting, or busy."""
    found = database_error(error)
    return (
        isinstance(found, (OperationalError, InterfaceError, InternalError))
        or (found is not None and found.connection_invalidated)
    ) and not disk_is_full(found)


def database_error(error: BaseException) -> DBAPIError | None:
    """Return the error of the database's driver behind one of Optuna's, if there is one."""
    while not isinstance(error, DBAPIError):
        if error.__cause__ is None:
            return None
        error = error.__cause__
    return error


def first_line(error: DBAPIError | None) -> str:
    """Return what the database's driver said, in one short line."""
    said = str(error.orig).strip() if error else ""
    return said.splitlines()[0][:200] if said else type(error).__name__


def worst(direction: str) -> float:
    """Return the value of a run whose metric is not a number."""
    return -math.inf if direction == "maximize" else math.inf


def _now() -> datetime:
    """Return the time as Optuna stores it."""
    return datetime.now(timezone.utc).replace(tzinfo=None)
