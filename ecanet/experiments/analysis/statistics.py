"""What a study's accuracies show: means, differences, intervals, verdicts.

Accuracies, and other metrics in their place, are fractions of 1; "points" are percentage points. A verdict
follows from the interval of the difference and from nothing else. docs/statistics.md gives the reasons.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ecanet.errors import counted, listed, percent
from ecanet.experiments.analysis.compare import ACCURACY, Metric, StudySummary
from ecanet.record import Record
from ecanet.statistics.design import FUTILE, Design, Finding, Interval
from ecanet.statistics.difference import FEWEST, Pairing, has_spread


@dataclass
class Comparison:
    """One module against another, as a rule the baseline."""

    baseline: str
    seeds: list[int]
    """Seeds that both have finished."""
    differences: list[float]
    """The module's value minus the baseline's, for each seed."""
    margin: float
    """Differences up to this one are equivalent."""
    confidence: float
    """Probability that the intervals of all comparisons of the study hold the true differences."""
    mean: float | None = None
    interval: Interval | None = None
    """Of the mean, corrected for the number of comparisons and of looks; None with too few seeds."""
    standard_error: float | None = None
    df: float | None = None
    """Degrees of freedom of ``standard_error``."""
    correlation: float | None = None
    """Of the seeds of both modules."""
    pairing: Literal["paired", "unpaired"] | None = None
    """How the seeds were mainly taken."""
    seeds_needed: int | None = None
    """Of an undecided comparison: seeds with which a new study would probably decide it, if there are."""
    given_up: bool = False
    """Whether it is undecided and the further seeds that are allowed would hardly give an answer."""
    finding: Finding = "no data"
    verdict: str = ""
    """The finding as a sentence, with its numbers."""

    @property
    def decided(self) -> bool:
        return self.finding in ("better", "worse", "equivalent")


@dataclass
class ModuleStatistics:
    """The test accuracies of one attention module, as fractions of 1."""

    attention: str
    seeds: list[int]
    accuracies: list[float]
    mean: float | None
    sd: float | None
    """Sample standard deviation over seeds (n - 1)."""
    interval: Interval | None
    """95 % t-interval of the mean."""
    diverged: list[int]
    """Seeds whose run met a loss that is not finite. Their accuracies count like any other."""
    without_accuracy: list[int]
    """Seeds whose run ended without a finite test accuracy: nothing to average."""
    comparison: Comparison | None
    """None for the baseline."""


@dataclass
class StudyStatistics:
    """The statistics of a study, the baseline first, and their limits."""

    baseline: str
    modules: list[ModuleStatistics]
    notes: list[str] = field(default_factory=list)
    """Sentences on what this study cannot show."""
    metric: Metric = ACCURACY
    design: Design = field(default_factory=lambda: Design(0))
    pairs: dict[tuple[str, str], Comparison] = field(default_factory=dict)
    """Every module against every other but the baseline, corrected for the number of these."""

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """The comparisons with the baseline, by module."""
        return {m.attention: m.comparison for m in self.modules if m.comparison}


def mean_interval(accuracies: Sequence[float], most: float = 1.0) -> Interval | None:
    """Return the 95 % t-interval of the mean accuracy, cut to what there is: 0 to ``most``.

    None for fewer than two values, and for values all alike: no spread is seen then, which is not
    the same as none being there.
    """
    from scipy import stats

    if len(accuracies) < 2 or np.ptp(accuracies) == 0:
        return None
    mean = float(np.mean(accuracies))
    half = float(stats.t.ppf(0.975, len(accuracies) - 1) * stats.sem(accuracies))
    return max(mean - half, 0.0), min(mean + half, most)


def study_statistics(summary: StudySummary) -> StudyStatistics:
    """Return the statistics of a study's finished runs, and their limits."""
    by_module = _by_module(summary)
    if not by_module:
        return StudyStatistics("", [], ["The study names no attention module."])
    baseline, *others = by_module
    metric = summary.metric
    values = study_values(summary)
    design = replace(
        summary.design or Design(len(summary.seeds), sequential=False), comparisons=len(others)
    )

    def compared(name: str, with_: str, design: Design) -> Comparison:
        return compare(
            values[name],
            values[with_],
            with_,
            metric=metric,
            design=design,
            margin=summary.margin,
            pairing=summary.pairing,
            resolution=summary.resolution,
            most=summary.most_seeds,
        )

    modules = [
        _module(
            name,
            runs,
            values[name],
            metric,
            compared(name, baseline, design) if name in others else None,
        )
        for name, runs in by_module.items()
    ]
    couples = list(itertools.combinations(others, 2))
    of_pairs = replace(design, comparisons=max(len(couples), 1))
    found = StudyStatistics(
        baseline,
        modules,
        metric=metric,
        design=design,
        pairs={(a, b): compared(a, b, of_pairs) for a, b in couples},
    )
    found.notes = _notes(summary, found)
    return found


