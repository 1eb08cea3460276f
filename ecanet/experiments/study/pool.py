"""The workers of this machine: as many as fit, until every run of a study has ended."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

from ecanet.attention.registry import PLUGIN_PREFIX, attention_home
from ecanet.children import command
from ecanet.data.memory import available_memory
from ecanet.errors import UserError, how_it_ended
from ecanet.experiments.study.location import Location, inside
from ecanet.experiments.study.plan import Plan
from ecanet.experiments.study.study import (
    Study,
    bury_dead,
    create_study,
    extend_plan,
    is_study,
    load_study,
)
from ecanet.experiments.study.worker import work
from ecanet.files import lock_of, sweep
from ecanet.models.factory import model_home
from ecanet.plugins import check_trust
from ecanet.record import Cost
from ecanet.signals import noted, obey
from ecanet.training.device import cpu_cores, environment, resolve_device, worker_variables

# Exit codes of a worker that stopped for a reason of the user's, and of all that ended in good order.
_REFUSED = 2
_IN_ORDER = (0, _REFUSED, 75, 130)


def run_study(
    study: Study,
    data: Any,
    jobs: int,
    *,
    plugin: Collection[str] | None = (),
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
        plugin: plugins that the study may name, as they are programs; None: any.
        watching: entered when the queue has been filled, and left when all runs have ended.
        progress: show a progress bar for each run, if one job works.
        say: called with each line of news.

    Raises:
        UserError: workers crash without ending any run, or another process works on the folder.
    """
    plan = study.plan()
    try:
        with lock_of(study.folder):
            for folder in (study.folder, study.report_folder()):
                sweep(folder)
            try:
                study.queue.enqueue(plan.runs())
                with watching or nullcontext():
                    _run_all(study, plan.settings.threads, data, jobs, plugin, progress, say)
                    if study.queue.enqueue(plan.follow_up(study), retry=False):
                        _run_all(study, plan.settings.threads, data, jobs, plugin, progress, say)
            finally:
                study.check_there()
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
    trust_plugins: bool = False,
) -> tuple[Study, int]:
    """Make the study of a plan, or extend the one that is there.

    Args:
        location: of the study.
        plan: what it is to run.
        measure: for a new study, the costs of the plan's attention modules, as far as they are to be
            told, and the bytes of the largest training step.
        jobs: processes that train at the same time on this machine.
        trust_plugins: whether the study that is there may name plugins that the plan does not.

    Returns:
        The study, and ``jobs``, by default as many as fit.

    Raises:
        UserError: the study that is there is another one, or names plugins that are not trusted, or
            workers would not know a module or model.
    """
    if is_study(location):
        study = load_study(location)
        there = study.plan()
        check_trust(there.plugin, None if trust_plugins else plan.plugin, "the study")
        jobs = jobs or fitting_jobs(there)
        _check_workers_know(plan, [*there.plugin, *plan.plugin], jobs)
        extend_plan(study, plan)
        return study, jobs
    costs, plan.step_bytes = measure()
    jobs = jobs or fitting_jobs(plan)
    _check_workers_know(plan, plan.plugin, jobs)
    create_study(location, plan, costs, environment(resolve_device(plan.settings.device)))
    study = load_study(location)
    # Another process may have created it, meanwhile.
    extend_plan(study, plan)
    return study, jobs


def _check_workers_know(plan: Plan, plugin: list[str], jobs: int) -> None:
    """Refuse modules and models that only this process knows, where others are to train them.

    Raises:
        UserError: the first of them.
    """
    if jobs == 1:
        return
    attention, models = plan.networks()
    homes = {f"the attention module {spec}": attention_home(spec) for spec in attention}
    homes |= {f"the model {name}": model_home(name) for name in models}
    for what, home in homes.items():
        file = getattr(sys.modules.get(home), "__file__", None)
        if home.split(".")[0] in ("ecanet", "timm") or file in plugin:
            continue
        # What a plugin imports, workers import with it.
        if home != "__main__" and plugin and not home.startswith(PLUGIN_PREFIX):
            continue
        where = "this script or notebook" if home == "__main__" else f"the Python module {home}"
        raise UserError(
            f"{what} is registered in {where}, which the {jobs} workers do not import: put it into a "
            "file of its own and give that as plugin=[FILE], or train in this process with jobs=1"
        )


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
    plugin: Collection[str] | None,
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
                    f"{left} runs have not ended, as their workers crashed twice: see the lines above; "
                    "the same command goes on"
                )
            again = True
        before = left
        if jobs == 1:
            work(study, data=data, plugin=plugin, progress=progress, say=say)
        else:
            run_workers(study, threads, min(jobs, left), say, plugin_flags(plugin))


