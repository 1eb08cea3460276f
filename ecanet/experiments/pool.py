"""The workers of this machine: as many as fit, until every run of a study has ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import filelock
import torch

from ecanet.data.memory import available_memory
from ecanet.errors import UserError
from ecanet.experiments.plan import Plan
from ecanet.experiments.study import (
    Location,
    Study,
    create_study,
    extend_plan,
    is_study,
    load_study,
)
from ecanet.experiments.worker import work
from ecanet.interrupts import noted, obey
from ecanet.record import Cost
from ecanet.training.device import cpu_cores, environment, resolve_device, worker_variables


def run_study(
    study: Study,
    data: Any,
    jobs: int,
    *,
    watching: AbstractContextManager[Any] | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Work on a study of any kind until every run has ended, and write its report.

    Runs that failed in an earlier call are tried again. Returns the path of the report's page.

    Args:
        study: opened.
        data: the study's data, as read.
        jobs: processes that train at the same time on this machine.
        watching: entered when the queue has been filled, and left when all runs have ended.
        progress: show a progress bar for each run, if one job works.
        say: called with each line of news.

    Raises:
        UserError: workers crash without ending any run, or another process works on the folder.
    """
    plan = study.plan()
    try:
        with filelock.FileLock(study.folder / ".lock", blocking=False):
            try:
                study.queue.enqueue(plan.runs())
                with watching or nullcontext():
                    _run_all(study, plan.settings.threads, data, jobs, progress, say)
                    if study.queue.enqueue(plan.follow_up(study), retry=False):
                        _run_all(study, plan.settings.threads, data, jobs, progress, say)
            finally:
                page = plan.write_report(study)
    except filelock.Timeout:
        raise UserError(
            f"another process works on {study.folder}: wait for it, or choose another --out"
        ) from None
    return page


def open_study(
    location: Location,
    plan: Plan,
    measure: Callable[[], tuple[list[Cost], int]],
    *,
    jobs: int | None,
) -> tuple[Study, int]:
    """Make the study of a plan, or extend the one that is there.

    Args:
        location: of the study.
        plan: what it is to run.
        measure: for a new study, the costs of the plan's attention modules, as far as they are to be
            told, and the bytes of the largest training step.
        jobs: processes that train at the same time on this machine.

    Returns:
        The study, and ``jobs``, by default as many as fit.

    Raises:
        UserError: the study that is there is another one.
    """
    if is_study(location):
        study = load_study(location)
        extend_plan(study, plan)
        return study, jobs or fitting_jobs(study.plan())
    costs, plan.step_bytes = measure()
    jobs = jobs or fitting_jobs(plan)
    create_study(location, plan, costs, environment(resolve_device(plan.settings.device)))
    return load_study(location), jobs


def fitting_jobs(plan: Plan) -> int:
    """Return how many runs of a plan this machine should train at the same time.

    A GPU takes one run. On a CPU, runs side by side on a core each get more done than one run
    spread over all cores, and suffer less from what else the machine does; each gets the cores of
    its threads, the memory of a training step, and two GB for the images, Python and its libraries.
    A run on several devices takes as many times that.
    """
    settings = plan.settings
    if not settings.device.startswith("cpu"):
        count = torch.cuda.device_count() if settings.device == "cuda" else 1
        return max(1, count // settings.devices)
    # A step's temporary values come on top of what it must hold.
    fitting = (available_memory() or 2**33) // (2 * plan.step_bytes + 2**31)
    return max(1, min(cpu_cores() // settings.threads, 8, fitting) // settings.devices)


def _run_all(
    study: Study,
    threads: int,
    data: Any,
    jobs: int,
    progress: bool,
    say: Callable[[str], None],
) -> None:
    """Work until every run has ended; workers that crash are started again.

    Raises:
        UserError: they crash without ending any run, twice.
    """
    before, again = -1, False
    while left := study.queue.counts().open:
        if left == before:
            # A whole round ended none of them: the workers crashed, which is worth a second try.
            if again:
                raise UserError(
                    f"{left} runs have not ended: a worker has crashed, its last lines are above; "
                    "the same command goes on"
                )
            again = True
        before = left
        if jobs == 1:
            work(study, data=data, progress=progress, say=say)
        else:
            run_workers(study.location, threads, min(jobs, left), say)


def run_workers(
    location: Location,
    threads: int,
    jobs: int,
    say: Callable[[str], None],
    extra: Sequence[str] = (),
) -> None:
    """Start so many workers on this machine, and wait for them.

    Args:
        location: of the study.
        threads: CPU threads of each.
        jobs: how many.
        say: gets the lines they print.
        extra: further flags of ``ecanet worker``.

    Raises:
        UserError: one had to stop for a reason that the user can put right.
        Preempted, KeyboardInterrupt: SIGTERM or Ctrl-C came; the workers were told and have ended.
    """
    command = [
        sys.executable, "-m", "ecanet", "worker", *location.flags(), *extra,
        "--parent", str(os.getpid()), "--of", str(jobs),
    ]  # fmt: skip
    workers = [
        subprocess.Popen(
            [*command, "--index", str(index)],
            stderr=subprocess.PIPE,
            text=True,
            env=worker_variables(threads) | location.secrets(),
        )
        for index in range(jobs)
    ]
    listeners = [threading.Thread(target=_pass_on, args=[worker, say]) for worker in workers]
    for listener in listeners:
        listener.start()
    try:
        with noted():
            while None in (codes := [worker.poll() for worker in workers]):
                obey()
                time.sleep(0.1)
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        raise
    finally:
        for listener in listeners:
            listener.join()
    if 2 in codes:
        raise UserError("a worker had to stop, its line is above; the same command goes on")


def _pass_on(worker: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    assert worker.stderr is not None
    for line in worker.stderr:
        say(line.rstrip())
