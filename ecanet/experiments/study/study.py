"""A study: a queue of runs in an Optuna storage, with their results so far.

The study's folder holds ``study.db`` (queue, plan and records: all that a report needs) or ``study.json``
(the address of the database that holds them), and ``runs/NAME/`` with each run's checkpoint, metrics, record.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from ecanet.config import MAY_CHANGE, differences
from ecanet.errors import UserError, did_you_mean
from ecanet.experiments.study.location import (
    Location,
    inside,
    locate,
    read_pointer,
    regular_file,
    valid_run_name,
    write_pointer,
)
from ecanet.experiments.study.plan import Plan, plan_from_dict
from ecanet.experiments.study.queue import Queue, readable
from ecanet.experiments.study.retry import retry_transient
from ecanet.experiments.study.storage import (
    OPEN_TIMEOUT,
    DatabaseFile,
    engine_options,
    make_study_file,
    open_storage,
    study_file,
    study_names,
)
from ecanet.experiments.study.trial_cache import BegunTrials
from ecanet.files import is_temporary, move_to_free, temporary_folder
from ecanet.record import Cost
from ecanet.typed import typed

FORMAT = 3
# Workers of other machines are known by their heartbeats; one that dies on this machine frees the lock of its
# run's folder at once.
HEARTBEAT = 20.0  # s between two heartbeats of a worker
GRACE = 120.0  # s without a heartbeat after which its run is requeued
_LONGEST = 1e6  # s


@dataclass
class _Heartbeat:
    seconds: float
    grace: float


@dataclass
class _Attributes:
    """The attributes of a study in its storage."""

    format: int
    environment: dict[str, Any]
    costs: list[Any]
    heartbeat: _Heartbeat
    plan: dict[str, Any]


@dataclass
class Study:
    """An open study."""

    location: Location
    trials: optuna.Study
    """Optuna's view of it: one trial per run."""
    storage: optuna.storages.RDBStorage
    queue: Queue
    heartbeat: float
    """Seconds between two heartbeats of a worker."""
    file: DatabaseFile | None = None
    """None if the study is in a database server."""

    @property
    def folder(self) -> Path:
        return self.location.folder

    def begun_trials(self) -> optuna.Study:
        """Return Optuna's view of the trials that do not wait, for samplers and pruners."""
        storage = BegunTrials(self.storage)
        return optuna.load_study(study_name=self.location.name, storage=storage)

    def queue_for_heartbeats(self) -> Queue:
        """Return the queue over separate connections, which give up well within the grace period."""
        engine = self.queue.engine
        options = engine_options(self.file or self.location, self.queue.grace / 6)
        own = sqlalchemy.create_engine(engine.url, **options)
        return replace(self.queue, engine=own, timeout=0.0)

    def check_not_moved(self) -> None:
        """Check that the study is where it was when it was opened.

        Raises:
            UserError: its folder or file was moved, deleted or replaced.
        """
        if self.file:
            self.file.check()

    def report_folder(self) -> Path:
        """Return the default folder of the report.

        Raises:
            UserError: it is a symbolic link.
        """
        return inside(self.folder, "report")

    def plan(self) -> Plan:
        """Read the study's plan.

        Raises:
            UserError: it was written by another version of ecanet.
        """
        with readable(self.location):
            return plan_from_dict(retry_transient(lambda: self.trials.user_attrs)["plan"])

    def read_trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in ``states``, by default all, in the order of the queue.

        Raises:
            UserError: they cannot be read, or one has no valid run name.
        """
        with readable(self.location):
            trials: list[FrozenTrial] = retry_transient(
                lambda: self.trials.get_trials(deepcopy=False, states=states or None)
            )
            for trial in trials:
                valid_run_name(trial.user_attrs.get("run", ""))
        return trials

    def failed_runs(self) -> list[dict[str, Any]]:
        """Return the attributes, ``error`` among them, of the runs whose last attempt failed."""
        last = {trial.user_attrs["run"]: trial for trial in self.read_trials()}
        return [trial.user_attrs for trial in last.values() if trial.state == TrialState.FAIL]

    def run_folder(self, run: str) -> Path:
        """Return the folder of a run.

        Raises:
            UserError: the name is not a run's, or the folder is a symbolic link.
        """
        return inside(self.folder, "runs", valid_run_name(run))


def is_study(location: Location) -> bool:
    """Whether a study exists at ``location``.

    Raises:
        UserError: its database does not answer, or belongs to another program.
    """
    if location.storage is None:
        return regular_file(location.folder / "study.db")
    return location.name in study_names(location)


def check_folder(location: Location) -> None:
    """Refuse a folder that is neither new, nor empty, nor a study's.

    Temporary files that a killed command has left there are ignored.

    Raises:
        UserError: it holds other files, is a file, cannot be written, or has a name that is not UTF-8.
    """
    folder = location.folder
    try:
        str(folder.resolve()).encode()
    except UnicodeEncodeError:
        # Otherwise the report, which names it, would fail after all runs.
        raise UserError(f"--out {folder}: choose a folder whose path is UTF-8") from None
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: choose a folder")
    entries = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    entries = {name for name in entries if name != ".lock" and not is_temporary(name)}
    # Workers on other machines create only these.
    left = {"runs", "logs"} if location.storage else set()
    if not entries <= left and not entries & {"study.db", "study.json"}:
        raise UserError(f"{folder} is not empty and holds no study: choose another --out")
    if location.storage and "study.db" in entries:
        raise UserError(
            f"{folder} holds a study of its own: leave --storage out, or choose another --out"
        )
    named = read_pointer(folder)
    if named and str(named) != str(location):
        raise UserError(f"{folder} belongs to {named}: choose another --out")
    parent = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--out {folder} cannot be written: choose another folder")


def create_study(
    location: Location, plan: Plan, costs: list[Cost], environment: dict[str, Any]
) -> None:
    """Create a study, atomically. One that another process has created in the meantime is left as it is.

    Raises:
        UserError: the folder holds other files or cannot be written, or the database does not answer.
    """
    check_folder(location)
    attributes = {
        "format": FORMAT,
        "environment": environment,
        "costs": [asdict(cost) for cost in costs],
        "heartbeat": {"seconds": HEARTBEAT, "grace": GRACE},
        "plan": plan.to_dict(),
    }
    folder = location.folder
    with temporary_folder(folder) as temporary:
        made = temporary / ("study.json" if location.storage else "study.db")
        where: Location | DatabaseFile = location
        if location.storage is None:
            make_study_file(made, folder)
            where = DatabaseFile(made, "create")
        storage = open_storage(where, "create")
        assert storage is not None
        study = optuna.create_study(
            storage=storage, study_name=location.name, direction=plan.direction, load_if_exists=True
        )
        Queue(storage.engine, study._study_id, GRACE).initialize(attributes)
        storage.engine.dispose()
        if location.storage:
            write_pointer(location, made)
        with suppress(FileExistsError):
            move_to_free(made, folder / made.name)
    check_folder(location)


def load_study(location: Location | Path, mode: Literal["read", "write"] = "write") -> Study:
    """Open a study.

    Args:
        location: the study's location, or its folder.
        mode: with ``read``, nothing is changed in the study or its folder.

    Raises:
        UserError: there is none, it was made by another program or version of ecanet, or its database does
            not answer.
    """
    if isinstance(location, Path):
        location = locate(location)
    folder, name = location.folder, location.name
    file = None if location.storage else study_file(folder, mode)
    shown = location.storage or folder / "study.db"
    with readable(location):
        storage = open_storage(file or location, mode)
        if storage is None:
            raise UserError(f"{shown} is a database that holds no study")
        try:
            trials = retry_transient(
                lambda: optuna.load_study(study_name=name, storage=storage), OPEN_TIMEOUT
            )
        except KeyError:
            names = study_names(location) if location.storage else []
            others = did_you_mean(name, names) if names else " It holds none yet."
            raise UserError(f"{shown} holds no study {name!r}.{others}") from None
        attributes = retry_transient(lambda: trials.user_attrs, OPEN_TIMEOUT)
    if attributes.get("format") != FORMAT:
        raise UserError(
            f"{location} was made by another version of ecanet (format {attributes.get('format')!r:.20}, "
            f"this one reads {FORMAT}): use that version, or another --out"
        )
    try:
        heartbeat = typed(_Attributes, attributes).heartbeat
        if not (0 < heartbeat.seconds <= _LONGEST and 0 < heartbeat.grace <= _LONGEST):
            raise UserError(f"heartbeat cannot be {heartbeat.seconds:g} and {heartbeat.grace:g} s")
    except UserError as error:
        raise UserError(f"{location} cannot be read as a study ({error})") from None
    queue = Queue(storage.engine, trials._study_id, heartbeat.grace)
    return Study(location, trials, storage, queue, heartbeat.seconds, file)


def extend_plan(study: Study, wanted: Plan) -> Plan:
    """Check that ``wanted`` fits the study, add what is new in it to the study's plan, and return that.

    Runs that begin later take the settings that do not change results from ``wanted``.

    Raises:
        UserError: as :func:`check_fits`.
    """
    now = check_fits(study, wanted)

    # Another process may be extending it at the same time.
    def extended(there: dict[str, Any]) -> dict[str, Any]:
        plan = plan_from_dict(there).extended(wanted)
        plan.settings = replace(plan.settings, **now)
        return plan.to_dict()

    return plan_from_dict(study.queue.change_study("plan", extended))


def plan_of_kind(study: Study, kind: str) -> Plan:
    """Return a study's plan.

    Raises:
        UserError: it is of another kind.
    """
    plan = study.plan()
    if plan.kind != kind:
        own = {"compare": "comparison"}.get(plan.kind, plan.kind)
        raise UserError(f"{study.location} is a {own}: choose another --out")
    return plan


def check_fits(study: Study, wanted: Plan) -> dict[str, Any]:
    """Check that a study can be extended by ``wanted``; return the settings that it takes from there.

    Raises:
        UserError: it is a plan of another kind, or its settings or data differ.
    """
    plan = plan_of_kind(study, wanted.kind)
    free = MAY_CHANGE - {"device", "devices"}
    now = {name: value for name, value in vars(wanted.settings).items() if name in free}
    changed = differences(asdict(plan.settings) | now, asdict(wanted.settings))
    if plan.data_fingerprint != wanted.data_fingerprint and not changed:
        changed = [f"{plan.origin()} have changed"]
    if plan.weights_hash not in ("", wanted.weights_hash) and not changed:
        changed = ["the file of --weights has changed"]
    if changed:
        raise UserError(
            f"the study was made with other settings ({'; '.join(changed)}): choose another --out"
        )
    return now
