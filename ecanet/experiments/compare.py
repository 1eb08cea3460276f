"""The main job: attention modules x seeds on one network and one data set, to a report."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Collection
from itertools import filterfalse
from pathlib import Path
from typing import Any

from ecanet.activity import activity
from ecanet.config import (
    AnySettings,
    ClassificationSettings,
    OutsideSettings,
    StudySettings,
)
from ecanet.errors import UserError, as_user_error, at_least, counted
from ecanet.experiments.analysis.compare import metric_of
from ecanet.experiments.controls import measure_and_match
from ecanet.experiments.costs import single_thread
from ecanet.experiments.live import Watch, shown
from ecanet.experiments.plans.compare import ComparePlan, with_attention
from ecanet.experiments.plans.controls import (
    check_controls,
    control_name,
    is_control,
    parse_control,
)
from ecanet.experiments.result import ComparisonResult, result_of
from ecanet.experiments.run import log_answer, open_study, run_study
from ecanet.experiments.study.location import Location, locate
from ecanet.experiments.study.study import Study, check_folder, is_study, load_study, plan_of_kind
from ecanet.experiments.study.weights import hash_weights
from ecanet.models.insert import build_attention
from ecanet.plugins import load_plugins
from ecanet.recipe_file import settings_class, with_settings
from ecanet.statistics.design import FIRST_LOOK
from ecanet.statistics.difference import FEWEST
from ecanet.statistics.power import detectable
from ecanet.training.tracking import check_trackers
from ecanet.training.train import task_of

log = logging.getLogger(__name__)

_MOST_RUNS = 100_000
# Smallest differences that matter, by default: percentage points, and nats of log loss.
_DETECT, _DETECT_LOSS = 0.5, 0.02


def compare(
    out: str | Path,
    settings: AnySettings | None = None,
    study: StudySettings | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    jobs: int | None = None,
    trust_plugins: bool = False,
    progress: bool = True,
    **keywords: Any,
) -> ComparisonResult:
    """Train every attention module over every seed, and write the report to ``out/report``.

    Called again with the same arguments it resumes; with more seeds or modules it adds their runs.
    Workers on other machines may help (:func:`ecanet.experiments.study.worker.work`). Progress is logged to
    ``ecanet``.

    Example::

        study = ecanet.compare("study", data="digits", epochs=8, attention=["none", "eca"], seeds=3)
        study.verdicts["eca"].finding       # better, worse, equivalent or undecided
        study.to_frame("modules")           # accuracy, interval and cost of each module
        study.plot()

    Args:
        out: the study's folder; made if missing.
        settings: what all runs share, for classifiers (the default) or detectors.
        study: which modules and seeds.
        keywords: settings by name, in place of ``settings`` and ``study`` or on top of them: the flags of
            ``ecanet compare``, such as ``data="photos"``, ``lr=0.01``, ``seeds="auto"``. Names of a detector
            (``detector=``) or of your own trainer (``trainer=``) make the study one of those.
        storage: address of a PostgreSQL database that is to hold the study, for several machines; by
            default it is a file in the folder.
        name: of the study in that database; by default the folder's.
        jobs: processes that train at the same time on this machine; by default as many per GPU as it has
            time for, or one per CPU core (at most 8), as far as memory reaches.
        trust_plugins: whether a study that is there may name plugins that ``settings`` does not: they
            are programs, and are run.
        progress: in a notebook, show a table that follows the runs; in a script, print a line for each event.

    Returns:
        The study's records, costs and failures, its verdicts, tables and charts.

    Raises:
        UserError: anything the caller can put right; nothing half-written is left behind.
    """
    study, settings = with_settings(
        keywords, study or StudySettings(), settings or settings_class(keywords), skip={"seed"}
    )
    location = locate(out, storage, name)
    check_folder(location)
    with shown(progress) as watch:
        plan, data = plan_comparison(settings, study, existing_plan(location), jobs=jobs)
        opened, jobs = open_comparison(location, plan, data, jobs=jobs, trust_plugins=trust_plugins)
        trusted = None if trust_plugins else plan.programs()
        return run_comparison(opened, data, jobs, plugin=trusted, watch=watch)


def existing_plan(location: Location) -> Any:
    """Return the plan of the comparison that is there; None if there is none.

    Raises:
        UserError: the study is a sweep.
    """
    if not is_study(location):
        return None
    return plan_of_kind(load_study(location, "read"), ComparePlan.kind)


def plan_comparison(
    settings: AnySettings | None = None,
    study: StudySettings | None = None,
    there: Any = None,
    *,
    jobs: int | None = None,
) -> tuple[ComparePlan, Any]:
    """Read the data, check all that can be checked, and return the plan of a comparison and its data.

    Args:
        settings: what all runs share.
        study: which modules and seeds.
        there: plan of the study that is to be extended.
        jobs: processes that train at the same time.

    Raises:
        UserError: a setting, the data or a module cannot be used.
    """
    settings, study = settings or ClassificationSettings(), study or StudySettings()
    study = dataclasses.replace(study, attention=[control_name(arm) for arm in study.attention])
    auto = study.seeds == "auto"
    first, most = study.first_seed, study.max_seeds if auto else int(study.seeds)
    pilot = FIRST_LOOK if auto else most
    check_study(settings, study.attention, most, jobs)
    check_controls(_all_arms(there, study.attention))
    _check_design(study, there)
    task = task_of(settings)
    data = task.read(settings)
    settings = task.resolve(settings, data)
    with single_thread(), activity("checking the networks"):
        for attention in filterfalse(is_control, study.attention):
            task.check(with_attention(settings, attention), data)
    majority, plugin = task.majority(data), settings.plugin
    plan = ComparePlan(
        attention=list(study.attention),
        seeds=list(range(first, first + pilot)),
        more_seeds=list(range(first + pilot, first + most)),
        planned_seeds=most,
        sequential=auto,
        margin=margin_of(settings, study.detect),
        confidence=study.confidence,
        pairing=study.pairing,
        resolution=resolution_of(settings, data),
        plugin=[str(Path(file).resolve()) for file in plugin],
        # The plan has these for each run.
        settings=dataclasses.replace(settings, attention=None, seed=0, plugin=[]),
        data_fingerprint=data.fingerprint,
        weights_hash=hash_weights(settings),
        skipped_images=list(data.skipped),
        metric=settings.best,
        direction="maximize" if metric_of(settings).higher_is_better else "minimize",
        # Of what others save, only they know what may be removed.
        keep_weights="last" if isinstance(settings, OutsideSettings) else study.keep_weights,
        built_in=task.built_in_of(settings, data),
        notices=task.notices(settings, data, compared=True),
        majority=majority,
        images=images_of(data),
    )
    return plan, data


def open_comparison(
    location: Location,
    plan: ComparePlan,
    data: Any,
    *,
    jobs: int | None = None,
    trust_plugins: bool = False,
) -> tuple[Study, int]:
    """Create or extend the study of a plan, measuring the costs of a new one; return it and its jobs.

    Raises:
        UserError: as :func:`ecanet.experiments.run.open_study`.
    """
    there = existing_plan(location)
    arms = _all_arms(there, plan.attention)
    # Both are settled once: a study that exists has its own.
    plan.controls = getattr(there, "controls", {})
    plan.keep_weights = plan.keep_weights or (None if there else "best")
    guess = [] if plan.majority is None else [guess_of(plan.majority)]
    for line in [*plan.notices, *guess, *power_of(plan, there)]:
        log.info("%s", line)

    def measure_alone() -> Any:
        what = f"measuring the cost of {', '.join(arms)}"
        if not isinstance(plan.settings, OutsideSettings):  # others may have nothing to measure
            log.info("%s", what)
        with single_thread(), activity(what), as_user_error(f"{what} fails"):
            costs, settled = measure_and_match(plan.settings, arms, data)
        plan.controls = settled | plan.controls
        return costs, max((cost.train_peak_bytes or 0 for cost in costs), default=0)

    if there and not plan.controls.keys() >= set(filter(is_control, arms)):
        measure_alone()
    opened, jobs = open_study(location, plan, measure_alone, jobs=jobs, trust_plugins=trust_plugins)
    for arm, control in opened.plan().controls.items():  # type: ignore[attr-defined]
        log.info("%s", control.describe(arm, plan.settings))
    return opened, jobs


def _all_arms(there: Any, wanted: list[str]) -> list[str]:
    """Return the arms of the study that is there, and those that are to be added."""
    return list(dict.fromkeys([*getattr(there, "attention", []), *wanted]))


def run_comparison(
    opened: Study,
    data: Any,
    jobs: int,
    *,
    plugin: Collection[str] | None = (),
    watch: Watch | None = None,
) -> ComparisonResult:
    """Work on an open study until every run has ended, write its report, and return its summary.

    The arguments are those of :func:`ecanet.experiments.run.run_study` and of :func:`compare`.
    """
    run_study(opened, data, jobs, plugin=plugin, watching=watch and watch(opened))
    summary = result_of(opened)
    assert isinstance(summary, ComparisonResult)
    log_answer(opened, summary, opened.report_folder())
    return summary


def _check_design(study: StudySettings, there: Any) -> None:
    """Refuse a design other than that of the study that is there; defaults are taken for not given.

    Raises:
        UserError: names the settings.
    """
    if not isinstance(there, ComparePlan):
        return
    default = StudySettings()
    changed = [
        f"{name} {getattr(there, name)}, not {value}"
        for name in ("confidence", "pairing")
        if (value := getattr(study, name)) not in (getattr(there, name), getattr(default, name))
    ]
    if study.detect is not None and not math.isclose(
        margin_of(there.settings, study.detect), there.margin
    ):
        scale = metric_of(there.settings).scale
        changed.append(f"detect {scale * there.margin:g}, not {study.detect:g}")
    if changed:
        raise UserError(
            f"the study was begun with another design ({'; '.join(changed)}): choose another --out"
        )


def margin_of(settings: AnySettings, detect: float | None) -> float:
    """Return the smallest difference that matters, in units of the metric: ``detect``, or the default."""
    metric = metric_of(settings)
    if detect is None and not metric.is_share and isinstance(settings, OutsideSettings):
        raise UserError(
            f"{metric.name} does not look like a fraction of 1, as accuracy, f1 and mAP50-95 do: "
            f"give --detect, the smallest difference that matters, in its own unit"
        )
    if detect is None:
        detect = _DETECT if metric.is_share else _DETECT_LOSS
    return detect / metric.scale


def resolution_of(settings: AnySettings, data: Any) -> float:
    """Return one image's share, the step between two accuracies; 0 if the metric has none or it is unknown.

    Other shares have steps near this one, such as balanced accuracy with classes of different sizes.
    """
    test = getattr(data, "test", None)
    return 1 / len(test) if test is not None and metric_of(settings).is_share else 0.0


def images_of(data: Any) -> dict[str, int]:
    """Return the number of images in each split of a task's data."""
    if hasattr(data, "folders"):
        return {
            name: len(split) for name, split in zip(("train", "eval"), data.folders, strict=True)
        }
    splits = {name: getattr(data, name, None) for name in ("train", "val", "test")}
    return {name: len(split) for name, split in splits.items() if split is not None}


