"""Open or extend a study, work on it, and write its report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from ecanet.activity import activity
from ecanet.attention.registry import PLUGIN_PREFIX, attention_home, written_from_here
from ecanet.attention.source import source_to_take_along
from ecanet.data.thumbnails import thumbnail
from ecanet.environment import environment
from ecanet.errors import UserError
from ecanet.experiments.analysis import compare as compare_analysis
from ecanet.experiments.analysis import sweep as sweep_analysis
from ecanet.experiments.analysis.adequacy import baseline_adequacy
from ecanet.experiments.analysis.notices import notices
from ecanet.experiments.analysis.recommendation import closing_lines, recommend
from ecanet.experiments.analysis.statistics import study_statistics
from ecanet.experiments.report import compare as compare_report
from ecanet.experiments.report import sweep as sweep_report
from ecanet.experiments.report.explain import read_explanation
from ecanet.experiments.report.page import PaperFormat, Report
from ecanet.experiments.study.location import Location, inside, locate
from ecanet.experiments.study.plan import Plan
from ecanet.experiments.study.pool import fitting_jobs, run_to_completion
from ecanet.experiments.study.queue import Run
from ecanet.experiments.study.study import Study, create_study, extend_plan, is_study, load_study
from ecanet.experiments.study.weights import prune_weights
from ecanet.experiments.study.worker import enqueue_more
from ecanet.files import lock_of, sweep, write_atomic
from ecanet.models.factory import model_home
from ecanet.plugins import check_trust
from ecanet.record import Cost
from ecanet.training.device import resolve_device
from ecanet.training.train import task_of

log = logging.getLogger(__name__)


def open_study(
    location: Location,
    plan: Plan,
    measure: Callable[[], tuple[list[Cost], int]],
    *,
    jobs: int | None,
    trust_plugins: bool = False,
) -> tuple[Study, int]:
    """Create the study of a plan, or extend an existing one.

    Args:
        location: the study's location.
        plan: the runs that the study shall have.
        measure: called for a new study; returns the costs of the plan's attention modules that are to be
            reported, and the bytes that the largest training step needs.
        jobs: processes that train at the same time on this machine; None: as many as fit.
        trust_plugins: whether an existing study may load plugins that the plan does not name.

    Returns:
        The study, and the number of jobs.

    Raises:
        UserError: the existing study has other settings, or names plugins that are not trusted; or workers
            could not import an attention module or model.
    """
    taken_along = _modules_of_main(plan, location)
    plan.plugin = list(dict.fromkeys([*plan.plugin, *map(str, taken_along.values())]))
    if is_study(location):
        study = load_study(location)
        there = study.plan()
        check_trust(there.programs(), None if trust_plugins else plan.programs(), "the study")
        jobs = jobs or fitting_jobs(there)
        check_workers_can_import(plan, [*there.plugin, *plan.plugin], jobs)
        _write_modules(taken_along)
        extend_plan(study, plan)
        return study, jobs
    costs, plan.step_bytes = measure()
    plan.gpu_share = max((cost.gpu_share for cost in costs if cost.gpu_share), default=1.0)
    jobs = jobs or fitting_jobs(plan)
    check_workers_can_import(plan, plan.plugin, jobs)
    create_study(location, plan, costs, environment(resolve_device(plan.settings.device)))
    study = load_study(location)
    _write_modules(taken_along)
    # Another process may have created it in the meantime.
    extend_plan(study, plan)
    return study, jobs


def _modules_of_main(plan: Plan, location: Location) -> dict[str, Path]:
    """Return the attention modules that a notebook or script defines, and their files in the study.

    Raises:
        UserError: the study has another module of that name.
    """
    found: dict[str, Path] = {}
    for spec in plan.networks()[0]:
        name = spec.partition(":")[0]
        source = source_to_take_along(spec)
        if source is None:
            if attention_home(spec) == "__main__":
                log.info(
                    "%s is defined only in this process: a change before the study is resumed goes "
                    "unnoticed. Put it into a file and give plugin=[FILE], so that changes are detected",
                    name,
                )
            continue
        file = inside(location.folder, "plugins", f"{name}.py").resolve()
        if file.is_file() and file.read_text() != source:
            raise UserError(
                f"{name} has changed since {location} was begun with it ({file} has the old source): "
                "register it under another name, or choose another --out"
            )
        found[name] = file
    return found


def _write_modules(files: Mapping[str, Path]) -> None:
    """Write what :func:`_modules_of_main` has found, for the study's workers."""
    for name, file in files.items():
        write_atomic(file, source_to_take_along(name) or "")
        written_from_here(file, name)


def run_study(
    study: Study,
    data: Any,
    jobs: int,
    *,
    plugin: Collection[str] | None = (),
    watching: AbstractContextManager[Any] | None = None,
) -> Path:
    """Work on a study until every run has ended, and write its report.

    Runs that failed in an earlier call are retried. Returns the path of the report's page.

    Args:
        study: an open study.
        data: the study's data.
        jobs: processes that train at the same time on this machine.
        plugin: plugins that the study may load, as they are programs; None: any.
        watching: entered once the runs are queued, and left when all have ended.

    Raises:
        UserError: workers crash without ending any run, or another process works on the folder.
    """
    plan = study.plan()
    threads = plan.settings.threads
    try:
        with lock_of(study.folder):
            sweep(study.folder)
            sweep(study.report_folder())
            try:
                failed = [Run(attributes["run"]) for attributes in study.failed_runs()]
                # Seeds that were added on the way are not among the plan's own.
                study.queue.enqueue(
                    list({run.name: run for run in [*failed, *plan.runs()]}.values())
                )
                runs = activity("runs", studies=[study], at_once=True)
                with runs, watching or nullcontext():
                    enqueue_more(study)
                    run_to_completion(study, threads, data, jobs, plugin)
                    if changed := plan.follow_up(study.read_trials()):
                        study.queue.change_study("plan", lambda there: {**there, **changed})
                        if study.queue.enqueue(replace(plan, **changed).runs(), retry=False):
                            run_to_completion(study, threads, data, jobs, plugin)
                prune_weights(study)
            finally:
                study.check_not_moved()
                with activity("writing the report"):
                    page = write_report(study, data=data)
    except filelock.Timeout:
        raise UserError(
            f"another process works on {study.folder}: wait for it, or choose another --out"
        ) from None
    return page


