"""A worker: takes runs from a study's queue until all have ended."""

from __future__ import annotations

import math
import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.trial import TrialState

from ecanet.errors import Preempted, UserError, disk_is_full
from ecanet.experiments.study.location import valid_run_name
from ecanet.experiments.study.plan import Job, Plan, train_run
from ecanet.experiments.study.queue import (
    NO_ANSWER,
    PATIENCE,
    Claim,
    Lost,
    Queue,
    patiently,
    readable,
    worst,
)
from ecanet.experiments.study.study import Study, bury_dead, locked, one_line, place
from ecanet.plugins import check_trust, load_plugins
from ecanet.signals import noted, obey
from ecanet.training.run_folder import put_in_order

# Seconds between looks at a queue in which no run waits; between looks for dead workers; and for which
# a run is left to the process that holds its folder.
_IDLE, _LOOK, _LEFT_ALONE = 1.0, 2.0, 5.0


def work(
    study: Study,
    *,
    data: Any = None,
    data_path: str | None = None,
    index: int = 0,
    jobs: int = 1,
    wait: bool = True,
    plugin: Collection[str] | None = (),
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train the waiting runs of a study, one after the other.

    Args:
        study: opened.
        data: the study's data, if the caller has read them already.
        data_path: where they are on this machine, if not where the study's settings say.
        index: which of the ``jobs`` workers of this machine this one is; picks its GPU.
        jobs: how many workers there are: for the time left.
        wait: stay until all runs have ended, as those under way elsewhere may come back; else leave
            when none waits.
        plugin: plugins that the study may name, as they are programs; None: any.
        progress: show a progress bar for each run.
        say: called with a line for each run that ends.

    Raises:
        UserError: the data cannot be read, or differ from those the study was made with; the study
            names a plugin that is not in ``plugin``; or the storage has not answered for minutes.
        Preempted, KeyboardInterrupt: SIGTERM or Ctrl-C came; the run went back into the queue.
        OSError: the disk is full. The run went back into the queue; its last checkpoint is intact.
    """
    plan = study.plan()
    check_trust(plan.plugin, plugin, "the study")
    load_plugins(plan.plugin)
    if data_path is not None:
        plan.settings.data = data_path
    if data is None:
        data = plan.read_data()
    if data.fingerprint != plan.data_fingerprint:
        raise UserError(
            f"the images of {plan.settings.data} are not those that {study.location} was made with"
        )
    plan.set_up(index)
    trials = study.begun_trials()
    trials.pruner = plan.pruner() or optuna.pruners.NopPruner()
    me = {"host": platform.node(), "pid": os.getpid(), "place": place(study)}
    news = _News(study.queue, jobs, say)
    left_alone: dict[int, float] = {}
    looked = -math.inf
    with noted(), _Lease(study) as lease:
        while True:
            obey()
            now = time.monotonic()
            if now - looked >= _LOOK:
                bury_dead(study)
                looked = now
            left_alone = {trial: until for trial, until in left_alone.items() if until > now}
            claim = study.queue.claim(me, skip=left_alone)
            if claim is not None:
                try:
                    _run(study, trials, plan, claim, lease, data, progress, news)
                except Lost:
                    left_alone[claim.trial_id] = now + _LEFT_ALONE
                continue
            counts = study.queue.counts()
            if not counts.open or not wait:
                return
            time.sleep(_IDLE)


def _run(
    study: Study,
    trials: optuna.Study,
    plan: Plan,
    claim: Claim,
    lease: _Lease,
    data: Any,
    progress: bool,
    news: _News,
) -> None:
    """Train one run and end it; whatever keeps it from its end puts it back into the queue.

    Raises:
        Lost: the run is in other hands.
    """
    queue = study.queue
    try:
        with lease.of(claim):
            with readable(study.location):
                trial, job = patiently(lambda: _trial_and_job(trials, plan, claim))
                run = valid_run_name(trial.user_attrs.get("run", ""))
            with locked(study, claim, run) as folder:
                put_in_order(folder, news.say)
                reported: list[float] = []
                prunes = not isinstance(trials.pruner, optuna.pruners.NopPruner)

                def on_epoch(metrics: Any) -> None:
                    reported.append(_number(getattr(metrics, plan.metric), plan.direction))
                    patiently(lambda: _report(trial, reported[-1], metrics.epoch + 1))
                    # Without a pruner Optuna would read the trial for nothing.
                    if prunes and patiently(trial.should_prune):
                        raise optuna.TrialPruned

                try:
                    record = train_run(
                        plan,
                        job,
                        data,
                        folder,
                        progress=progress,
                        on_epoch=on_epoch,
                        on_step=lease.check,
                    )
                except (UserError, Lost, Preempted):
                    raise
                except optuna.TrialPruned:
                    queue.finish(claim, TrialState.PRUNED, reported[-1], {})
                    news.ended(f"{job.title}: ended early")
                except Exception as error:
                    if disk_is_full(error):
                        raise
                    # Whatever fails because the folder has gone is not the run's fault.
                    study.check_there()
                    line = one_line(error, folder)
                    queue.finish(claim, TrialState.FAIL, None, {"error": line})
                    news.say(f"failed: {job.title}: {line}")
                else:
                    value = _number(getattr(record.final, plan.metric), plan.direction)
                    queue.finish(claim, TrialState.COMPLETE, value, {"record": record.to_dict()})
                    news.ended(f"{job.title}: {plan.outcome(record)}")
    except BaseException:
        # In a hurry, as SIGKILL may follow. A run that cannot be given back is taken for dead in time.
        with suppress(UserError):
            queue.give_back(claim, patience=3.0)
        raise


def _trial_and_job(trials: optuna.Study, plan: Plan, claim: Claim) -> tuple[optuna.Trial, Job]:
    """Made anew at each attempt: parameters that were stored before the storage went are found again."""
    sampler = plan.sampler(claim.number)
    if sampler is not None:
        trials.sampler = sampler
        # Optuna takes parameters only for trials that it has read.
        trials.get_trials(deepcopy=False)
    trial = optuna.Trial(trials, claim.trial_id)
    return trial, plan.job(trial)


def _report(trial: optuna.Trial, value: float, epoch: int) -> None:
    with warnings.catch_warnings():
        # An epoch made again after its checkpoint was lost has been reported: the first time counts.
        warnings.simplefilter("ignore")
        trial.report(value, epoch)


def _number(value: float, direction: str) -> float:
    """Return a value that can be compared: a run that diverged has the worst there is."""
    return worst(direction) if math.isnan(value) else value


class _Lease:
    """Keeps claims alive by heartbeats from a thread, and the worker from working without one.

    Once no heartbeat has reached the storage for half the grace period, the training is held between
    two steps until the storage answers: if the run is still ours it goes on from there, if not it ends
    with :class:`Lost`. So nobody works on a run that another may already have taken, and a database
    that is away for a while costs no epoch.
    """

    def __init__(self, study: Study) -> None:
        # Connections of its own: the main thread may be held while it uses the others.
        self.queue, self.study = study.queue_for_heartbeats(), study
        self.heartbeat, self.most = study.heartbeat, study.queue.grace / 2
        self.claim: Claim | None = None
        self.lost: Claim | None = None
        self.heard = 0.0
        self.answered, self.closed = threading.Event(), threading.Event()

    def __enter__(self) -> _Lease:
        threading.Thread(target=self._keep_beating, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()

    @contextmanager
    def of(self, claim: Claim) -> Iterator[None]:
        """Keep ``claim`` alive for as long as the block lasts."""
        self.heard = time.monotonic()
        self.claim = claim
        try:
            yield
        finally:
            self.claim = None

    def check(self) -> None:
        """Return at once if the claim is known to be alive, else wait until it is: between two steps.

        Raises:
            Lost: it is not.
            UserError: the storage has not answered for minutes, or the study is no longer where it was.
            Preempted, KeyboardInterrupt: a signal came meanwhile.
        """
        self.study.check_there()
        while self.claim is not self.lost and time.monotonic() - self.heard > self.most:
            if time.monotonic() - self.heard > PATIENCE:
                raise UserError(NO_ANSWER)
            obey()
            self.answered.wait(1.0)
            self.answered.clear()
        if self.claim is self.lost:
            raise Lost

    def _keep_beating(self) -> None:
        pause = self.heartbeat
        while not self.closed.wait(pause):
            claim = self.claim
            pause = self.heartbeat if claim is None or self._beat(claim) else self.heartbeat / 4
        self.queue.engine.dispose()

    def _beat(self, claim: Claim) -> bool:
        """Send a heartbeat; tell whether the storage has answered."""
        sent = time.monotonic()
        try:
            self.queue.beat(claim, patience=0.0)
        except Lost:
            self.lost = claim
        except UserError:
            return False
        else:
            if self.claim is claim:
                self.heard = sent
        self.answered.set()
        return True


class _News:
    """Tells the user of each run that has ended, and how long the rest will take."""

    def __init__(self, queue: Queue, jobs: int, say: Callable[[str], None]) -> None:
        self.queue, self.jobs, self.say = queue, jobs, say
        self.started, self.done = time.monotonic(), 0

    def ended(self, what: str) -> None:
        self.done += 1
        counts = self.queue.counts()
        left = (time.monotonic() - self.started) / self.done * counts.open / self.jobs
        self.say(
            f"[{counts.complete + counts.pruned}/{counts.total}] {what}"
            + (f"; about {duration(left)} left" if counts.open else "")
        )


def duration(seconds: float) -> str:
    """Return a time in words short enough for a line."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
