"""Locks of run folders, by which runs of dead workers are recognized and requeued."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from ecanet.experiments.study.queue import Claim, LeaseLost
from ecanet.experiments.study.study import Study
from ecanet.files import lock_of


def recover_stale_runs(study: Study) -> None:
    """Requeue the runs of dead workers.

    A worker of this machine is dead if its run's folder is not locked, any other if its heartbeat is too old.
    """
    study.queue.requeue_stale()
    for trial_id, attributes in study.queue.running():
        if attributes.get("host_key") != host_key(study):
            continue
        folder = study.run_folder(attributes.get("run", ""))
        try:
            # While this process holds it, no worker of this machine starts or resumes the run.
            with lock_of(folder):
                study.queue.requeue_dead(trial_id, attributes.get("token", ""))
        except filelock.Timeout:
            pass


def host_key(study: Study) -> str:
    """Return a name of this machine and its folder of runs: processes with the same one share locks."""
    runs = study.folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    found = runs.stat()
    return f"{platform.node()} {found.st_dev}:{found.st_ino}"


@contextmanager
def run_folder_lock(study: Study, claim: Claim, run: str) -> Iterator[Path]:
    """Hold the lock of a run's folder, and yield the folder.

    The lock is freed when this process ends, however it ends.

    Raises:
        LeaseLost: another process holds it, or the run was requeued before this process held it.
    """
    folder = study.run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_of(folder):
            # Between claim and lock this worker looked dead to others on this machine.
            study.queue.check(claim)
            yield folder
    except filelock.Timeout:
        raise LeaseLost from None
