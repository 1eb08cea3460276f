"""What to do with a study's answer: one recommendation, its reason, and the next command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ecanet.errors import counted, listed, uncapitalized
from ecanet.experiments.analysis.adequacy import Check, failed
from ecanet.experiments.analysis.compare import RECIPE, Metric, StudySummary
from ecanet.experiments.analysis.images import other_images
from ecanet.experiments.analysis.statistics import Comparison, StudyStatistics
from ecanet.record import Cost
from ecanet.statistics.design import finding_of


@dataclass(frozen=True)
class Recommendation:
    headline: str
    reason: str
    command: str
    """The next command, with STUDY for the study's folder; "" if there is none."""

    def at(self, study: Path, report: Path) -> Recommendation:
        """Return it with the folders of a study and of its report in the command."""
        # After "." the new study would be a hidden folder within this one.
        folder = study if study.name not in ("", "..") else study.resolve()
        paths = {"STUDY": shlex.quote(str(folder)), "STUDY/report": shlex.quote(str(report))}
        command = re.sub("(?<= )STUDY(?:/report)?", lambda path: paths[path[0]], self.command)
        return replace(self, command=command)


def in_words(baseline: str) -> str:
    """Return what a sentence calls the baseline: "Keep none." would read as a word."""
    return "the plain network" if baseline == "none" else baseline


def recommend(
    summary: StudySummary, statistics: StudyStatistics, adequacy: Sequence[Check] = ()
) -> Recommendation:
    """Return what the study's verdicts come to; with a badly trained baseline, to little.

    Args:
        adequacy: what :func:`ecanet.experiments.analysis.adequacy.baseline_adequacy` found.
    """
    found = _of_verdicts(summary, statistics)
    blank = [name for name, c in statistics.comparisons.items() if c.mean is None]
    if blank and len(blank) < len(statistics.comparisons):
        has = "have" if len(blank) > 1 else "has"
        found = replace(found, reason=f"{found.reason} {listed(blank)} {has} no results.")
    if not (checks := failed(adequacy)):
        return found
    return Recommendation(
        f"Train {in_words(statistics.baseline)} better first.",
        f"As it is trained ({'; '.join(check.name for check in checks)}), a gain means little. Apart from "
        f"that: {uncapitalized(found.headline)} {found.reason}",
        _better_trained(summary, checks),
    )


def _better_trained(summary: StudySummary, checks: Sequence[Check]) -> str:
    """Return the command of a study that is trained as the failed checks advise; "" if flags cannot."""
    flags = " ".join(dict.fromkeys(check.flags for check in checks if check.flags))
    if not (flags and summary.recipe):
        return ""
    # A recipe's plugins are programs, which a command has to name as well.
    plugins = "".join(f" --plugin {shlex.quote(file)}" for file in summary.recipe.get("plugin", []))
    recipe = f"--recipe STUDY/report/{RECIPE}{plugins} {flags}"
    return f"{summary.metric.program} compare {recipe} --out STUDY-better-trained"


def _of_verdicts(summary: StudySummary, statistics: StudyStatistics) -> Recommendation:
    baseline, metric = statistics.baseline, statistics.metric
    compared = statistics.comparisons
    known = {name: c for name, c in compared.items() if c.mean is not None}
    if not known:
        return Recommendation(
            "No answer yet.", "No module can be compared with the baseline yet.", _watch(summary)
        )
    sign = 1 if metric.higher_is_better else -1
    found = {name: c for name, c in known.items() if c.finding == "better"}
    # From the largest gain on.
    found = dict(sorted(found.items(), key=lambda item: -sign * (item[1].mean or 0.0)))
    better = {name: c for name, c in found.items() if name not in summary.controls}
    matter = {name: c for name, c in better.items() if not _is_small(c)}
    if matter:
        best = next(iter(matter))
        for control in summary.controls:
            if against(statistics, best, control).finding == "worse":
                return _spend_elsewhere(control, summary, statistics, best)
        return _use(best, better, summary, statistics)
    if controls := [name for name in found if name in summary.controls]:
        return _spend_elsewhere(controls[0], summary, statistics)
    if better:
        return _small_gain(next(iter(better)), summary, statistics)
    undecided = [name for name, c in known.items() if c.finding == "undecided"]
    speed = _slowest(list(known), summary.costs, baseline)
    cost = f" The slowest trains at {speed:.2f} × the speed." if speed and speed < 0.95 else ""
    if undecided and summary.unfinished and not statistics.design.sequential:
        left, is_ = counted(len(summary.unfinished), "run"), _is(summary.unfinished)
        return Recommendation("No answer yet.", f"{left} {is_} not finished.", _watch(summary))
    if undecided:
        limit = _largest_gain([known[name] for name in undecided], metric)
        bound = f"; a gain of more than {limit} can be ruled out" if limit else ""
        return Recommendation(
            f"Keep {in_words(baseline)} for now.",
            f"No module is shown to be better, and {listed(undecided)} {_is(undecided)} undecided{bound}."
            + cost,
            _watch(summary) if summary.unfinished else "ecanet plan STUDY",
        )
    limit = _largest_gain(list(known.values()), metric)
    bound = f"a gain above {limit} is ruled out" if limit else "each is worse"
    if all(c.finding == "equivalent" for c in known.values()):
        bound = f"equivalent within {metric.amount(summary.margin)}, and {bound}"
    which = next(iter(known)) if len(known) == 1 else "No module"
    verb = "is not better" if len(known) == 1 else "is better"
    return Recommendation(f"Keep {in_words(baseline)}.", f"{which} {verb}: {bound}.{cost}", "")