def check_workers_can_import(plan: Plan, plugin: list[str], jobs: int) -> None:
    """Refuse modules and models that are registered in this process only, if worker processes train them.

    Raises:
        UserError: names the first of them.
    """
    if jobs == 1:
        return
    attention, models = plan.networks()
    homes = {f"the attention module {spec}": attention_home(spec) for spec in attention}
    homes |= {f"the model {name}": model_home(name) for name in models}
    for what, home in homes.items():
        file = getattr(sys.modules.get(home), "__file__", None)
        known = home.split(".")[0] in ("ecanet", "timm") or file in plugin
        # A study takes along what its notebook or script defines.
        spec = what.removeprefix("the attention module ")
        known = known or (spec != what and source_to_take_along(spec) is not None)
        # Workers load the plugins too, and so import what these import.
        if known or (home != "__main__" and plugin and not home.startswith(PLUGIN_PREFIX)):
            continue
        where = "this script or notebook" if home == "__main__" else f"the Python module {home}"
        raise UserError(
            f"{what} is registered in {where}, which the {jobs} workers do not import: put it into a "
            "file of its own and give that as plugin=[FILE], or train in this process with jobs=1"
        )


def write_report(study: Study, out: Path | None = None, data: Any = None) -> Path:
    """Write a study's report from what is there, and return the path of its page.

    Args:
        study: opened.
        out: folder of the report; by default ``report`` in the study's.
        data: the study's data, from which the page's images are; by default it is read if it is still there.
    """
    out = out or study.report_folder()
    return _make_report(study, out, data).write(out)[-1]


def _make_report(
    study: Study, out: Path, data: Any = None, clean: Callable[[Any], Any] | None = None
) -> Report:
    plan = study.plan()
    summary: Any = (sweep_analysis if plan.kind == "sweep" else compare_analysis).summarise(study)
    if clean:
        summary = clean(summary)
    if plan.kind == "sweep":
        return sweep_report.make_report(summary, out)
    return compare_report.make_report(
        summary,
        lambda names: _thumbnails(plan, data, names),
        read_explanation(out),
        None if clean else (study.folder, out),
    )


def write_report_for_others(
    study: Study, out: Path, clean: Callable[[Any], Any], formats: Collection[PaperFormat] = ()
) -> None:
    """Write the report of a study without the folders that its commands would name.

    Args:
        study: opened.
        out: folder that gets the report.
        clean: gets the summary, and returns the one that is written.
        formats: of the files for papers.
    """
    _make_report(study, out, clean=clean).write(out, formats)


def _thumbnails(plan: Plan, data: Any, names: Iterable[str]) -> dict[str, str]:
    """Return thumbnails of test images, by name: of those that are still there, and of the same data."""
    try:
        data = data or task_of(plan.settings).read(plan.settings)
    except UserError as error:
        log.info("the report shows no images: %s", error)
        return {}
    if data.fingerprint != plan.data_fingerprint:
        log.info("the report shows no images: %s has changed", plan.settings.data)
        return {}
    split = "test" if data.test is not None else "val"
    index = {name: i for i, name in enumerate(data.names(split))}
    found = {}
    for name in names:
        with suppress(KeyError, ValueError, UserError):
            found[name] = thumbnail(data.image(split, index[name]))
    return found


def report(
    folder: str | Path | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    formats: Collection[PaperFormat] | None = (),
) -> list[Path]:
    """Write the report of a study, finished or not, and what papers take from it.

    Args:
        folder: of the study.
        storage: address of the study's database, if the folder does not name it.
        name: of the study in that database; by default the folder's.
        out: folder that gets the report; by default ``report/`` in the study's.
        formats: of the files for papers; None: all that the study has.

    Returns:
        The paths of the files for papers, and last that of the page.

    Raises:
        UserError: there is no such study, it has nothing in one of the formats, or the folder cannot be
            written.
    """
    study = load_study(locate(folder, storage, name), "read")
    out = Path(out) if out else study.report_folder()
    made = _make_report(study, out)
    written = made.write(out, formats)
    if isinstance(made.summary, compare_analysis.StudySummary):
        log_answer(study, made.summary, out)
    return written


def log_answer(study: Study, summary: compare_analysis.StudySummary, report: Path) -> None:
    """Log what limits a comparison, a verdict per module, what they come to, and the next command.

    Args:
        study: opened.
        summary: of the study.
        report: folder of its report.
    """
    statistics = study_statistics(summary)
    adequacy = baseline_adequacy(summary)
    found = recommend(summary, statistics, adequacy).at(study.folder, report)
    warned = notices(summary, statistics, adequacy)
    for line in [*warned, *closing_lines(statistics, found)]:
        log.info("%s", line)
    if found.command:
        log.info("next: %s", found.command)
