"""A study: a queue of runs in an Optuna storage, and what has come out of it so far.

The study's folder holds ``study.db`` (the queue, the plan, the records; everything a report needs),
and ``runs/NAME/`` with each run's checkpoint, metrics and record as files for people.
"""

from __future__ import annotations

import os
import platform
import random
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import FrozenTrial, TrialState

from ecanet.config import Augmentation, Optimizer, RunSettings, Schedule
from ecanet.errors import UserError
from ecanet.experiments.summary import StudySummary
from ecanet.record import Cost, Record, write_atomic

FORMAT = 1
_NAME = "study"
# A worker on this machine that dies frees its run's lock at once. The heartbeat is for the others.
_HEARTBEAT_SECONDS, _GRACE_SECONDS = 30, 120

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass
class Plan:
    """What a study is to run, and on which data."""

    attention: list[str]
    seeds: list[int]
    plugin: list[str]
    settings: RunSettings
    threads: int
    """CPU threads of a run: the same for all, as the order of a sum and so its rounding follow it."""
    data_fingerprint: str
    skipped_images: list[str]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        return cls(**{**values, "settings": run_settings(values["settings"])})

    def runs(self) -> list[tuple[str, int]]:
        """All (attention, seed), seed by seed, so that an interrupted study is still balanced.

        The order within a seed is shuffled, so that no module always runs on the warmer machine.
        """
        order = []
        for seed in self.seeds:
            block = [(attention, seed) for attention in self.attention]
            random.Random(seed).shuffle(block)
            order += block
        return order


def run_settings(values: dict[str, Any]) -> RunSettings:
    """Rebuild settings from the plain values that ``dataclasses.asdict`` gave."""
    nested = {"augmentation": Augmentation, "optimizer": Optimizer, "schedule": Schedule}
    return RunSettings(**{k: nested[k](**v) if k in nested else v for k, v in values.items()})


def run_name(attention: str, seed: int) -> str:
    """Return the name of a run's folder: ``eca-seed0``, ``eca-kernel_size=9-seed0``."""
    return f"{re.sub(r'[^A-Za-z0-9_.=]+', '-', attention)}-seed{seed}"


def is_study(folder: Path) -> bool:
    """Whether ``folder`` holds a study."""
    return (folder / "study.db").is_file()


def check_folder(folder: Path) -> None:
    """Refuse a folder that is neither new, nor empty, nor a study.

    Raises:
        UserError: it holds other files, is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: choose a folder")
    if folder.is_dir() and any(folder.iterdir()) and not is_study(folder):
        raise UserError(f"{folder} is not empty and holds no study: choose another --out")
    parent = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--out {folder} cannot be written: choose another folder")


def create_study(folder: Path, plan: Plan, costs: list[Cost], environment: dict[str, Any]) -> None:
    """Create the study in ``folder``: whole or not at all, before any worker looks for it.

    Raises:
        UserError: the folder holds other files or cannot be written.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".study.db.")
    os.close(handle)
    try:
        storage = _storage(Path(name))
        study = optuna.create_study(storage=storage, study_name=_NAME, direction="maximize")
        study.set_user_attr("format", FORMAT)
        study.set_user_attr("environment", environment)
        study.set_user_attr("costs", [cost.to_dict() for cost in costs])
        study.set_user_attr("plan", asdict(plan))
        storage.engine.dispose()
        os.replace(name, folder / "study.db")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_study(folder: Path) -> optuna.Study:
    """Open the study in ``folder``.

    Raises:
        UserError: there is none, or another version of ecanet made it.
    """
    if not is_study(folder):
        raise UserError(f"{folder} holds no study: give the folder that was --out of a compare")
    try:
        study = optuna.load_study(study_name=_NAME, storage=_storage(folder / "study.db"))
        found = study.user_attrs.get("format")
    except Exception as error:
        raise UserError(
            f"{folder}/study.db cannot be read as a study ({type(error).__name__})"
        ) from None
    if found != FORMAT:
        raise UserError(
            f"{folder} was made by another version of ecanet (format {found}, this one reads "
            f"{FORMAT}): use that version, or another --out"
        )
    return study


def load_plan(study: optuna.Study) -> Plan:
    """Return what the study is to run."""
    return Plan.from_dict(study.user_attrs["plan"])