def study_values(summary: StudySummary) -> dict[str, dict[int, float]]:
    """Return the finite values of the study's metric, by module and seed."""
    return {name: _accuracies(runs, summary.metric) for name, runs in _by_module(summary).items()}


def _by_module(summary: StudySummary) -> dict[str, dict[int, Record]]:
    found: dict[str, dict[int, Record]] = {name: {} for name in summary.attention}
    for record in summary.records:
        found.setdefault(record.attention, {})[record.seed] = record
    return found


def _accuracies(runs: dict[int, Record], metric: Metric) -> dict[int, float]:
    found = {seed: run.final.get(metric.key, math.nan) for seed, run in sorted(runs.items())}
    return {seed: accuracy for seed, accuracy in found.items() if math.isfinite(accuracy)}


def _module(
    name: str,
    runs: dict[int, Record],
    found: dict[int, float],
    metric: Metric,
    comparison: Comparison | None,
) -> ModuleStatistics:
    values = list(found.values())
    return ModuleStatistics(
        attention=name,
        seeds=list(found),
        accuracies=values,
        mean=float(np.mean(values)) if values else None,
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        interval=mean_interval(values, metric.most),
        diverged=[seed for seed, run in sorted(runs.items()) if has_diverged(run)],
        without_accuracy=[seed for seed in sorted(runs) if seed not in found],
        comparison=comparison,
    )


def has_diverged(record: Record) -> bool:
    """Return whether a loss of the run, of any epoch or of the test, is not finite."""
    losses = [epoch.get("train_loss", 0.0) for epoch in record.epochs]
    losses += [epoch.get("val_loss", 0.0) for epoch in record.epochs]
    return not all(map(math.isfinite, [*losses, record.final.get("test_loss", 0.0)]))


def compare(
    found: dict[int, float],
    base: dict[int, float],
    baseline: str,
    *,
    metric: Metric,
    design: Design,
    margin: float,
    pairing: Pairing = "auto",
    resolution: float = 0.0,
    most: int = 0,
) -> Comparison:
    """Judge a module by its values and the baseline's, both by seed.

    Args:
        found: the module's.
        base: the baseline's.
        baseline: its name, for the verdict.
        metric: what the values are.
        design: how many seeds and comparisons there are to be.
        margin: differences up to this one are equivalent.
        pairing: how seeds are taken.
        resolution: step between two possible values.
        most: seeds that are allowed.
    """
    seeds = [seed for seed in found if seed in base]
    x, y = [found[seed] for seed in seeds], [base[seed] for seed in seeds]
    c = Comparison(
        baseline, seeds, [a - b for a, b in zip(x, y, strict=True)], margin, design.confidence
    )
    if not seeds:
        c.verdict = f"nothing to compare: no seed is finished with both this and {baseline}"
        return c
    c.mean = float(np.mean(c.differences))
    estimate, c.interval, c.finding = design.judge(
        x,
        y,
        margin,
        higher_is_better=metric.higher_is_better,
        pairing=pairing,
        resolution=resolution,
    )
    if estimate is not None:
        c.standard_error, c.df = float(estimate.standard_error), float(estimate.df)
        c.correlation = float(estimate.correlation)
        c.pairing = "unpaired" if estimate.unpaired >= 0.5 else "paired"
        if c.finding == "undecided":
            c.seeds_needed = design.seeds_needed(estimate, margin)
            c.given_up = len(seeds) < most and bool(design.futile(estimate, margin, most))
    # Fresh for both, of which one may have seeds that the other has not.
    fresh = max(*found, *base) + 1
    c.verdict = _verdict(c, metric, design, has_spread(x, y, resolution), fresh)
    return c


