"""A worker: claims and trains the runs of a study until all have ended."""

from __future__ import annotations

import logging
import math
import os
import platform
import shutil
import time
import traceback
import warnings
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from ecanet.config import AnySettings, OutsideSettings, TrainingSettings
from ecanet.environment import cpu_cores
from ecanet.errors import Diverged, Preempted, UserError, disk_is_full, duration, one_line
from ecanet.experiments.study.lease import Lease
from ecanet.experiments.study.location import valid_run_name
from ecanet.experiments.study.locks import host_key, recover_stale_runs, run_folder_lock
from ecanet.experiments.study.plan import Job, Plan
from ecanet.experiments.study.queue import Claim, LeaseLost, Queue, readable
from ecanet.experiments.study.retry import retry_transient
from ecanet.experiments.study.study import Study
from ecanet.experiments.study.weights import hash_weights
from ecanet.files import write_atomic
from ecanet.heap import keep_freed_memory
from ecanet.plugins import check_trust, load_plugins
from ecanet.record import Row
from ecanet.redaction import redact
from ecanet.signals import deferred_signals, raise_pending
from ecanet.training.run_folder import put_in_order
from ecanet.training.task import Hooks
from ecanet.training.train import task_of, train_in_study, warnings_only

log = logging.getLogger(__name__)

IDLE_POLL = 1.0  # s between two polls of a queue in which no run waits
RECOVERY_INTERVAL = 2.0  # s between two searches for runs of dead workers
RELEASE_TIMEOUT = 3.0  # s for which an interrupted worker tries to release its run
LOCK_BACKOFF = 5.0  # s for which a run is left to the process that holds its folder's lock


def work(
    study: Study,
    *,
    data: Any = None,
    data_path: str | None = None,
    index: int = 0,
    jobs: int = 1,
    wait: bool = True,
    plugin: Collection[str] | None = (),
) -> None:
    """Train the waiting runs of a study, one after the other.

    Args:
        study: an open study.
        data: the study's data, if the caller has read them already.
        data_path: path of the data on this machine, if it differs from the study's settings.
        index: number of this worker among the ``jobs`` of this machine; selects its GPU.
        jobs: number of workers, for the estimate of the time left.
        wait: stay until all runs have ended, since running ones may be requeued; otherwise return when none
            waits.
        plugin: plugins that the study may load, as they are programs; None: any.

    Raises:
        UserError: the data cannot be read or differ from the study's; the study names a plugin that is not in
            ``plugin``; or the storage has not answered for ``STORAGE_TIMEOUT``.
        Preempted, KeyboardInterrupt: SIGTERM or SIGINT was received; the run was requeued.
        OSError: the disk is full. The run was requeued; its last checkpoint is intact.
    """
    plan = study.plan()
    check_trust(plan.programs(), plugin, "the study")
    load_plugins(plan.plugin)
    here = on_this_machine(plan.settings, index, jobs)
    if data_path is not None:
        if not hasattr(plan.settings, "data"):
            raise UserError(
                f"--data: {plan.settings.title()} knows where its data is; leave it out"
            )
        here["data"] = data_path
    plan.settings = replace(plan.settings, **here)
    if data is None:
        with warnings_only():
            data = task_of(plan.settings).read(plan.settings)
    if data.fingerprint != plan.data_fingerprint:
        raise UserError(f"{plan.origin()} are not those that {study.location} was made with")
    if plan.weights_hash not in ("", hash_weights(plan.settings)):
        raise UserError(
            f"{plan.settings.weights} is not the file that {study.location} was made with"
        )
    trials = study.begun_trials()
    trials.pruner = plan.pruner() or optuna.pruners.NopPruner()
    worker = {"host": platform.node(), "pid": os.getpid(), "host_key": host_key(study)}
    news = ProgressReporter(study.queue, jobs)
    skipped: dict[int, float] = {}
    recovered = -math.inf
    with deferred_signals(), Lease(study) as lease:
        while True:
            raise_pending()
            now = time.monotonic()
            if now - recovered >= RECOVERY_INTERVAL:
                recover_stale_runs(study)
                recovered = now
            skipped = {trial: until for trial, until in skipped.items() if until > now}
            claim = study.queue.claim(worker, skip=skipped)
            if claim is not None:
                try:
                    _run(study, trials, plan, claim, lease, data, news)
                except LeaseLost:
                    skipped[claim.trial_id] = now + LOCK_BACKOFF
            elif enqueue_more(study):
                continue
            elif wait and study.queue.counts().open:
                time.sleep(IDLE_POLL)
            else:
                return


def enqueue_more(study: Study) -> int:
    """Queue the further runs that the results so far call for; return how many."""
    # Read again: another process may have extended it.
    runs = study.plan().more(study.read_trials)
    return study.queue.enqueue(runs, retry=False) if runs else 0