def plugin_flags(plugin: Collection[str] | None) -> list[str]:
    """Return the flags by which a worker trusts the plugins that its parent does."""
    if plugin is None:
        return ["--trust-plugins"]
    return [f"--plugin={file}" for file in plugin]


@dataclass
class _Worker:
    """A worker's process, and where its news and everything else that it prints go."""

    process: subprocess.Popen[str]
    log: Path
    """Standard error: warnings, tracebacks, where native code has crashed."""
    listener: threading.Thread

    def last_line(self) -> str:
        """Return the last line of the log, without the program's name."""
        with suppress(OSError):
            if lines := self.log.read_text(errors="replace").split("\n")[:-1]:
                return lines[-1].removeprefix("ecanet: ")
        return "it printed nothing"

    def tidy_up(self, say: Callable[[str], None]) -> None:
        """Remove the log unless there is something to see in it."""
        with suppress(OSError):
            code = self.process.returncode
            if code in _IN_ORDER and (code or not self.log.stat().st_size):
                self.log.unlink()
            elif code == 0:
                say(f"a worker has printed warnings: see {self.log}")


def run_workers(
    study: Study,
    threads: int,
    jobs: int,
    say: Callable[[str], None],
    extra: Sequence[str] = (),
) -> int:
    """Start so many workers on this machine, and wait for them.

    A worker that crashes or is killed is named with its run, which goes back into the queue, and with
    its log in the study's ``logs/``; the others go on. Logs of workers that ended in good order are
    removed.

    Args:
        study: opened.
        threads: CPU threads of each.
        jobs: how many.
        say: gets the lines they print.
        extra: further flags of ``ecanet worker``.

    Returns:
        How many workers did not end well: runs may be left.

    Raises:
        UserError: one had to stop for a reason that the user can put right.
        Preempted, KeyboardInterrupt: SIGTERM or Ctrl-C came; the workers were told and have ended.
    """
    of_all = [*study.location.flags(), *extra, "--parent", str(os.getpid()), "--of", str(jobs)]
    # Native code that crashes prints where.
    variables = {
        **worker_variables(threads), **study.location.secrets(), "PYTHONFAULTHANDLER": "1",
    }  # fmt: skip
    logs = inside(study.folder, "logs")
    logs.mkdir(parents=True, exist_ok=True)
    workers = [
        _start(
            command("worker", *of_all, "--index", str(index)),
            variables,
            logs / f"{platform.node()}-{os.getpid()}-{index}.log",
            say,
        )
        for index in range(jobs)
    ]
    refusal, failed = None, 0
    running = list(workers)
    try:
        with noted():
            while running:
                obey()
                for worker in [w for w in running if w.process.poll() is not None]:
                    running.remove(worker)
                    code = worker.process.returncode
                    if code == _REFUSED:
                        refusal = worker.last_line()
                    elif code not in _IN_ORDER:
                        say(_loss(study, worker))
                    failed += code != 0
                time.sleep(0.1)
    except BaseException:
        for worker in running:
            worker.process.terminate()
        for worker in running:
            worker.process.wait()
        raise
    finally:
        for worker in workers:
            worker.listener.join()
            worker.tidy_up(say)
    if refusal:
        study.check_there()
        raise UserError(f"a worker had to stop: {refusal}")
    return failed


def _start(
    arguments: list[str], variables: dict[str, str], log: Path, say: Callable[[str], None]
) -> _Worker:
    with log.open("w") as errors:
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables
        )

    def pass_on() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            say(line.rstrip())

    listener = threading.Thread(target=pass_on)
    listener.start()
    return _Worker(process, log, listener)


def _loss(study: Study, worker: _Worker) -> str:
    """Put the run of a worker that has crashed back into the queue, and return the line to say."""
    process = worker.process
    run = study.queue.taken_by(platform.node(), process.pid)
    bury_dead(study)
    with_run = f" with the run {run}, which goes back into the queue" if run else ""
    return f"a worker was lost{with_run}: it {how_it_ended(process.returncode)}; its log is {worker.log}"
