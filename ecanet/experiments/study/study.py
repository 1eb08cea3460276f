"""A study: a queue of runs in an Optuna storage, and what has come out of it so far.

The study's folder holds ``study.db`` (the queue, the plan, the records; everything a report needs), or
``study.json``, which tells the database where they are; and ``runs/NAME/`` with each run's checkpoint,
metrics and record as files for people.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from ecanet.errors import UserError, did_you_mean
from ecanet.experiments.analysis.compare import StudySummary, record_of
from ecanet.experiments.study.location import (
    Location,
    inside,
    locate,
    read_pointer,
    regular_file,
    valid_run_name,
    write_pointer,
)
from ecanet.experiments.study.plan import Plan, differences, plan_from_dict
from ecanet.experiments.study.queue import Claim, Lost, Queue, patiently, readable
from ecanet.experiments.study.storage import (
    OPENING,
    DatabaseFile,
    engine_options,
    open_storage,
    study_file,
    study_names,
)
from ecanet.experiments.study.trial_cache import BegunTrials
from ecanet.files import (
    is_temporary,
    lock_of,
    move_to_free,
    temporary_folder,
    write_atomic,
)
from ecanet.record import Cost, Record
from ecanet.redaction import redact
from ecanet.typed import typed

FORMAT = 2
# How often a worker tells that it is alive, and after which silence it counts as dead, in seconds. A
# worker that dies on this machine frees its run's lock at once: this is for the others.
HEARTBEAT, GRACE = 20.0, 120.0
_LONGEST = 1e6


@dataclass
class _Heartbeat:
    seconds: float
    grace: float


@dataclass
class _Attributes:
    """What is stored of a study beside its runs."""

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
    """Optuna's view of it: a trial a run."""
    storage: optuna.storages.RDBStorage
    queue: Queue
    heartbeat: float
    """Seconds between the heartbeats of a worker."""
    file: DatabaseFile | None = None
    """Of a study in its folder."""

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
        options = engine_options(self.file or self.location, self.queue.grace / 6)
        own = sqlalchemy.create_engine(engine.url, **options)
        return Queue(own, self.queue.study_id, self.queue.grace)

    def check_there(self) -> None:
        """Look whether the study is where it was when it was opened.

        Raises:
            UserError: its folder or file was moved, deleted or replaced.
        """
        if self.file:
            self.file.check()

    def report_folder(self) -> Path:
        """Return where the report goes.

        Raises:
            UserError: a link there leads out of the study's folder.
        """
        return inside(self.folder, "report")

    def plan(self) -> Plan:
        """Read what the study is to run.

        Raises:
            UserError: another version of ecanet made it.
        """
        with readable(self.location):
            values = patiently(lambda: self.trials.user_attrs)["plan"]
        try:
            return plan_from_dict(values)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{self.location} was made by another version of ecanet ({error}): use that version"
            ) from None

    def read_trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states, or all, in the order of the queue.

        Raises:
            UserError: they cannot be read, or one has no run's name.
        """
        with readable(self.location):
            trials: list[FrozenTrial] = patiently(
                lambda: self.trials.get_trials(deepcopy=False, states=states or None)
            )
            for trial in trials:
                valid_run_name(trial.user_attrs.get("run", ""))
        return trials

    def run_folder(self, run: str) -> Path:
        """Return the folder of a run, for its files.

        Raises:
            UserError: the name, or a link on the way, leads out of the study's folder.
        """
        return inside(self.folder, "runs", valid_run_name(run))


def is_study(location: Location) -> bool:
    """Whether there is a study.

    Raises:
        UserError: its database does not answer, or is another program's.
    """
    if location.storage is None:
        return regular_file(location.folder / "study.db")
    return location.name in study_names(location)


def check_folder(location: Location) -> None:
    """Refuse a folder that is neither new, nor empty, nor a study's.

    What a command that was killed has left of a study does not count.

    Raises:
        UserError: it holds other files, is a file, cannot be written, or has a name that is not UTF-8.
    """
    folder = location.folder
    try:
        str(folder.resolve()).encode()
    except UnicodeEncodeError:
        # It could not be written into a report, which comes after all runs.
        raise UserError(f"--out {folder}: choose a folder whose path is UTF-8") from None
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: choose a folder")
    entries = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    entries = {name for name in entries if name != ".lock" and not is_temporary(name)}
    # A worker leaves no more than these in a folder of its own.
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
    """Create the study: whole or not at all, before any worker looks for it.

    One that another process has created meanwhile is left as it is.

    Raises:
        UserError: the folder holds other files or cannot be written, or the database does not answer.
    """
    check_folder(location)
    attributes = {
        "format": FORMAT,
        "environment": environment,
        "costs": [cost.to_dict() for cost in costs],
        "heartbeat": {"seconds": HEARTBEAT, "grace": GRACE},
        "plan": plan.to_dict(),
    }
    folder = location.folder
    with temporary_folder(folder) as temporary:
        if location.storage is None:
            made = temporary / "study.db"
            # SQLite would make it for its owner alone to write, whatever the umask.
            made.touch()
            if _is_local(folder):
                # A commit costs one wait for the disk in place of four or five.
                with closing(sqlite3.connect(made)) as database:
                    database.execute("PRAGMA journal_mode = WAL")
            _create(DatabaseFile(made, "create"), location.name, plan.direction, attributes)
        else:
            made = temporary / "study.json"
            _create(location, location.name, plan.direction, attributes)
            write_pointer(location, made)
        with suppress(FileExistsError):
            move_to_free(made, folder / made.name)
    check_folder(location)


def _create(
    where: Location | DatabaseFile,
    name: str,
    direction: Literal["maximize", "minimize"],
    attributes: dict[str, Any],
) -> None:
    opened = open_storage(where, "create")
    assert opened is not None
    study = optuna.create_study(
        storage=opened, study_name=name, direction=direction, load_if_exists=True
    )
    Queue(opened.engine, study._study_id, GRACE).describe(attributes)
    opened.engine.dispose()


def load_study(location: Location | Path, mode: Literal["read", "write"] = "write") -> Study:
    """Open a study.

    Args:
        location: of the study, or its folder.
        mode: ``read``: nothing is changed, in the study or beside it.

    Raises:
        UserError: there is none, another program or version of ecanet made it, or its database does not
            answer.
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
            trials = patiently(lambda: optuna.load_study(study_name=name, storage=storage), OPENING)
        except KeyError:
            names = study_names(location) if location.storage else []
            raise UserError(f"{shown} holds no study {name!r}.{_others(names, name)}") from None
        attributes = patiently(lambda: trials.user_attrs, OPENING)
    if attributes.get("format") != FORMAT:
        raise UserError(
            f"{location} was made by another version of ecanet (format {attributes.get('format')!r:.20}, "
            f"this one reads {FORMAT}): use that version, or another --out"
        )
    try:
        beat = typed(_Attributes, attributes).heartbeat
        if not (0 < beat.seconds <= _LONGEST and 0 < beat.grace <= _LONGEST):
            raise UserError(f"heartbeat cannot be {beat.seconds:g} and {beat.grace:g} s")
    except UserError as error:
        raise UserError(f"{location} cannot be read as a study ({error})") from None
    queue = Queue(storage.engine, trials._study_id, beat.grace)
    return Study(location, trials, storage, queue, beat.seconds, file)


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
        if attributes.get("place") != place(study):
            continue
        folder = study.run_folder(attributes.get("run", ""))
        try:
            # While we hold it, no worker of this machine begins or goes on with the run.
            with lock_of(folder):
                study.queue.bury(trial_id, attributes.get("token", ""))
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
        with lock_of(folder):
            # Between claim and lock we looked dead to others on this machine.
            study.queue.check(claim)
            yield folder
    except filelock.Timeout:
        raise Lost from None