def power_of(plan: ComparePlan, there: Any = None) -> list[str]:
    """Return the line on what a fixed number of seeds can decide.

    Args:
        plan: what is wanted.
        there: plan of the study that is to be extended; None for a new study.
    """
    planned = there.planned() if there else 0
    if planned >= FEWEST:
        known = {*there.seeds, *there.more_seeds}
        every = known | {*plan.seeds, *plan.more_seeds}
        if there.sequential or every == known or len(every) <= planned:
            return []
        return [
            f"the study was planned with --seeds {planned}, and its tests have used up most of the error "
            "budget, so more seeds can decide little: start a new study (--out) with fresh seeds "
            "(--first-seed) and --seeds auto"
        ]
    if plan.sequential or len(plan.attention) < 2:
        return []
    seeds, effect = counted(len(plan.seeds), "seed"), detectable(plan.design())
    if math.isinf(effect):
        return [f"{seeds} cannot decide anything: give at least {FEWEST}, or --seeds auto"]
    return [
        f"with {seeds}, 80 % of studies find a true difference that is {effect:.1f} times as large as its "
        "own variation from seed to seed (standard deviation), and fewer find a smaller one; `ecanet plan` "
        "shows how many seeds you need"
    ]


def guess_of(majority: float) -> str:
    """Return the line on what is reached without looking at the images."""
    return (
        "predicting the most frequent class for every image would be right for "
        f"{100 * majority:.2f} % of the test split"
    )


def check_study(settings: AnySettings, attention: list[str], seeds: int, jobs: int | None) -> None:
    """Refuse modules, seeds and jobs that no study can be made of, before anything is read or written.

    Raises:
        UserError: one line that names the setting and what it takes.
    """
    at_least(1, jobs=jobs)
    if seeds * len(attention) > _MOST_RUNS:
        raise UserError(f"--seeds {seeds}: a study may have {_MOST_RUNS} runs")
    if not attention:
        raise UserError("--attention is empty: name at least one module, such as none,eca")
    if twice := {name for name in attention if attention.count(name) > 1}:
        raise UserError(f"--attention names {', '.join(sorted(twice))} more than once")
    check_trackers(settings.loggers)
    load_plugins(settings.plugin)
    for name in attention:
        if is_control(name):
            if isinstance(settings, OutsideSettings):
                raise UserError(
                    f"{name} is trained by ecanet, not by {settings.trainer_name}: leave it out"
                )
            parse_control(name)
        elif not isinstance(settings, OutsideSettings):
            build_attention(name, 64)
