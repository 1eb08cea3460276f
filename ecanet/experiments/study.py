"""A study: a queue of runs in an Optuna storage, and what has come out of it so far.

The study's folder holds ``study.db`` (the queue, the plan, the records; everything a report needs), or
``study.json``, which tells the database where they are; and ``runs/NAME/`` with each run's checkpoint,
metrics and record as files for people.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import optuna
import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ecanet.errors import UserError, did_you_mean, disk_is_full
from ecanet.experiments.plan import Plan, differences, plan_from_dict
from ecanet.experiments.queue import Claim, Lost, Queue, database_error, first_line, patiently
from ecanet.experiments.summary import StudySummary
from ecanet.experiments.trials import BegunTrials
from ecanet.record import Cost, Record, write_atomic, write_json

FORMAT = 2
# How often a worker tells that it is alive, and after which silence it counts as dead, in seconds. A
# worker that dies on this machine frees its run's lock at once: this is for the others.
HEARTBEAT, GRACE = 20.0, 120.0

# Seconds for which a database may be away when it is opened, and what it or its driver says when it
# restarts, or when another process makes its tables at the same time.
_OPENING = 10.0
_PASSING = (
    "refused",
    "the database system is",
    "terminating connection",
    "closed the connection",
    "already exists",
)

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Location:
    """Where a study is: the folder of its runs, and the database of its queue."""

    folder: Path
    storage: str | None = None
    """Address of a database; None: ``study.db`` in the folder."""
    name: str = "study"
    """The study's name in the database."""

    def flags(self) -> list[str]:
        """Return what to give to ``ecanet worker``, beside the password."""
        if self.storage is None:
            return [str(self.folder)]
        return [
            str(self.folder),
            "--storage",
            _without_password(self.storage),
            "--study",
            self.name,
        ]

    def secrets(self) -> dict[str, str]:
        """Return the environment that a worker needs beside :meth:`flags`."""
        password = make_url(self.storage).password if self.storage else None
        return {"PGPASSWORD": password} if password else {}

    def __str__(self) -> str:
        if self.storage is None:
            return str(self.folder)
        return f"study {self.name} in {_without_password(self.storage)}"


@dataclass
class Study:
    """An open study."""

    location: Location
    trials: optuna.Study
    """Optuna's view of it: a trial a run."""
    storage: optuna.storages.RDBStorage
    queue: Queue
    heartbeat: float
    """Seconds between the heartbeats of a worker."""

    @property
    def folder(self) -> Path:
        return self.location.folder

    def begun_trials(self) -> optuna.Study:
        """Return Optuna's view of the trials that have begun, for samplers and pruners."""
        storage = BegunTrials(self.storage)
        return optuna.load_study(study_name=self.location.name, storage=storage)

    def queue_for_heartbeats(self) -> Queue:
        """Return the queue over connections of its own, which give up well within the grace period."""
        engine = self.queue.engine
        options = _connection_options(str(engine.url), self.queue.grace / 6)
        return Queue(
            sqlalchemy.create_engine(engine.url, connect_args=options, pool_pre_ping=True),
            self.queue.study_id,
            self.queue.grace,
        )

    def plan(self) -> Plan:
        """Read what the study is to run."""
        return plan_from_dict(patiently(lambda: self.trials.user_attrs)["plan"])

    def run_folder(self, run: str) -> Path:
        return self.folder / "runs" / run