def closing_lines(statistics: StudyStatistics, found: Recommendation) -> list[str]:
    """Return what a command ends with: a verdict per module, and the recommendation."""
    width = max(map(len, statistics.comparisons), default=0)
    lines = [f"{name:{width}}  {c.verdict}" for name, c in statistics.comparisons.items()]
    return [*lines, f"{found.headline} {found.reason}"] if lines else []


def _use(
    best: str, better: dict[str, Comparison], summary: StudySummary, statistics: StudyStatistics
) -> Recommendation:
    baseline, metric, c = statistics.baseline, statistics.metric, better[best]
    by = metric.amount(c.mean or 0.0)
    rivals = [
        other
        for other in better
        if other != best and against(statistics, best, other).finding in ("equivalent", "undecided")
    ]
    beside = ""
    if rivals:
        beside = (
            f" {listed(rivals)} {_is(rivals)} better too, and cannot be distinguished from {best}."
        )
    images = other_images(summary.answers, statistics).get(best)
    interval = images and images.interval
    if interval and finding_of(interval, c.margin, metric.higher_is_better) != "better":
        beside = f" On other images like these that is undecided.{beside}"
    predicts = metric.of_classifiers and summary.keeps_weights
    return Recommendation(
        f"Use {best}.",
        f"It is better than {in_words(baseline)} by {by}.{_beside_control(best, summary, statistics)}"
        f"{_price(best, summary, baseline)}{beside}",
        "ecanet predict IMAGES --weights STUDY" if predicts else "",
    )


def _is_small(c: Comparison) -> bool:
    """Whether the whole interval is nearer to 0 than what matters."""
    return c.interval is not None and max(map(abs, c.interval)) < c.margin


def _small_gain(best: str, summary: StudySummary, statistics: StudyStatistics) -> Recommendation:
    """Return the advice where what is better is so by less than what matters."""
    baseline, metric, c = statistics.baseline, statistics.metric, statistics.comparisons[best]
    by = metric.amount(c.mean or 0.0)
    open_ = [name for name, c in statistics.comparisons.items() if c.finding == "undecided"]
    rest = f" {listed(open_)} {_is(open_)} undecided." if open_ else ""
    return Recommendation(
        f"Keep {in_words(baseline)}, unless {by} matter.",
        f"{best} is better, but by less than {metric.amount(c.margin)}."
        f"{_price(best, summary, baseline)}{rest}",
        "ecanet plan STUDY" if open_ else "",
    )


_ELSEWHERE = {
    "time": "train {} longer",
    "macs": "widen {}",
    "parameters": "widen {}",
}


def _spend_elsewhere(
    control: str, summary: StudySummary, statistics: StudyStatistics, best: str | None = None
) -> Recommendation:
    """Return the advice where the plain network at a module's cost is better than every module.

    Args:
        control: the arm of the plain network.
        summary: of the study.
        statistics: of the study.
        best: the best module, if one is better than the baseline.
    """
    of, c, metric = summary.controls[control], statistics.comparisons[control], statistics.metric
    how = _ELSEWHERE[of.resource].format("it")
    by = metric.amount(c.mean or 0.0)
    return Recommendation(
        f"Keep {in_words(statistics.baseline)}, and {how}.",
        f"At the cost of {of.module}, that gains {by}: "
        + (f"more than {best} does." if best else f"{of.module} itself is not shown to gain any."),
        "",
    )


def _beside_control(best: str, summary: StudySummary, statistics: StudyStatistics) -> str:
    """Return how the module compares with the plain network at its cost; "" if that was not trained."""
    for name, control in summary.controls.items():
        if control.module == best:
            how = _ELSEWHERE[control.resource].format(in_words(statistics.baseline))
            finding = against(statistics, best, name).finding
            return {
                "better": f" That is more than using the same cost to {how} gives.",
            }.get(finding, f" It is not shown to be better than using the same cost to {how}.")
    return ""


def against(statistics: StudyStatistics, one: str, other: str) -> Comparison:
    """Return how a module beside the baseline compares with another."""
    if found := statistics.pairs.get((one, other)):
        return found
    found = statistics.pairs[other, one]
    opposite: dict[str, Any] = {"better": "worse", "worse": "better"}
    return replace(
        found,
        baseline=other,
        differences=[-d for d in found.differences],
        mean=None if found.mean is None else -found.mean,
        interval=found.interval and (-found.interval[1], -found.interval[0]),
        finding=opposite.get(found.finding, found.finding),
        verdict="",
    )


def _watch(summary: StudySummary) -> str:
    return "ecanet study watch STUDY" if summary.unfinished else ""


def _largest_gain(found: Sequence[Comparison], metric: Metric) -> str:
    """Return the largest gain that an interval leaves open, with its unit; "" if there is none."""
    ends = [
        c.interval[1] if metric.higher_is_better else -c.interval[0] for c in found if c.interval
    ]
    # What is far beyond the difference that matters says nothing.
    if len(ends) < len(found) or not 0 < max(ends) <= 10 * found[0].margin:
        return ""
    return metric.amount(max(ends))


def _price(module: str, summary: StudySummary, baseline: str) -> str:
    """Return what a module costs in training, as a sentence; "" if that was not measured."""
    speed = _slowest([module], summary.costs, baseline)
    return f" It trains at {speed:.2f} × the speed of {in_words(baseline)}." if speed else ""


def _slowest(names: Sequence[str], costs: Sequence[Cost], baseline: str) -> float | None:
    """Return the lowest training speed of the modules, relative to the baseline."""
    speeds = {cost.attention: cost.train.median for cost in costs}
    known = [speeds[name] / speeds[baseline] for name in names if {name, baseline} <= speeds.keys()]
    return min(known, default=None)


def _is(names: Sequence[object]) -> str:
    return "are" if len(names) > 1 else "is"
