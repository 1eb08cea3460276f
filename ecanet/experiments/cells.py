"""One comparison over several networks and data sets: a cell each, and one report above them.

A cell is an ordinary study in a folder of its own, ``OUT/CELL/``. ``OUT/cells.json`` lists the cells, and
``OUT/report/`` holds the report over all of them.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from ecanet.activity import activity
from ecanet.config import StudySettings, TrainingSettings
from ecanet.errors import UserError, counted, prefixed
from ecanet.experiments import run
from ecanet.experiments.analysis import compare as compare_analysis
from ecanet.experiments.analysis.cells import CellsSummary, CellSummary, summarise_cells
from ecanet.experiments.compare import open_comparison, plan_comparison, run_comparison
from ecanet.experiments.live import Watch, shown
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.report.cells import closing_lines, make_cells_report, write_cells_report
from ecanet.experiments.report.page import PaperFormat
from ecanet.experiments.result import CellsResult, ComparisonResult, SweepResult, result_of
from ecanet.experiments.study.cells import (
    Cell,
    cell_studies,
    has_cells,
    locate_cell,
    read_cells,
    short_names,
    write_cells,
)
from ecanet.experiments.study.location import Location, inside, locate, valid_run_name
from ecanet.experiments.study.pool import fitting_jobs
from ecanet.experiments.study.study import Study, check_fits, check_folder, is_study, load_study
from ecanet.files import lock_of, sweep
from ecanet.recipe_file import settings_class, with_settings
from ecanet.training.train import task_of, warnings_only

log = logging.getLogger(__name__)


def compare_cells(
    out: str | Path,
    settings: TrainingSettings | None = None,
    study: StudySettings | None = None,
    *,
    models: Sequence[str | None] = (),
    data: Sequence[str] = (),
    storage: str | None = None,
    name: str | None = None,
    jobs: int | None = None,
    trust_plugins: bool = False,
    progress: bool = True,
    **keywords: Any,
) -> CellsResult:
    """Compare attention modules in each of several networks on each of several data sets.

    Every cell is a comparison as :func:`ecanet.compare` makes it, in ``out/CELL``; the report over all is in
    ``out/report``. All are checked and created before the first is trained. Called again it resumes, or
    adds seeds, modules, networks and data sets.

    Args:
        out: folder of the comparison; made if missing.
        settings: what all runs share, for classifiers (the default) or detectors.
        study: which modules and seeds.
        models: networks; by default that of ``settings``.
        data: data sets; by default that of ``settings``.
        storage: address of a PostgreSQL database that is to hold the studies, for several machines.
        name: what the studies' names in that database begin with; by default the folder's.
        jobs: processes that train at the same time on this machine, as in :func:`ecanet.compare`.
        trust_plugins: whether studies that are there may name plugins that ``settings`` does not.
        progress: show what happens, as in :func:`ecanet.compare`.
        keywords: settings by name, as in :func:`ecanet.compare`.

    Returns:
        What each cell and all of them together have come to.

    Raises:
        UserError: anything the caller can put right; nothing half-written is left behind.
    """
    own: Any
    study, own = with_settings(
        keywords, study or StudySettings(), settings or settings_class(keywords), skip={"seed"}
    )
    with shown(progress) as watch:
        return _compare(
            Path(out),
            own,
            study,
            list(models) or [own.model],
            list(data) or [own.data],
            storage,
            name,
            jobs,
            trust_plugins,
            watch,
        )


def _compare(
    out: Path,
    settings: TrainingSettings,
    study: StudySettings,
    models: list[str | None],
    data: list[str],
    storage: str | None,
    name: str | None,
    jobs: int | None,
    trust_plugins: bool,
    watch: Watch | None,
) -> CellsResult:
    """Do what :func:`compare_cells` says, with its arguments."""
    there = _check_folder(out)
    plans = _plans(settings, study, models, data, jobs)
    cells = _named([(plan.settings.model, plan.settings.data) for plan in plans], there)
    where = [locate_cell(out, cell, storage, name) for cell in cells]
    for location, plan in zip(where, plans, strict=True):
        _check_cell(location, plan, jobs)
    rest = [locate_cell(out, cell, storage, name) for cell in there if cell not in cells]
    _check_together([*zip(where, plans, strict=True)], rest)
    made = [folder for folder in [out, *(one.folder for one in where)] if not folder.exists()]
    try:
        with lock_of(out):
            sweep(out)
            write_cells(out, dict.fromkeys([*there, *cells]))
            try:
                studies = [
                    _open(location, plan, jobs, trust_plugins)
                    for location, plan in zip(where, plans, strict=True)
                ]
            except UserError:
                write_cells(out, there)
                for folder in made:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            # All at once: workers on other machines need not wait for the cells before.
            for opened, _ in studies:
                opened.queue.enqueue(opened.plan().runs())
            try:
                with activity("cells", studies=[opened for opened, _ in studies], at_once=True):
                    for i, ((opened, own_jobs), plan) in enumerate(
                        zip(studies, plans, strict=True)
                    ):
                        log.info("cell %d of %d: %s", i + 1, len(cells), opened.folder)
                        trusted = None if trust_plugins else plan.plugin
                        with prefixed(f"{opened.folder.name}: "):
                            run_comparison(
                                opened, _read(plan), own_jobs, plugin=trusted, watch=watch
                            )
            finally:
                summary = _result(out, storage, name)
                write_cells_report(summary, out / "report", out)
    except filelock.Timeout:
        raise UserError(
            f"another process works on {out}: wait for it, or choose another --out"
        ) from None
    _log(summary)
    return summary


def _open(
    location: Location, plan: ComparePlan, jobs: int | None, trust_plugins: bool
) -> tuple[Study, int]:
    name = location.folder.name
    log.info("%s: %s", name, plan.settings.title())
    with prefixed(f"{name}: "):
        return open_comparison(location, plan, _read(plan), jobs=jobs, trust_plugins=trust_plugins)


def _log(summary: CellsSummary) -> None:
    for line in closing_lines(summary):
        log.info("%s", line)


def _check_folder(out: Path) -> list[Cell]:
    """Return the cells that are there, of a folder that may hold several."""
    if has_cells(out):
        return read_cells(out)
    check_folder(Location(out))
    if any((out / name).exists() for name in ("study.db", "study.json")):
        raise UserError(
            f"{out} holds a study of one network on one data set: choose another --out for several"
        )
    return []


def _plans(
    settings: TrainingSettings,
    study: StudySettings | None,
    models: list[str | None],
    data: list[str],
    jobs: int | None,
) -> list[ComparePlan]:
    """Return the plan of every cell, data set by data set; nothing is written.

    Raises:
        UserError: one of them cannot be compared on, or two are the same.
    """
    for flag, names in (("model", list(map(str, models))), ("data", data)):
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"--{flag} names {', '.join(sorted(twice))} more than once")
    plans: dict[tuple[str, str], ComparePlan] = {}
    several = len(models) * len(data) > 1
    for images in data:
        for model in models:
            own = replace(settings, model=model, data=images)  # type: ignore[call-arg]
            with prefixed(f"{model or 'the default network'} on {images}: " if several else ""):
                plan, _ = plan_comparison(own, study, jobs=jobs)
                pair = (plan.settings.model, plan.settings.data)
                if pair in plans:
                    raise UserError("it is named more than once")
                plans[pair] = plan
    return list(plans.values())


def _read(plan: ComparePlan) -> Any:
    """Read the data of a cell again: all data sets at once may not fit into memory."""
    with warnings_only():
        return task_of(plan.settings).read(plan.settings)


def _check_cell(location: Location, plan: ComparePlan, jobs: int | None) -> None:
    """Refuse a cell whose folder is taken, or whose study there is another."""
    check_folder(location)
    run.check_workers_can_import(plan, plan.plugin, jobs or fitting_jobs(plan))
    if is_study(location):
        with prefixed(f"{location.folder.name}: "):
            check_fits(load_study(location, "read"), plan)


def _check_together(wanted: list[tuple[Location, ComparePlan]], rest: list[Location]) -> None:
    """Refuse cells that cannot be judged together: other baselines or metrics, or the same images twice."""
    plans: dict[str, Any] = {}
    new = {location.folder.name: plan for location, plan in wanted}
    for location in [*rest, *(location for location, _ in wanted)]:
        name = location.folder.name
        if is_study(location):
            plans[name] = load_study(location, "read").plan()
        elif name in new:
            plans[name] = new[name]
    # Those that are there set the rule.
    order = sorted(plans, key=lambda name: name in new and plans[name] is new[name])
    first = plans[order[0]]
    seen: dict[tuple[str, str], str] = {}
    for name in order:
        plan = plans[name]
        for what, own, other in (
            ("baseline", plan.attention[0], first.attention[0]),
            ("metric", plan.metric, first.metric),
        ):
            if own != other:
                raise UserError(
                    f"the {what} of {name} is {own}, and that of {order[0]} {other}: cells can "
                    f"only be judged together if they share it"
                )
        same = seen.setdefault((plan.settings.model, plan.data_fingerprint), name)
        if same != name:
            raise UserError(
                f"{same} and {name} are the same network on the same images: leave one out"
            )


def _named(pairs: Iterable[tuple[str, str]], there: Sequence[Cell]) -> list[Cell]:
    """Return a cell for each network and data set: the one that is there, or one with a free name."""
    known, pairs = {(cell.model, cell.data): cell for cell in there}, list(pairs)
    models = short_names([model for model, _ in [*pairs, *known]])
    data = short_names([data for _, data in [*pairs, *known]])
    taken = {cell.name.casefold() for cell in there}
    cells = []
    for pair in pairs:
        if pair not in known:
            base = re.sub(r"[^A-Za-z0-9_.=]+", "-", f"{models[pair[0]]}-{data[pair[1]]}").strip(
                "-."
            )
            name, number = base, 1
            while name.casefold() in taken:
                number += 1
                name = f"{base}-{number}"
            taken.add(name.casefold())
            known[pair] = Cell(valid_run_name(name), *pair)
        cells.append(known[pair])
    return cells


def _result(folder: Path, storage: str | None = None, name: str | None = None) -> CellsResult:
    found = list(cell_studies(folder, storage, name, "read"))
    models = short_names(cell.model for cell, _ in found)
    data = short_names(cell.data for cell, _ in found)
    begun = [
        CellSummary(
            cell.name, models[cell.model], data[cell.data], compare_analysis.summarise(study)
        )
        for cell, study in found
        if study is not None
    ]
    if not begun:
        raise UserError(f"no cell of {folder} has begun: run `ecanet compare` again")
    for _, study in found:
        if study is not None:
            study.queue.engine.dispose()
    title = f"{_listed(models.values(), 'network')} on {_listed(data.values(), 'data set')}"
    summary = summarise_cells(title, begun, [cell.name for cell, study in found if study is None])
    return CellsResult(**vars(summary), report=folder / "report" / "index.html")


def _listed(names: Iterable[str], noun: str) -> str:
    names = list(names)
    return ", ".join(names) if len(names) <= 3 else counted(len(names), noun)


def load_result(
    folder: str | Path | None = None, *, storage: str | None = None, name: str | None = None
) -> ComparisonResult | SweepResult | CellsResult:
    """Return what a study of any kind has come to so far, as the function that runs it would.

    Nothing is trained and nothing is written; :func:`report` writes the pages.

    Args:
        folder: of the study.
        storage: address of the study's database, if the folder does not name it.
        name: of the study in that database; by default the folder's.

    Raises:
        UserError: there is no such study.
    """
    if has_cells(folder):
        assert folder is not None
        return _result(Path(folder), storage, name)
    study = load_study(locate(folder, storage, name), "read")
    try:
        return result_of(study)
    finally:
        study.queue.engine.dispose()


def report(
    folder: str | Path | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write the report of a study of any kind, finished or not, and return its page's path.

    Of a comparison over several networks or data sets it is the report over all; the reports of its cells
    are written too, unless ``out`` is given.

    Args:
        folder: of the study.
        storage: address of the study's database, if the folder does not name it.
        name: of the study in that database; by default the folder's.
        out: folder that gets the report; by default ``report/`` in the study's.

    Raises:
        UserError: there is no such study, or the folder cannot be written.
    """
    return _report(folder, storage, name, out, ())[-1]


