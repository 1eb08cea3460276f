"""The queue of a study: state transitions that Optuna's API cannot make atomically.

A run is one trial from the moment it is queued until it ends. It is WAITING, or RUNNING in the hands of one
worker, or it has ended (COMPLETE, PRUNED, FAIL) and never changes again. A worker that loses its run (killed,
disconnected, interrupted) leaves a RUNNING trial, which returns to WAITING: the same trial, with the same
number, parameters and reported epochs. So there is one row per run, and each run ends once.

Three rules guarantee that, with any number of workers, whichever of them dies or hangs at any moment:

1. A claim writes a new token beside the trial. Each later change (heartbeat, release, end) first locks the
   trial's row, then reads state and token, then writes, in one transaction. A worker whose run was taken
   from it finds another token, or none, and can change nothing any more: it cannot end a run that another
   worker has claimed or ended.
2. A run's record is written in the transaction that ends it: there is no end without its record and no
   record without its end.
3. A run is requeued when its worker's heartbeat is older than the grace period by the database's clock (the
   machines' clocks do not matter), or when the worker ran on this machine and the lock of the run's folder is
   free, which the operating system ensures when a process ends, however it ends. A worker trains only while
   it holds both token and lock.

Optuna's own operations read first and write then: on SQLite, which has no row locks, two processes could both
claim a trial. Its retry is a second trial, added after the first has failed: a kill in between loses the run.
It also reads every waiting trial for each one it claims.
"""

from __future__ import annotations

import functools
import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sql
from optuna.trial import TrialState
from sqlalchemy import Connection, Engine

from ecanet.errors import Preempted, UserError, disk_is_full, one_line
from ecanet.experiments.study import rows
from ecanet.experiments.study.location import valid_run_name
from ecanet.experiments.study.retry import STORAGE_TIMEOUT, retry_transient
from ecanet.experiments.study.rows import ATTRIBUTES, HEARTBEATS, STUDY_ATTRIBUTES, TRIALS
from ecanet.redaction import redact

# A trial's attributes that describe its workers; all others belong to the run.
_WORKER_ATTRIBUTES = (
    "token", "host", "pid", "host_key", "how_far", "attempts", "error", "retry_of",
)  # fmt: skip
# Error of a run that was cancelled.
CANCELLED = "cancelled"
# A run whose workers died this often in a row, without an epoch completed in between, has failed.
MAX_ATTEMPTS = 10


class LeaseLost(Exception):
    """The run is no longer this worker's: it was requeued, or cancelled."""


@dataclass
class Run:
    """One run in the queue: a waiting trial."""

    name: str
    """Unique in the study and permanent: also the name of the run's folder."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Plain values that identify the run, such as attention module and seed."""
    params: dict[str, Any] = field(default_factory=dict)
    """Given parameters; the sampler chooses what ``Plan.job`` suggests beyond them."""

    def __post_init__(self) -> None:
        valid_run_name(self.name)


@dataclass
class Claim:
    """A run in a worker's hands."""

    trial_id: int
    number: int
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass
class Counts:
    """Number of runs in each state."""

    waiting: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    failed: int = 0
    """Without those that were queued again."""

    @property
    def open(self) -> int:
        return self.waiting + self.running

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.failed

    @property
    def total(self) -> int:
        return self.ended + self.open


P = ParamSpec("P")
Result = TypeVar("Result")


def _connected(
    connect: Callable[[Engine], AbstractContextManager[Connection]],
) -> Callable[
    [Callable[Concatenate[Queue, Connection, P], Result]], Callable[Concatenate[Queue, P], Result]
]:
    """Return a decorator that passes a connection to a method, and retries it while the database is away."""

    def decorate(
        method: Callable[Concatenate[Queue, Connection, P], Result],
    ) -> Callable[Concatenate[Queue, P], Result]:
        @functools.wraps(method)
        def call(self: Queue, *args: P.args, **kwargs: P.kwargs) -> Result:
            def attempt() -> Result:
                with connect(self.engine) as connection:
                    return method(self, connection, *args, **kwargs)

            with readable("the study's database"):
                return retry_transient(attempt, self.timeout)

        return call

    return decorate