def records(study: Study) -> list[Record]:
    """Return the records of the runs that are complete, in the order of the queue."""
    return [record_of(trial.user_attrs) for trial in study.read_trials(TrialState.COMPLETE)]


def costs_of(study: Study) -> list[Cost]:
    """Return what each attention module costs, as measured when the study was made."""
    return [Cost.from_dict(cost) for cost in study.trials.user_attrs["costs"]]


def failures(study: Study) -> list[dict[str, Any]]:
    """Return the attributes, ``error`` among them, of the runs that failed last time."""
    last = {trial.user_attrs["run"]: trial for trial in study.read_trials()}
    return [trial.user_attrs for trial in last.values() if trial.state == TrialState.FAIL]


def summarise(study: Study | Path) -> StudySummary:
    """Gather what the report of a comparison needs from the study alone."""
    study = load_study(study) if isinstance(study, Path) else study
    plan: Any = study.plan()
    attributes = study.trials.user_attrs
    order = {run.name: i for i, run in enumerate(plan.runs())}
    complete = study.read_trials(TrialState.COMPLETE)
    complete.sort(key=lambda trial: order.get(trial.user_attrs["run"], len(order)))
    return StudySummary(
        title=plan.title(),
        attention=plan.attention,
        seeds=plan.seeds,
        settings=plan.to_dict()["settings"],
        environment=attributes["environment"],
        records=[record_of(trial.user_attrs) for trial in complete],
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
    write_atomic(folder / "error.txt", redact("".join(traceback.format_exception(error))))
    return redact(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]


def _others(names: list[str], name: str) -> str:
    return did_you_mean(name, names) if names else " It holds none yet."


def _is_local(folder: Path) -> bool:
    """Whether all who open a file in ``folder`` are on this machine, as SQLite's write-ahead log needs."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return False
    lines = mounts.read_text(errors="surrogateescape").splitlines()
    kinds = {point: kind for _, point, kind, *_ in map(str.split, lines)}
    folder = folder.resolve()
    nearest = next(str(p) for p in [folder, *folder.parents] if str(p) in kinds)
    return kinds[nearest] in ("ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs")