def report_for_papers(
    folder: str | Path | None = None,
    formats: Collection[PaperFormat] | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    out: str | Path | None = None,
) -> list[Path]:
    """Write the report as :func:`report` does, and what papers take from it; return the paths of the latter.

    Args:
        folder: of the study.
        formats: of the files; by default all that the study has.
        storage: as in :func:`report`.
        name: as there.
        out: as there.

    Raises:
        UserError: there is no such study, it has nothing in one of the formats, or the folder cannot be
            written.
    """
    return _report(folder, storage, name, out, formats)[:-1]


def _report(
    folder: str | Path | None,
    storage: str | None,
    name: str | None,
    out: str | Path | None,
    formats: Collection[PaperFormat] | None,
) -> list[Path]:
    """Write a report and what papers take from it, and return the paths, the page last."""
    if not has_cells(folder):
        return run.report(folder, storage=storage, name=name, out=out, formats=formats)
    assert folder is not None
    folder = Path(folder)
    if out is None:
        for _, study in cell_studies(folder, storage, name, "read"):
            if study is not None:
                run.write_report(study)
                study.queue.engine.dispose()
    where = Path(out) if out else inside(folder, "report")
    summary = _result(folder, storage, name)
    made = make_cells_report(summary, where, folder)
    written = made.write(where, formats)
    _log(summary)
    return written