def locate(
    folder: str | Path | None, storage: str | None = None, name: str | None = None
) -> Location:
    """Return where the study of a folder is: in the folder, or where ``study.json`` says.

    Args:
        folder: of the study; by default one of the study's name, here.
        storage: address of a database, for a study that has none of its own.
        name: of the study in that database; by default the folder's.

    Raises:
        UserError: too little is given, or the address is none.
    """
    if storage is None:
        if name is not None:
            raise UserError("--study names a study in a database: say which one with --storage")
        if folder is None:
            raise UserError("which study? Give its folder, or --storage and --study")
        pointer = Path(folder) / "study.json"
        if not pointer.is_file():
            return Location(Path(folder))
        try:
            found = json.loads(pointer.read_text())
            return Location(Path(folder), _checked(found["storage"]), found["study"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{pointer} cannot be read: give --storage and --study") from None
    if folder is None and name is None:
        raise UserError("which study? Name it with --study; `ecanet study list` shows them")
    name = name or Path(folder or "").resolve().name
    return Location(Path(folder or name), _checked(storage), name)


def is_study(location: Location) -> bool:
    """Whether there is a study.

    Raises:
        UserError: its database does not answer.
    """
    if location.storage is None:
        return (location.folder / "study.db").is_file()
    return location.name in study_names(location.storage)


def study_names(storage: str) -> list[str]:
    """Return the names of the studies in a database.

    Raises:
        UserError: it does not answer.
    """
    opened = open_storage(_checked(storage))
    names = [study.study_name for study in opened.get_all_studies() if "plan" in study.user_attrs]
    opened.engine.dispose()
    return names


def check_folder(location: Location) -> None:
    """Refuse a folder that is neither new, nor empty, nor a study's.

    Raises:
        UserError: it holds other files, is a file, or cannot be written.
    """
    folder = location.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: choose a folder")
    entries = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # A worker leaves no more than these in a folder of its own.
    left = {"runs"} if location.storage else set()
    if not entries <= left and not entries & {"study.db", "study.json"}:
        raise UserError(f"{folder} is not empty and holds no study: choose another --out")
    if location.storage and "study.db" in entries:
        raise UserError(
            f"{folder} holds a study of its own: leave --storage out, or choose another --out"
        )
    if "study.json" in entries and str(locate(folder)) != str(location):
        raise UserError(f"{folder} belongs to {locate(folder)}: choose another --out")
    parent = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--out {folder} cannot be written: choose another folder")


def create_study(
    location: Location, plan: Plan, costs: list[Cost], environment: dict[str, Any]
) -> None:
    """Create the study: whole or not at all, before any worker looks for it.

    Raises:
        UserError: the folder holds other files or cannot be written, or the database does not answer.
    """
    check_folder(location)
    folder = location.folder
    folder.mkdir(parents=True, exist_ok=True)
    attributes = {
        "format": FORMAT,
        "environment": environment,
        "costs": [cost.to_dict() for cost in costs],
        "heartbeat": {"seconds": HEARTBEAT, "grace": GRACE},
        # Last: a study without a plan is one whose making was cut off, and is made again.
        "plan": plan.to_dict(),
    }
    if location.storage is not None:
        _create(location.storage, location.name, plan.direction, attributes)
        pointer = {"storage": _without_password(location.storage), "study": location.name}
        write_json(folder / "study.json", pointer)
        return
    handle, name = tempfile.mkstemp(dir=folder, prefix=".study.db.")
    os.close(handle)
    try:
        if _is_local(folder):
            # A commit costs one wait for the disk in place of four or five.
            with closing(sqlite3.connect(name)) as database:
                database.execute("PRAGMA journal_mode = WAL")
        _create(_sqlite(Path(name)), location.name, plan.direction, attributes)
        os.replace(name, folder / "study.db")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _create(
    storage: str, name: str, direction: Literal["maximize", "minimize"], attributes: dict[str, Any]
) -> None:
    opened = open_storage(storage)
    study = optuna.create_study(
        storage=opened, study_name=name, direction=direction, load_if_exists=True
    )
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    opened.engine.dispose()


def load_study(location: Location | Path) -> Study:
    """Open a study.

    Raises:
        UserError: there is none, another version of ecanet made it, or its database does not answer.
    """
    if isinstance(location, Path):
        location = locate(location)
    folder, name = location.folder, location.name
    if location.storage is None:
        if not is_study(location):
            raise UserError(f"{folder} holds no study: give the folder that was --out of one")
        url = _sqlite(folder / "study.db")
    else:
        url = location.storage
    try:
        storage = open_storage(url)
        trials = patiently(lambda: optuna.load_study(study_name=name, storage=storage), _OPENING)
        attributes = patiently(lambda: trials.user_attrs, _OPENING)
    except UserError:
        raise
    except KeyError:
        raise UserError(
            f"{_without_password(url)} holds no study {name!r}.{_others(study_names(url), name)}"
        ) from None
    except Exception as error:
        if disk_is_full(error):
            raise
        raise UserError(f"{location} cannot be read as a study ({type(error).__name__})") from None
    if attributes.get("format") != FORMAT:
        raise UserError(
            f"{location} was made by another version of ecanet (format {attributes.get('format')}, "
            f"this one reads {FORMAT}): use that version, or another --out"
        )
    beat = attributes["heartbeat"]
    queue = Queue(storage.engine, trials._study_id, beat["grace"])
    return Study(location, trials, storage, queue, beat["seconds"])


def extend_plan(study: Study, wanted: Plan) -> Plan:
    """Check that ``wanted`` fits the study, and add what is new in it to the plan.

    Raises:
        UserError: the runs would differ in more than the study allows for.
    """
    plan = study.plan()
    if plan.kind != wanted.kind:
        raise UserError(f"{study.location} is a {plan.kind}: choose another --out")
    changed = differences(plan.to_dict()["settings"], wanted.to_dict()["settings"])
    if plan.data_fingerprint != wanted.data_fingerprint and not changed:
        changed = ["the images of --data have changed"]
    if changed:
        raise UserError(
            f"the study was made with other settings ({'; '.join(changed)}): choose another --out"
        )
    # Another process may extend it at this moment.
    return plan_from_dict(
        study.queue.change_study(
            "plan", lambda there: plan_from_dict(there).extended(wanted).to_dict()
        )
    )


def bury_dead(study: Study) -> None:
    """Put the runs of dead workers back into the queue.

    Those of this machine are known by the free lock of the run's folder, the others by their silence.
    """
    study.queue.bury_silent()
    for trial_id, attributes in study.queue.running():
        folder = study.run_folder(attributes["run"])
        if attributes.get("place") != place(study):
            continue
        try:
            # While we hold it, no worker of this machine begins or goes on with the run.
            with filelock.FileLock(folder / ".lock", blocking=False):
                study.queue.bury(trial_id, attributes["token"])
        except filelock.Timeout:
            pass


def place(study: Study) -> str:
    """Return what tells the folder of the runs, and so their locks, from those of other machines."""
    runs = study.folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    found = runs.stat()
    return f"{platform.node()} {found.st_dev}:{found.st_ino}"


@contextmanager
def locked(study: Study, claim: Claim, run: str) -> Iterator[Path]:
    """Hold the lock of a run's folder; it is freed when this process ends, however it ends.

    Raises:
        Lost: another process holds it, or the run was taken from us before we held it.
    """
    folder = study.run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", blocking=False):
            # Between claim and lock we looked dead to others on this machine.
            study.queue.check(claim)
            yield folder
    except filelock.Timeout:
        raise Lost from None


def records(study: Study) -> list[Record]:
    """Return the records of the runs that are complete, in the order of the queue."""
    return [
        Record.from_dict(trial.user_attrs["record"])
        for trial in study.trials.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ]


def costs_of(study: Study) -> list[Cost]:
    """Return what each attention module costs, as measured when the study was made."""
    return [Cost.from_dict(cost) for cost in study.trials.user_attrs["costs"]]


def failures(study: Study) -> list[dict[str, Any]]:
    """Return the attributes, ``error`` among them, of the runs that failed last time."""
    last = {}
    for trial in study.trials.get_trials(deepcopy=False):
        last[trial.user_attrs["run"]] = trial
    return [trial.user_attrs for trial in last.values() if trial.state == TrialState.FAIL]


def summarise(study: Study | Path) -> StudySummary:
    """Gather what the report of a comparison needs from the study alone."""
    study = load_study(study) if isinstance(study, Path) else study
    plan: Any = study.plan()
    attributes = study.trials.user_attrs
    order = {run.name: i for i, run in enumerate(plan.runs())}
    complete = study.trials.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    complete.sort(key=lambda trial: order[trial.user_attrs["run"]])
    return StudySummary(
        title=plan.title(),
        attention=plan.attention,
        seeds=plan.seeds,
        settings=plan.to_dict()["settings"],
        environment=attributes["environment"],
        records=[Record.from_dict(trial.user_attrs["record"]) for trial in complete],
        costs=costs_of(study),
        failed=[
            {key: found.get(key) for key in ("attention", "seed", "error")}
            for found in failures(study)
        ],
        skipped_images=plan.skipped_images,
        metric=plan.judged_by,
        built_in=plan.built_in,
        notices=plan.notices,
        majority=plan.majority,
    )


def one_line(error: Exception, folder: Path) -> str:
    """Return the error as one line; its traceback goes to ``error.txt`` in the run's folder."""
    write_atomic(folder / "error.txt", "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Open a database, with tables for studies if it has none.

    Raises:
        UserError: it does not answer, or its driver is not installed.
    """
    postgres = url.startswith("postgresql")
    how = {
        "connect_args": _connection_options(url, 20.0 if postgres else 60.0),
        "pool_pre_ping": postgres,
    }
    started = time.monotonic()
    while True:
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=how)
        except ImportError:
            raise UserError("PostgreSQL needs a driver: pip install 'ecanet[postgres]'") from None
        except Exception as error:
            found = database_error(error)
            if not postgres or found is None:
                raise
            said = first_line(found)
            if not any(sign in said for sign in _PASSING) or time.monotonic() - started > _OPENING:
                raise UserError(
                    f"{_without_password(url)} does not answer ({said}): check the address, and that "
                    "the database runs"
                ) from None
        time.sleep(0.5)


def _connection_options(url: str, seconds: float) -> dict[str, Any]:
    """Return what makes a connection give up after so many seconds without an answer."""
    if not url.startswith("postgresql"):
        return {"timeout": seconds}
    return {
        "connect_timeout": max(2, round(seconds / 2)),
        "keepalives_idle": max(1, round(seconds / 2)),
        "keepalives_interval": max(1, round(seconds / 6)),
        "keepalives_count": 3,
        "tcp_user_timeout": round(1000 * seconds),
        # Heartbeats are compared with the database's clock, whatever zone a client sets. And who is cut
        # off in the middle of a transaction must not keep its locks.
        "options": "-c timezone=utc "
        f"-c idle_in_transaction_session_timeout={round(1000 * seconds)}",
    }


def _checked(url: str) -> str:
    """Return the address with the driver we install."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UserError(
            f"--storage {url} is no address of a database: postgresql://user@host/database"
        ) from None
    if parsed.get_backend_name() != "postgresql":
        raise UserError(
            f"--storage {_without_password(url)}: only postgresql://… can be shared by machines; "
            "without --storage the study is a file in its folder"
        )
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def _without_password(url: str) -> str:
    """Return the address as it may be shown and kept; libpq knows PGPASSWORD and ~/.pgpass."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1@", url).replace("+psycopg", "")


def _others(names: list[str], name: str) -> str:
    return did_you_mean(name, names) if names else " It holds none yet."


def _is_local(folder: Path) -> bool:
    """Whether all who open a file in ``folder`` are on this machine, as SQLite's write-ahead log needs."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return False
    kinds = {point: kind for _, point, kind, *_ in map(str.split, mounts.read_text().splitlines())}
    folder = folder.resolve()
    nearest = next(str(p) for p in [folder, *folder.parents] if str(p) in kinds)
    return kinds[nearest] in ("ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs")


def _sqlite(path: Path) -> str:
    return f"sqlite:///{path.resolve()}"