def _run(
    study: Study,
    trials: optuna.Study,
    plan: Plan,
    claim: Claim,
    lease: Lease,
    data: Any,
    news: ProgressReporter,
) -> None:
    """Train one run and end it; whatever interrupts it requeues it.

    Raises:
        LeaseLost: the run is no longer this worker's.
    """
    queue = study.queue
    try:
        with lease.keep_alive(claim):
            with readable(study.location):
                trial, job = retry_transient(lambda: _trial_and_job(trials, plan, claim))
                run = valid_run_name(trial.user_attrs.get("run", ""))
            with run_folder_lock(study, claim, run) as folder:
                put_in_order(folder)
                reported: list[float] = []
                prunes = not isinstance(trials.pruner, optuna.pruners.NopPruner)

                def on_epoch(row: Row) -> None:
                    if plan.metric not in row:
                        return
                    reported.append(_number(row[plan.metric], plan.direction))
                    retry_transient(lambda: _report(trial, reported[-1], int(row["epoch"]) + 1))
                    # Without a pruner, Optuna would read the trial needlessly.
                    if prunes and retry_transient(trial.should_prune):
                        raise optuna.TrialPruned

                try:
                    record = train_in_study(
                        job.settings,
                        folder,
                        data,
                        test=job.test,
                        keep_weights=job.keep_weights,
                        hooks=Hooks(on_step=lease.check, on_epoch=on_epoch),
                    )
                except (LeaseLost, Preempted):
                    raise
                except optuna.TrialPruned:
                    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                    queue.finish(claim, TrialState.PRUNED, reported[-1], {})
                    news.ended(f"{job.title}: ended early")
                except Exception as error:
                    # What a user must mend would stop the other runs as well.
                    for_all = isinstance(error, UserError) and not isinstance(error, Diverged)
                    if for_all or disk_is_full(error):
                        raise
                    # A run that fails because the study was moved or deleted has not failed.
                    study.check_not_moved()
                    line = _log_error(error, folder)
                    queue.finish(claim, TrialState.FAIL, None, {"error": line})
                    log.info(f"failed: {job.title}: {line}")
                else:
                    value = _number(record.final[plan.metric], plan.direction)
                    queue.finish(claim, TrialState.COMPLETE, value, {"record": record.to_dict()})
                    news.ended(f"{job.title}: {plan.outcome(record)}")
    except BaseException:
        # SIGKILL may follow soon. A run that cannot be released is requeued after the grace period.
        with suppress(UserError):
            replace(queue, timeout=RELEASE_TIMEOUT).release(claim)
        raise


def on_this_machine(settings: AnySettings, index: int, jobs: int) -> dict[str, Any]:
    """Return the settings that differ for worker number ``index`` of the ``jobs`` of this machine.

    The devices of several for one run, and of trainers that choose their own, are set in the environment.
    """
    if settings.device == "cpu":
        keep_freed_memory()
    found: dict[str, Any] = {}
    outside = isinstance(settings, OutsideSettings)
    if isinstance(settings, TrainingSettings) and settings.workers is None:
        # Those that train side by side share the cores.
        found["workers"] = max(1, min(16, cpu_cores() // (jobs * settings.devices)))
    count = torch.cuda.device_count()
    if settings.device == "cuda" and count > 1:
        if settings.devices == 1 and not outside:
            found["device"] = f"cuda:{index % count}"
        else:
            names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
            first = index * settings.devices % count
            chosen = names.split(",")[first : first + settings.devices]
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return found


def _trial_and_job(trials: optuna.Study, plan: Plan, claim: Claim) -> tuple[optuna.Trial, Job]:
    """Build both anew at each attempt: parameters stored before the storage went away are found again."""
    sampler = plan.sampler(claim.number)
    if sampler is not None:
        trials.sampler = sampler
        # Optuna accepts parameters only for trials that it has read.
        trials.get_trials(deepcopy=False)
    trial = optuna.Trial(trials, claim.trial_id)
    return trial, plan.job(trial)


def _report(trial: optuna.Trial, value: float, epoch: int) -> None:
    with warnings.catch_warnings():
        # An epoch that is repeated, its checkpoint being lost, was reported before: the first report counts.
        warnings.simplefilter("ignore")
        trial.report(value, epoch)


def _number(value: float, direction: str) -> float:
    """Return a value that can be compared: NaN, of a run that diverged, counts as the worst."""
    worst = -math.inf if direction == "maximize" else math.inf
    return worst if math.isnan(value) else value


class ProgressReporter:
    """Reports each run that has ended, with an estimate of the time left."""

    def __init__(self, queue: Queue, jobs: int) -> None:
        self.queue, self.jobs = queue, jobs
        self.started, self.done = time.monotonic(), 0

    def ended(self, what: str) -> None:
        self.done += 1
        counts = self.queue.counts()
        left = (time.monotonic() - self.started) / self.done * counts.open / self.jobs
        log.info(
            f"[{counts.complete + counts.pruned}/{counts.total}] {what}"
            + (f"; about {duration(left)} left" if counts.open else "")
        )


def _log_error(error: Exception, folder: Path) -> str:
    """Write the error's traceback to ``error.txt`` in the run's folder; return the error as one line."""
    write_atomic(folder / "error.txt", redact("".join(traceback.format_exception(error))))
    return redact(f"{type(error).__name__}: {one_line(error, None)}")[:300]
