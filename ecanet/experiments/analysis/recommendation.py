"""What to do with a study's answer: one recommendation, its reason, and the next command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ecanet.errors import counted
from ecanet.experiments.analysis.compare import Metric, StudySummary
from ecanet.experiments.analysis.statistics import Comparison, StudyStatistics
from ecanet.record import Cost


@dataclass(frozen=True)
class Recommendation:
    headline: str
    reason: str
    command: str
    """The next command, with STUDY for the study's folder; "" if there is none."""


def recommend(summary: StudySummary, statistics: StudyStatistics) -> Recommendation:
    """Return what the study's verdicts come to."""
    baseline, metric = statistics.baseline, statistics.metric
    compared = statistics.comparisons
    known = {name: c for name, c in compared.items() if c.mean is not None}
    if not known:
        return Recommendation(
            "No answer yet.", "No module can be compared with the baseline yet.", _watch(summary)
        )
    sign = 1 if metric.higher_is_better else -1
    better = {name: c for name, c in known.items() if c.finding == "better"}
    if better:
        best = max(better, key=lambda name: sign * (better[name].mean or 0.0))
        return _use(best, better, summary, statistics)
    undecided = [name for name, c in known.items() if c.finding == "undecided"]
    speed = _slowest(list(known), summary.costs, baseline)
    cost = f" The slowest trains at {speed:.2f} × the speed." if speed and speed < 0.95 else ""
    if undecided and summary.unfinished and not statistics.design.sequential:
        left = counted(len(summary.unfinished), "run")
        return Recommendation("No answer yet.", f"{left} are still to end.", _watch(summary))
    if undecided:
        limit = _largest_gain([known[name] for name in undecided], metric)
        bound = f"; a gain of more than {limit} can be ruled out" if limit else ""
        return Recommendation(
            f"Keep {baseline} for now.",
            f"No module is shown to be better, and {_names(undecided)} {_is(undecided)} undecided{bound}."
            + cost,
            _watch(summary) if summary.unfinished else "ecanet plan STUDY",
        )
    limit = _largest_gain(list(known.values()), metric)
    bound = f"any gain is below {limit}" if limit else "all are worse"
    which = "The module" if len(known) == 1 else "No module"
    verb = "is not better" if len(known) == 1 else "is better"
    return Recommendation(f"Keep {baseline}.", f"{which} {verb}: {bound}.{cost}", "")


def closing_lines(summary: StudySummary, statistics: StudyStatistics) -> list[str]:
    """Return what a command ends with: a verdict per module, and the recommendation."""
    width = max(map(len, statistics.comparisons), default=0)
    lines = [f"{name:{width}}  {c.verdict}" for name, c in statistics.comparisons.items()]
    if not lines:
        return []
    found = recommend(summary, statistics)
    return [*lines, f"{found.headline} {found.reason}"]


def _use(
    best: str, better: dict[str, Comparison], summary: StudySummary, statistics: StudyStatistics
) -> Recommendation:
    baseline, metric, c = statistics.baseline, statistics.metric, better[best]
    assert c.interval is not None
    speed = _slowest([best], summary.costs, baseline)
    cost = f" It trains at {speed:.2f} × the speed of {baseline}." if speed else ""
    by = f"{metric.difference(abs(c.mean or 0.0), sign=False)} {metric.difference_unit}"
    if max(map(abs, c.interval)) < c.margin:
        margin = f"{metric.difference(c.margin, sign=False)} {metric.difference_unit}"
        return Recommendation(
            f"Keep {baseline}, unless {by} matter.",
            f"{best} is better, but by less than {margin}.{cost}",
            "",
        )
    rivals = [
        other for other in better if other != best and not _pair(statistics, best, other).decided
    ]
    beside = ""
    if rivals:
        beside = f" {_names(rivals)} {_is(rivals)} better too, and cannot be told from {best}."
    return Recommendation(
        f"Use {best}.",
        f"It is better than {baseline} by {by}.{cost}{beside}",
        "ecanet predict IMAGES --weights STUDY" if metric.key.startswith("test_") else "",
    )


def _pair(statistics: StudyStatistics, one: str, other: str) -> Comparison:
    found = statistics.pairs.get((one, other)) or statistics.pairs.get((other, one))
    assert found is not None
    return found


def _watch(summary: StudySummary) -> str:
    return "ecanet study watch STUDY" if summary.unfinished else ""


def _largest_gain(found: Sequence[Comparison], metric: Metric) -> str:
    """Return the largest gain that an interval leaves open, with its unit; "" if there is none."""
    ends = [
        c.interval[1] if metric.higher_is_better else -c.interval[0] for c in found if c.interval
    ]
    if len(ends) < len(found) or max(ends) <= 0:
        return ""
    return f"{metric.difference(max(ends), sign=False)} {metric.difference_unit}"


def _slowest(names: Sequence[str], costs: Sequence[Cost], baseline: str) -> float | None:
    """Return the lowest training speed of the modules, relative to the baseline."""
    speeds = {cost.attention: cost.train.median for cost in costs}
    known = [speeds[name] / speeds[baseline] for name in names if {name, baseline} <= speeds.keys()]
    return min(known, default=None)


def _names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _is(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"
