"""The main job: attention modules x seeds on one network and one data set, to a report."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import torch
from torch import nn

from ecanet.attention import create_attention, load_plugin
from ecanet.config import RunSettings, StudySettings, with_lr
from ecanet.data import Data
from ecanet.data.memory import available_memory, keep_freed_memory
from ecanet.errors import UserError
from ecanet.experiments.report import write_report
from ecanet.experiments.study import (
    Plan,
    check_folder,
    create_study,
    enqueue_missing,
    extend_plan,
    is_study,
    load_study,
    summarise,
)
from ecanet.experiments.summary import StudySummary
from ecanet.experiments.worker import read_data, work
from ecanet.profiling import count_macs, measure_costs
from ecanet.record import Cost
from ecanet.training.device import (
    compile_pays,
    cpu_cores,
    environment,
    resolve_device,
    resolve_precision,
    worker_variables,
)
from ecanet.training.run import build_model


def compare(
    out: str | Path,
    settings: RunSettings | None = None,
    study: StudySettings | None = None,
    *,
    jobs: int | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> StudySummary:
    """Train every attention module over every seed, and write the report to ``out/report``.

    Called again with the same arguments it goes on where it stopped; with more seeds or modules it
    adds their runs.

    Args:
        out: the study's folder; made if missing.
        settings: what all runs share.
        study: which modules and seeds.
        jobs: processes that train at the same time on this machine; by default one a GPU, or one
            a CPU core (at most 8) as far as memory reaches.
        progress: show a progress bar for each run, if one job works.
        say: called with each line of news.

    Returns:
        What the study has found: records, costs, failures.

    Raises:
        UserError: anything the caller can put right; nothing half-written is left behind.
    """
    out, settings, study = Path(out), settings or RunSettings(), study or StudySettings()
    check_settings(settings, study, jobs)
    check_folder(out)
    say(f"reading {settings.data}")
    data = read_data(settings)
    if data.skipped:
        say(f"left out {len(data.skipped)} images that cannot be read, {data.skipped[0]} first")
    with single_thread():
        settings = resolve(settings, study.attention, data)
    plan = Plan(
        attention=list(study.attention),
        seeds=list(range(study.first_seed, study.first_seed + study.seeds)),
        plugin=[str(Path(plugin).resolve()) for plugin in study.plugin],
        settings=settings,
        threads=1,
        data_fingerprint=data.fingerprint,
        skipped_images=list(data.skipped),
    )
    if is_study(out):
        plan = extend_plan(load_study(out), plan)
        jobs = jobs or fitting_jobs(settings, summarise(out).costs)
    else:
        say(f"measuring the cost of {', '.join(plan.attention)}")
        with single_thread():
            costs = measure(settings, plan.attention, data)
        jobs = jobs or fitting_jobs(settings, costs)
        plan.threads = max(1, cpu_cores() // jobs)
        create_study(out, plan, costs, environment(resolve_device(settings.device)))
    try:
        with filelock.FileLock(out / ".lock", blocking=False):
            _run_all(out, plan, data, jobs, progress, say)
    except filelock.Timeout:
        raise UserError(
            f"another process works on {out}: wait for it, or choose another --out"
        ) from None
    finally:
        report(out)
    return summarise(out)


def report(folder: str | Path) -> Path:
    """Write the report of the study in ``folder``, finished or not, and return its page's path.

    Raises:
        UserError: the folder holds no study.
    """
    return write_report(summarise(Path(folder)), Path(folder) / "report")


def check_settings(settings: RunSettings, study: StudySettings, jobs: int | None) -> None:
    """Refuse what cannot be run, before anything is read or written.

    Raises:
        UserError: one line that names the setting and what it takes.
    """
    least = {
        "--seeds": study.seeds,
        "--jobs": 1 if jobs is None else jobs,
        "--epochs": settings.epochs,
        "--batch_size": settings.batch_size,
    }
    for flag, value in least.items():
        if value < 1:
            raise UserError(f"{flag} {value}: give a whole number from 1")
    if study.first_seed < 0:
        raise UserError(f"--first_seed {study.first_seed}: give a whole number from 0")
    if settings.optimizer.lr is not None and not settings.optimizer.lr > 0:
        raise UserError(f"--optimizer.lr {settings.optimizer.lr}: give a number above 0")
    if not 0 <= settings.label_smoothing < 1:
        raise UserError(f"--label_smoothing {settings.label_smoothing}: give a number from 0 to 1")
    if settings.project and "wandb" not in settings.loggers:
        raise UserError("--project names a W&B project: add --loggers '[wandb]'")
    if not study.attention:
        raise UserError("--attention is empty: name at least one module, such as none,eca")
    twice = {name for name in study.attention if study.attention.count(name) > 1}
    if twice:
        raise UserError(f"--attention names {', '.join(sorted(twice))} more than once")
    for plugin in study.plugin:
        try:
            load_plugin(plugin)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from None
    for attention in study.attention:
        try:
            create_attention(attention, 64)
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from None
        except Exception as error:
            raise UserError(f"attention module {attention} cannot be made: {error!r}") from None


def resolve(settings: RunSettings, attention: list[str], data: Data) -> RunSettings:
    """Return settings in which every ``auto`` has become what it stands for on this machine.

    Each module is built into the model and run once, forward and backward.

    Raises:
        UserError: the model does not exist, a module fails in it, or the machine lacks what was
            asked for.
    """
    if settings.batch_size > len(data.train.labels):
        raise UserError(
            f"--batch_size {settings.batch_size} is more than the {len(data.train.labels)} images "
            "of the training split: make it smaller"
        )
    device = resolve_device(settings.device)
    models = {name: _try(settings, name, data) for name in attention}
    macs = count_macs(models[attention[0]], data.image_size, data.channels)
    pays = compile_pays(macs, len(data.train.labels) * settings.epochs, device)
    return dataclasses.replace(
        settings,
        data=str(Path(settings.data).resolve()) if Path(settings.data).is_dir() else settings.data,
        image_size=data.image_size,
        optimizer=with_lr(settings.optimizer, settings.batch_size),
        device=str(device),
        precision=resolve_precision(settings.precision, device),  # type: ignore[arg-type]
        compile={"auto": "on" if pays else "off"}.get(settings.compile, settings.compile),  # type: ignore[arg-type]
    )


def measure(settings: RunSettings, attention: list[str], data: Data) -> list[Cost]:
    """Measure what each module costs in the model, on this machine, under these settings.

    On a CPU, on the threads torch has been given; :func:`compare` gives one, as its runs have by
    default and because several threads' speed collapses as soon as anything else wants a core.
    """
    return measure_costs(
        {name: lambda name=name: build_model(settings, name, data) for name in attention},  # type: ignore[misc]
        image_size=data.image_size,
        in_chans=data.channels,
        num_classes=len(data.classes),
        batch_size=settings.batch_size,
        device=resolve_device(settings.device),
        precision=settings.precision,
        channels_last=settings.channels_last,
        compile=settings.compile == "on",
    )


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch work as in one of several runs side by side: on one thread of the CPU."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fitting_jobs(settings: RunSettings, costs: list[Cost]) -> int:
    """Return how many runs this machine should train at the same time, from what each costs.

    A GPU takes one run. On a CPU, runs side by side on a core each get more done than one run
    spread over all cores, and suffer less from what else the machine does; each gets the memory of
    a training step, and two GB for the images, Python and its libraries.
    """
    if not settings.device.startswith("cpu"):
        return max(1, torch.cuda.device_count()) if settings.device == "cuda" else 1
    step = max(cost.train_peak_bytes or 0 for cost in costs)
    # A step's temporary values come on top of what it must hold.
    fitting = (available_memory() or 2**33) // (2 * step + 2**31)
    return max(1, min(cpu_cores(), 8, fitting))


def _try(settings: RunSettings, attention: str, data: Data) -> nn.Module:
    try:
        model = build_model(settings, attention, data)
        images = torch.randn(2, data.channels, data.image_size, data.image_size)
        model(images).sum().backward()
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(
            f"attention module {attention} fails in {settings.model} on images of "
            f"{data.image_size} pixels: {type(error).__name__}: {message}"
        ) from None
    return model


def _run_all(
    out: Path, plan: Plan, data: Data, jobs: int, progress: bool, say: Callable[[str], None]
) -> None:
    """Work until every run of the plan has ended; a run that a dead worker left is taken up again.

    Raises:
        UserError: workers crash without ending any run, or runs are in the hands of others.
    """
    before, again = -1, False
    while left := enqueue_missing(load_study(out), out):
        if left == before:
            # A whole round ended none of them: they fail each time, or the workers crashed, which
            # is worth a second try.
            if again or not _open_runs(out, plan):
                break
            again = True
        before = left
        if jobs == 1:
            work(out, data=data, progress=progress, say=say)
        else:
            _run_workers(out, plan.threads, min(jobs, left), say)
    if open_runs := _open_runs(out, plan):
        raise UserError(
            f"{open_runs} runs have not ended: workers started elsewhere have them in hand, or a "
            "worker has crashed, its last lines are above; the same command goes on"
        )


def _open_runs(out: Path, plan: Plan) -> int:
    """How many runs have neither ended nor failed for a reason of their own."""
    found = summarise(out)
    return len(plan.runs()) - len(found.records) - len(found.failed)


def _run_workers(out: Path, threads: int, jobs: int, say: Callable[[str], None]) -> None:
    command = [sys.executable, "-m", "ecanet", "worker", str(out), "--parent", str(os.getpid())]
    workers = [
        subprocess.Popen(
            [*command, "--jobs", str(jobs), "--index", str(index)],
            stderr=subprocess.PIPE,
            text=True,
            env=worker_variables(threads),
        )
        for index in range(jobs)
    ]
    listeners = [threading.Thread(target=_pass_on, args=[worker, say]) for worker in workers]
    for listener in listeners:
        listener.start()
    try:
        codes = [worker.wait() for worker in workers]
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