def _verdict(c: Comparison, metric: Metric, design: Design, varies: bool, fresh: int) -> str:
    unit, seeds = metric.difference_unit, counted(len(c.seeds), "seed")
    by, within = metric.amount(c.mean or 0.0), metric.amount(c.margin)
    if c.interval is None:
        if not varies:
            why = "all runs of a module gave the same, so no spread is seen"
        elif not design.sequential and design.seeds < FEWEST:
            why = f"{seeds} {'gives' if len(c.seeds) == 1 else 'give'} no interval"
        elif design.sequential or len(c.seeds) < FEWEST:
            why = f"no interval with {seeds} yet"
        else:
            why = f"the verdict comes with all {design.seeds} seeds"
        return f"undecided: {metric.difference(c.mean or 0.0)} {unit} against {c.baseline}; {why}"
    interval = f"{percent(c.confidence)} interval {' to '.join(map(metric.difference, c.interval))}, {seeds}"
    if c.finding in ("better", "worse"):
        small = max(map(abs, c.interval)) < c.margin
        start = f"{c.finding} than {c.baseline} by {by} ({interval})"
        return start + (f", though by less than your threshold of {within}" if small else "")
    against = f"{metric.difference(c.mean or 0.0)} {unit} ({interval})"
    if c.finding == "equivalent":
        return f"equivalent to {c.baseline} within {within}: {against}"
    more = (
        f"a new study with --first-seed {fresh} --max-seeds {c.seeds_needed} would probably decide"
        if c.seeds_needed
        else "hundreds of seeds would be needed to decide"
    )
    return f"undecided: {against} against {c.baseline}; {more}"


def no_interval(values: Sequence[float], least: int) -> str:
    """Return why so many values have no interval."""
    return f"fewer than {least} seeds" if len(values) < least else "all seeds gave the same"


def _notes(summary: StudySummary, found: StudyStatistics) -> list[str]:
    runs = [len(module.accuracies) for module in found.modules]
    if not any(runs):
        return []
    notes, design, comparisons = [], found.design, found.comparisons.values()
    if max(runs) < FEWEST:
        notes.append(
            f"With {counted(max(runs), 'seed')} nothing can be decided: a difference between so few runs "
            "may be chance alone: --seeds auto adds seeds until there is an answer."
        )
    if not comparisons:
        notes.append("There is only the baseline: nothing is compared.")
    if not design.sequential and any(len(c.seeds) > design.seeds for c in comparisons):
        notes.append(
            f"The study was planned with {counted(design.seeds, 'seed')}, and most of its chance of error "
            "went to that look. With more seeds its intervals are wider than those of a study that was "
            "planned with --seeds auto."
        )
    given_up = [name for name, c in found.comparisons.items() if c.given_up]
    if design.sequential and given_up and not summary.unfinished:
        notes.append(
            f"{listed(given_up)} got no further seed, though {summary.most_seeds} were allowed: the chance "
            f"of an answer by then was below {percent(FUTILE)}."
        )
    if summary.unfinished:
        notes.append(
            "The study is not complete."
            if design.sequential
            else "The study is not complete: its verdicts come with the last seed."
        )
    return notes