def extend_plan(study: optuna.Study, wanted: Plan) -> Plan:
    """Check that ``wanted`` fits the study, and add its new modules, seeds and plugins to the plan.

    Raises:
        UserError: the runs would differ in more than attention module and seed.
    """
    plan = load_plan(study)
    old, new = (_flatten(asdict(p.settings)) for p in (plan, wanted))
    changed = [
        f"{key}: {old[key]} there, {new[key]} asked" for key in new if old.get(key) != new[key]
    ]
    if plan.data_fingerprint != wanted.data_fingerprint and not changed:
        changed = ["the images of --data have changed"]
    if changed:
        raise UserError(
            f"the study was made with other settings ({'; '.join(changed)}): choose another --out"
        )
    for name in ("attention", "seeds", "plugin"):
        have = getattr(plan, name)
        have += [value for value in getattr(wanted, name) if value not in have]
    plan.seeds.sort()
    study.set_user_attr("plan", asdict(plan))
    return plan


def enqueue_missing(study: optuna.Study, folder: Path) -> int:
    """Put every run of the plan that is neither finished nor under way into the queue.

    A run whose worker on this machine has died counts as not under way: its lock is free.
    Returns how many runs now wait.
    """
    taken = set()
    for trial in study.get_trials(deepcopy=False):
        run = _run_of(trial)
        if run is None:
            continue
        if trial.state in (TrialState.COMPLETE, TrialState.WAITING):
            taken.add(run)
        elif trial.state == TrialState.RUNNING:
            if _worker_died(trial, folder / "runs" / run_name(*run)):
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            else:
                taken.add(run)
    for attention, seed in load_plan(study).runs():
        if (attention, seed) not in taken:
            study.enqueue_trial({}, user_attrs={"attention": attention, "seed": seed})
    return len(waiting(study))


def waiting(study: optuna.Study) -> list[FrozenTrial]:
    """Return the runs in the queue."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def summarise(folder: Path) -> StudySummary:
    """Gather what a report needs from the study alone."""
    study = load_study(folder)
    plan = load_plan(study)
    records: dict[tuple[str, int], Record] = {}
    errors: dict[tuple[str, int], str] = {}
    for trial in study.get_trials(deepcopy=False):
        run = _run_of(trial)
        if run is None:
            continue
        if trial.state == TrialState.COMPLETE:
            records[run] = Record.from_dict(trial.user_attrs["record"])
        elif trial.state == TrialState.FAIL and "error" in trial.user_attrs:
            errors[run] = trial.user_attrs["error"]
    return StudySummary(
        title=f"{plan.settings.model} on {Path(plan.settings.data).name}",
        attention=plan.attention,
        seeds=plan.seeds,
        settings=asdict(plan.settings),
        environment=study.user_attrs["environment"],
        records=[records[run] for run in sorted(records, key=plan.runs().index)],
        costs=[Cost.from_dict(cost) for cost in study.user_attrs["costs"]],
        failed=[
            {"attention": run[0], "seed": run[1], "error": error}
            for run, error in errors.items()
            if run not in records
        ],
        skipped_images=plan.skipped_images,
    )


@contextmanager
def claimed(trial: optuna.Trial, folder: Path) -> Iterator[tuple[str, int, Path]]:
    """Hold the lock of a run's folder; it is freed when this process ends, however it ends.

    Raises:
        optuna.TrialPruned: another process holds it, and will end the run.
    """
    attention, seed = trial.user_attrs["attention"], trial.user_attrs["seed"]
    run_folder = folder / "runs" / run_name(attention, seed)
    run_folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run_folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise optuna.TrialPruned from None
    try:
        trial.set_user_attr("host", platform.node())
        yield attention, seed, run_folder
    finally:
        lock.release()


def one_line(error: Exception, folder: Path) -> str:
    """Return the error as one line; its traceback goes to ``error.txt`` in the run's folder."""
    write_atomic(folder / "error.txt", "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _run_of(trial: FrozenTrial) -> tuple[str, int] | None:
    """The run a trial stands for; None for one that a worker drew from an empty queue."""
    attributes = trial.user_attrs
    return (attributes["attention"], attributes["seed"]) if "attention" in attributes else None


def _worker_died(trial: FrozenTrial, run_folder: Path) -> bool:
    if trial.user_attrs.get("host", platform.node()) != platform.node():
        return False
    try:
        with filelock.FileLock(run_folder / ".lock", blocking=False):
            return True
    except filelock.Timeout:
        return False


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _storage(path: Path) -> optuna.storages.RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(
            f"sqlite:///{path.resolve()}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=_HEARTBEAT_SECONDS,
            grace_period=_GRACE_SECONDS,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