transaction = _connected(Engine.begin)
# For methods that only read: without BEGIN and COMMIT, two round trips fewer.
query = _connected(lambda e: e.connect().execution_options(isolation_level="AUTOCOMMIT"))


@dataclass
class Queue:
    """The runs of one study in one database.

    Every method raises UserError if the database does not answer in time.
    """

    engine: Engine
    """Of a database with Optuna's tables."""
    study_id: int
    grace: float
    """Seconds without a heartbeat after which a worker counts as dead."""
    timeout: float = STORAGE_TIMEOUT
    """Seconds for which a method retries while the database does not answer; 0: one attempt."""

    @transaction
    def enqueue(self, connection: Connection, runs: Sequence[Run], *, retry: bool = True) -> int:
        """Queue those of ``runs`` that are not in the queue, running or ended; return how many.

        With ``retry``, runs that have failed are queued again, with the attributes and parameters they had.
        Any number of processes may do this at the same time.
        """
        self._lock(connection)
        last = rows.latest_trials(connection, self.study_id)
        trials = []
        for run in runs:
            if run.name not in last:
                trials.append(({"run": run.name, **run.attributes}, run.params))
            elif retry and last[run.name][1] == TrialState.FAIL:
                trials.append(_retried(connection, last[run.name][0]))
        rows.insert_trials(connection, self.study_id, trials)
        return len(trials)

    @transaction
    def claim(
        self, connection: Connection, attributes: dict[str, Any], skip: Iterable[int] = ()
    ) -> Claim | None:
        """Claim the first waiting run; return None if none waits.

        Args:
            attributes: plain values that describe the worker.
            skip: ids of trials that are not claimed.
        """
        self._lock(connection)
        free = self.in_state(TrialState.WAITING) & TRIALS.c.trial_id.not_in(list(skip))
        waiting = sql.select(TRIALS.c.trial_id, TRIALS.c.number).where(free)
        row = connection.execute(waiting.order_by(TRIALS.c.trial_id).limit(1)).first()
        if row is None:
            return None
        claim = Claim(*row)
        taken = connection.execute(
            TRIALS.update()
            .where(TRIALS.c.trial_id == claim.trial_id, TRIALS.c.state == TrialState.WAITING)
            .values(state=TrialState.RUNNING, datetime_start=rows.local_time())
        )
        if not taken.rowcount:
            return None
        rows.set_attributes(
            connection, claim.trial_id, {**attributes, "token": claim.token, "how_far": None}
        )
        rows.set_heartbeat(connection, claim.trial_id)
        return claim

    @transaction
    def heartbeat(
        self, connection: Connection, claim: Claim, how_far: dict[str, Any] | None = None
    ) -> None:
        """Record that the worker is alive.

        Args:
            claim: of its run.
            how_far: ``epochs`` that are done, including the part of the current one, and ``seconds_left`` or
                None; for those who watch.

        Raises:
            LeaseLost: the run is no longer this worker's.
        """
        if rows.lock_trial(connection, claim.trial_id) != (TrialState.RUNNING, claim.token):
            raise LeaseLost
        rows.set_heartbeat(connection, claim.trial_id)
        if how_far:
            rows.set_attributes(connection, claim.trial_id, {"how_far": how_far})

    @query
    def check(self, connection: Connection, claim: Claim) -> None:
        """Check, without a lock, that the run is still this worker's.

        Raises:
            LeaseLost: it is not.
        """
        if rows.state_and_token(connection, claim.trial_id) != (TrialState.RUNNING, claim.token):
            raise LeaseLost

    @transaction
    def finish(
        self,
        connection: Connection,
        claim: Claim,
        state: TrialState,
        value: float | None,
        attributes: dict[str, Any],
    ) -> None:
        """End a run, with its value and the attributes to be kept of it.

        Raises:
            LeaseLost: the run is no longer this worker's; nothing is changed.
        """
        current = rows.lock_trial(connection, claim.trial_id)
        if current == (state, claim.token):
            # An earlier attempt was committed, though its answer did not arrive.
            return
        if current != (TrialState.RUNNING, claim.token):
            raise LeaseLost
        _end(connection, claim.trial_id, state, attributes)
        if value is not None:
            rows.set_value(connection, claim.trial_id, value)

    @transaction
    def release(self, connection: Connection, claim: Claim) -> None:
        """Requeue this worker's run; a run that is no longer this worker's is left alone."""
        if rows.lock_trial(connection, claim.trial_id) == (TrialState.RUNNING, claim.token):
            _requeue(connection, claim.trial_id)

    @query
    def running(self, connection: Connection) -> list[tuple[int, dict[str, Any]]]:
        """Return the running trials' ids and attributes."""
        return list(rows.attributes(connection, self.in_state(TrialState.RUNNING)).items())

    @query
    def claimed_by(self, connection: Connection, host: str, pid: int) -> str | None:
        """Return the run that a process claimed last and has not ended; None if there is none."""
        trial_ids = connection.execute(
            sql.select(TRIALS.c.trial_id)
            .join(ATTRIBUTES, ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
            .join(HEARTBEATS, HEARTBEATS.c.trial_id == TRIALS.c.trial_id)
            .where(
                # Another worker may have requeued it already.
                self.in_state(TrialState.RUNNING, TrialState.WAITING),
                ATTRIBUTES.c.key == "pid",
                ATTRIBUTES.c.value_json == json.dumps(pid),
            )
            .order_by(TRIALS.c.state == TrialState.WAITING, HEARTBEATS.c.heartbeat.desc())
        ).scalars()
        for trial_id in trial_ids.all():
            found = rows.attributes(connection, TRIALS.c.trial_id == trial_id)[trial_id]
            if found.get("host") == host:
                return str(found["run"])
        return None

    @transaction
    def requeue_dead(self, connection: Connection, trial_id: int, token: str) -> None:
        """Requeue the run of a dead worker, if it is still that worker's.

        A run whose workers died ``MAX_ATTEMPTS`` times in a row at the same epoch has failed.
        """
        if rows.lock_trial(connection, trial_id) != (TrialState.RUNNING, token):
            return
        step = rows.last_step(connection, trial_id)
        found = rows.attributes(connection, TRIALS.c.trial_id == trial_id)[trial_id]
        before = found.get("attempts", {"times": 0, "step": step})
        times = before["times"] + 1 if before["step"] == step else 1
        rows.set_attributes(connection, trial_id, {"attempts": {"times": times, "step": step}})
        if times < MAX_ATTEMPTS:
            _requeue(connection, trial_id)
        else:
            error = f"its worker died {times} times in a row: out of memory, or a crash"
            _end(connection, trial_id, TrialState.FAIL, {"error": error})

    def requeue_stale(self) -> None:
        """Requeue the runs whose workers have sent no heartbeat for the grace period."""
        for trial_id, token in self._stale():
            self.requeue_dead(trial_id, token)

    @query
    def _stale(self, connection: Connection) -> list[tuple[int, str]]:
        oldest = rows.database_time(connection) - timedelta(seconds=self.grace)
        late = sql.select(HEARTBEATS.c.trial_id).where(HEARTBEATS.c.heartbeat < oldest)
        stale = rows.attributes(
            connection,
            self.in_state(TrialState.RUNNING),
            ATTRIBUTES.c.key == "token",
            TRIALS.c.trial_id.in_(late),
        )
        return [(trial_id, found["token"]) for trial_id, found in stale.items()]

    @transaction
    def cancel(self, connection: Connection, running: bool = True) -> int:
        """End all waiting runs and, unless ``running`` is false, the running ones; return how many.

        Workers notice at their next heartbeat.
        """
        self._lock(connection)
        states = [TrialState.WAITING, *([TrialState.RUNNING] if running else [])]
        trials = sql.select(TRIALS.c.trial_id).where(self.in_state(*states))
        cancelled = 0
        for trial_id in connection.execute(trials.order_by(TRIALS.c.trial_id)).scalars().all():
            if rows.lock_trial(connection, trial_id)[0] in states:
                _end(connection, trial_id, TrialState.FAIL, {"error": CANCELLED})
                cancelled += 1
        return cancelled

    @query
    def counts(self, connection: Connection) -> Counts:
        """Count the runs in each state."""
        counted = connection.execute(
            sql.select(TRIALS.c.state, sql.func.count())
            .where(TRIALS.c.study_id == self.study_id)
            .group_by(TRIALS.c.state)
        ).all()
        by_state: dict[TrialState, int] = defaultdict(int, map(tuple, counted))
        retried = 0
        if by_state[TrialState.FAIL]:
            its_retry = (ATTRIBUTES.c.trial_id == TRIALS.c.trial_id) & (
                ATTRIBUTES.c.key == "retry_of"
            )
            again = sql.select(sql.func.count()).select_from(TRIALS).join(ATTRIBUTES, its_retry)
            mine = TRIALS.c.study_id == self.study_id
            retried = connection.execute(again.where(mine)).scalar_one()
        return Counts(
            waiting=by_state[TrialState.WAITING],
            running=by_state[TrialState.RUNNING],
            complete=by_state[TrialState.COMPLETE],
            pruned=by_state[TrialState.PRUNED],
            failed=by_state[TrialState.FAIL] - retried,
        )

    @transaction
    def initialize(self, connection: Connection, attributes: dict[str, Any]) -> None:
        """Set the study's attributes, its plan among them, unless it has a plan already.

        Of several processes that create a study at the same time, the first succeeds.
        """
        self._lock(connection)
        plan = sql.select(STUDY_ATTRIBUTES.c.key).where(self._attribute("plan"))
        if connection.execute(plan).first() is None:
            values = rows.json_rows({"study_id": self.study_id}, attributes)
            rows.upsert(connection, STUDY_ATTRIBUTES, "value_json", values)

    @transaction
    def change_study(self, connection: Connection, key: str, change: Callable[[Any], Any]) -> Any:
        """Replace an attribute of the study by ``change`` of it; return the new value.

        Of several processes that do so, each receives what the one before has written.
        """
        self._lock(connection)
        old = sql.select(STUDY_ATTRIBUTES.c.value_json).where(self._attribute(key))
        new = change(json.loads(connection.execute(old).scalar_one()))
        changed = STUDY_ATTRIBUTES.update().where(self._attribute(key))
        connection.execute(changed.values(value_json=json.dumps(new)))
        return new

    def _lock(self, connection: Connection) -> None:
        """Let one process at a time add or claim runs, or change the plan.

        Raises:
            UserError: the study was deleted.
        """
        if not rows.lock_study(connection, self.study_id):
            raise UserError(
                "the study was deleted from its database while this command worked on it"
            )

    def in_state(self, *states: TrialState) -> Any:
        """Return the condition that a row of TRIALS is of this study and in one of ``states``."""
        return (TRIALS.c.study_id == self.study_id) & TRIALS.c.state.in_(states)

    def _attribute(self, key: str) -> Any:
        return (STUDY_ATTRIBUTES.c.study_id == self.study_id) & (STUDY_ATTRIBUTES.c.key == key)


def _requeue(connection: Connection, trial_id: int) -> None:
    rows.update_trial(connection, trial_id, state=TrialState.WAITING, datetime_start=None)
    rows.set_attributes(connection, trial_id, {"token": None})


def _end(
    connection: Connection, trial_id: int, state: TrialState, attributes: dict[str, Any]
) -> None:
    rows.update_trial(connection, trial_id, state=state, datetime_complete=rows.local_time())
    rows.set_attributes(connection, trial_id, attributes)


def _retried(connection: Connection, trial_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return attributes and parameters of a trial that repeats a failed one."""
    found = rows.attributes(connection, TRIALS.c.trial_id == trial_id)[trial_id]
    kept = {key: value for key, value in found.items() if key not in _WORKER_ATTRIBUTES}
    return {**kept, "retry_of": trial_id}, rows.params(connection, trial_id)


@contextmanager
def readable(what: object) -> Iterator[None]:
    """Turn any error raised by rows that ecanet has not written into one line.

    For blocks that read a study and do nothing else.

    Args:
        what: how to name the study in that line.

    Raises:
        UserError: the rows cannot be read.
    """
    try:
        yield
    except (UserError, LeaseLost, Preempted):
        raise
    except Exception as error:
        if disk_is_full(error):
            raise
        message = redact(one_line(error, None))[:100]
        raise UserError(
            f"{what} cannot be read as a study ({type(error).__name__}: {message})"
        ) from None
