"""The worker processes of this machine: started, supervised, and replaced once if they crash."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ecanet.children import command
from ecanet.environment import available_memory, cpu_cores
from ecanet.errors import UserError, how_it_ended
from ecanet.experiments.study.location import inside
from ecanet.experiments.study.locks import recover_stale_runs
from ecanet.experiments.study.plan import Plan
from ecanet.experiments.study.study import Study
from ecanet.experiments.study.worker import work
from ecanet.signals import deferred_signals, raise_pending
from ecanet.training.device import worker_variables

log = logging.getLogger(__name__)

_USER_ERROR = 2  # exit code of a worker that raised UserError
_ORDERLY = (0, _USER_ERROR, 75, 130)  # exit codes of workers that neither crashed nor were killed


def fitting_jobs(plan: Plan) -> int:
    """Return how many runs of a plan this machine should train at the same time.

    On each GPU as many as :func:`runs_on_a_gpu` says, one if a run has several. On a CPU, several runs on a
    core each finish sooner than one run after the other on all cores, and other load slows them less. Each
    needs as many cores as it has threads, twice the memory of a training step, and 2 GiB for images, Python
    and its libraries; a run on N devices needs N times that.
    """
    settings, device = plan.settings, torch.device(plan.settings.device)
    if device.type != "cpu":
        gpus = torch.cuda.device_count() if settings.device == "cuda" else 1
        runs = gpus // settings.devices
        if device.type == "cuda" and settings.devices == 1 and plan.gpu_share < 1 and runs:
            free, _ = torch.cuda.mem_get_info(device)
            runs *= runs_on_a_gpu(plan.gpu_share, plan.step_bytes, free, cpu_cores() // gpus)
        return max(1, runs)
    # Twice: a step's temporary values add to what it must hold.
    fitting = available_memory() // (2 * plan.step_bytes + 2**31)
    return max(1, min(cpu_cores() // settings.threads, 8, fitting) // settings.devices)


def runs_on_a_gpu(share: float, step_bytes: int, free: int, cores: int) -> int:
    """Return how many runs one GPU should train at the same time.

    As many as it has time for: three if each lets it wait for two thirds of the time. Each needs twice the
    memory of a training step, 3 GiB for images, the CUDA context and workspaces of libraries, and a CPU core,
    which keeps the GPU supplied.

    Args:
        share: of its time that one run takes, above 0 and at most 1.
        step_bytes: that a training step holds in its memory.
        free: bytes of its memory.
        cores: of the CPU, for this GPU.
    """
    return max(1, min(round(1 / share), free // (2 * step_bytes + 3 * 2**30), cores))


def run_to_completion(
    study: Study, threads: int, data: Any, jobs: int, plugin: Collection[str] | None
) -> None:
    """Work on a study until every run has ended, in this process or in ``jobs`` workers.

    Raises:
        UserError: the workers crashed twice without ending any run.
    """
    before, crashed = None, False
    while left := (counts := study.queue.counts()).open:
        if counts == before:
            # No run has ended: all workers crashed, which deserves one more attempt.
            if crashed:
                raise UserError(
                    f"{left} runs are unfinished, as their workers crashed twice: see the lines above; "
                    "run the same command to resume"
                )
            crashed = True
        before = counts
        if jobs == 1:
            work(study, data=data, plugin=plugin)
        else:
            run_workers(study, threads, min(jobs, left), plugin_flags(plugin))


def plugin_flags(plugin: Collection[str] | None) -> list[str]:
    """Return the flags that make a worker trust the plugins that its parent trusts."""
    if plugin is None:
        return ["--trust-plugins"]
    return [f"--plugin={file}" for file in plugin]


@dataclass
class _Worker:
    """A worker's process, its log, and the thread that forwards its standard output."""

    process: subprocess.Popen[str]
    log: Path
    """Standard error: warnings, tracebacks, and the stack when native code crashes."""
    listener: threading.Thread

    def last_line(self) -> str:
        """Return the last line of the log, without the program's name."""
        with suppress(OSError):
            if lines := self.log.read_text(errors="replace").split("\n")[:-1]:
                return lines[-1].removeprefix("ecanet: ")
        return "it printed nothing"

    def tidy_up(self) -> None:
        """Remove the log unless it holds warnings or a traceback."""
        with suppress(OSError):
            code = self.process.returncode
            if code in _ORDERLY and (code or not self.log.stat().st_size):
                self.log.unlink()
            elif code == 0:
                log.info(f"a worker printed warnings: see {self.log}")


def run_workers(study: Study, threads: int, jobs: int, extra: Sequence[str] = ()) -> int:
    """Start ``jobs`` workers on this machine, and wait for them.

    A worker that crashes or is killed is reported with its run, which is requeued, and with its log in the
    study's ``logs/``; the others continue. The logs of all other workers are removed.

    Args:
        study: an open study.
        threads: CPU threads per worker.
        jobs: number of workers.
        extra: further flags of ``ecanet worker``.

    Returns:
        The number of workers that did not exit with 0: runs may be left.

    Raises:
        UserError: raised in a worker.
        Preempted, KeyboardInterrupt: SIGTERM or SIGINT was received; the workers were terminated too.
    """
    flags = [*study.location.flags(), *extra, "--parent", str(os.getpid()), "--of", str(jobs)]
    # With the fault handler, native code that crashes prints its stack.
    variables = worker_variables(threads) | study.location.secrets() | {"PYTHONFAULTHANDLER": "1"}
    logs = inside(study.folder, "logs")
    logs.mkdir(parents=True, exist_ok=True)
    name, refusal, failed = f"{platform.node()}-{os.getpid()}", None, 0
    workers = [
        _start(command("worker", *flags, "--index", str(i)), variables, logs / f"{name}-{i}.log")
        for i in range(jobs)
    ]
    running = list(workers)
    try:
        with deferred_signals():
            while running:
                raise_pending()
                for worker in [w for w in running if w.process.poll() is not None]:
                    running.remove(worker)
                    code = worker.process.returncode
                    if code == _USER_ERROR:
                        refusal = worker.last_line()
                    elif code not in _ORDERLY:
                        _requeue_lost(study, worker)
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
            worker.tidy_up()
    if refusal:
        study.check_not_moved()
        raise UserError(f"a worker stopped: {refusal}")
    return failed


def _start(arguments: list[str], variables: dict[str, str], file: Path) -> _Worker:
    with file.open("w") as errors:
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables
        )

    def forward() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            log.info("%s", line.rstrip())

    listener = threading.Thread(target=forward)
    listener.start()
    return _Worker(process, file, listener)


def _requeue_lost(study: Study, worker: _Worker) -> None:
    """Requeue and report the run of a worker that has crashed."""
    run = study.queue.claimed_by(platform.node(), worker.process.pid)
    recover_stale_runs(study)
    with_run = f" with run {run}, which is requeued" if run else ""
    ended = how_it_ended(worker.process.returncode)
    log.warning("a worker was lost%s: it %s; its log is %s", with_run, ended, worker.log)
