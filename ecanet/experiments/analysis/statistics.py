"""What a study's accuracies show: intervals, paired differences, p-values, verdicts.

Runs are paired by seed, since those of one seed share initial weights, data order and augmentation.
Accuracies, and other metrics in their place, are fractions of 1; "points" are percentage points.
docs/statistics.md gives the reasons.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ecanet.errors import counted
from ecanet.experiments.analysis.compare import ACCURACY, Metric, StudySummary
from ecanet.record import Record

LEVEL = 0.05
"""Chance of any false "higher" or "lower" among all comparisons of a study without differences."""

RESAMPLES = 9999
# fmt: off
BCA_COVERAGE = {
    3: 0.72, 4: 0.80, 5: 0.84, 6: 0.86, 7: 0.87, 8: 0.89, 9: 0.89, 10: 0.91, 11: 0.91, 12: 0.91,
    13: 0.91, 14: 0.92, 15: 0.92, 16: 0.92, 17: 0.93, 18: 0.92, 19: 0.93, 20: 0.93,
}
# fmt: on
"""How often a 95 % BCa interval from so many seeds held the true difference: 10,000 simulations of
normal differences each (docs/statistics.md)."""

Interval = tuple[float, float]
Finding = Literal["higher", "lower", "no evidence", "too few seeds", "no data"]


@dataclass
class Comparison:
    """One module against the baseline, by seed."""

    baseline: str
    seeds: list[int]
    """Seeds that both have finished."""
    differences: list[float]
    """Accuracy minus the baseline's, a value a seed, as fractions of 1."""
    mean: float | None
    interval: Interval | None
    """95 % BCa bootstrap interval of the mean; not corrected for the number of comparisons."""
    p: float | None
    """Two-sided sign-flip p of this comparison alone."""
    p_corrected: float | None = None
    """The same after Holm's correction over all comparisons of the study."""
    smallest_p: float | None = None
    """The smallest ``p_corrected`` that so many seeds can give, for any accuracies."""
    finding: Finding = "no data"
    verdict: str = ""
    """The finding as a sentence, with its numbers."""


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


def bca_interval(differences: Sequence[float]) -> Interval | None:
    """Return the 95 % BCa bootstrap interval of the mean difference, always the same for the same.

    None for fewer than three values, and for values all alike, which resampling cannot vary.
    Source: Efron, Better Bootstrap Confidence Intervals, JASA 1987; :func:`scipy.stats.bootstrap`.
    """
    from scipy import stats

    # Equal differences of fractions such as 301/360 - 300/360 differ in the last bit.
    if len(differences) < 3 or np.ptp(differences) < 1e-12:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (differences,),
            np.mean,
            method="BCa",
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(0),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def sign_flip_p(differences: Any, axis: int = -1) -> Any:
    """Return the two-sided sign-flip (permutation) p of the mean difference along ``axis``.

    If a module changes nothing, each paired difference is as likely as its negative; p is the share
    of all 2^n sign patterns whose mean is at least as far from 0 as the one seen. It is exact up to
    16 seeds, and from 99,999 random patterns (always the same ones) above. Source: Fisher, The
    Design of Experiments, 1935, section 21; :func:`scipy.stats.permutation_test`.
    """
    from scipy import stats

    def mean(values: Any, axis: int) -> Any:
        # Sums that tie in exact arithmetic must tie here too: accuracies are multiples of 1/images.
        return np.round(np.mean(values, axis=axis), 12)

    found = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        mean,
        permutation_type="samples",
        n_resamples=99_999,
        vectorized=True,
        axis=axis,
        rng=np.random.default_rng(0),
    )
    return found.pvalue


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction (Scandinavian Journal of Statistics, 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def smallest_p(seeds: int) -> float:
    """Return the smallest two-sided p that a sign-flip test of so many pairs can give: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - seeds))


def seeds_needed(comparisons: int) -> int:
    """Return the number of seeds from which ``comparisons`` corrected p-values can reach 5 %."""
    return math.ceil(math.log2(2 * max(comparisons, 1) / LEVEL))


def study_statistics(summary: StudySummary) -> StudyStatistics:
    """Return the statistics of a study's finished runs, and their limits."""
    by_module: dict[str, dict[int, Record]] = {name: {} for name in summary.attention}
    for record in summary.records:
        by_module.setdefault(record.attention, {})[record.seed] = record
    if not by_module:
        return StudyStatistics("", [], ["The study names no attention module."])
    baseline = next(iter(by_module))
    found = {name: _accuracies(runs, summary.metric) for name, runs in by_module.items()}
    metric = summary.metric
    modules = [_module(name, runs, found, baseline, metric) for name, runs in by_module.items()]
    comparisons = [module.comparison for module in modules if module.comparison]
    _correct(comparisons)
    for comparison in comparisons:
        _judge(comparison, metric)
    notes = _notes(summary, modules, comparisons)
    return StudyStatistics(baseline, modules, notes, summary.metric)


def _accuracies(runs: dict[int, Record], metric: Metric) -> dict[int, float]:
    found = {seed: run.final.get(metric.key, math.nan) for seed, run in sorted(runs.items())}
    return {seed: accuracy for seed, accuracy in found.items() if math.isfinite(accuracy)}


def _module(
    name: str,
    runs: dict[int, Record],
    accuracies: dict[str, dict[int, float]],
    baseline: str,
    metric: Metric,
) -> ModuleStatistics:
    found = accuracies[name]
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
        comparison=None if name == baseline else _compare(found, baseline, accuracies[baseline]),
    )


def has_diverged(record: Record) -> bool:
    """Return whether a loss of the run, of any epoch or of the test, is not finite."""
    losses = [epoch.get("train_loss", math.nan) for epoch in record.epochs]
    losses += [epoch.get("val_loss", 0.0) for epoch in record.epochs]
    return not all(map(math.isfinite, [*losses, record.final.get("test_loss", 0.0)]))


def _compare(found: dict[int, float], baseline: str, base: dict[int, float]) -> Comparison:
    seeds = [seed for seed in found if seed in base]
    differences = [found[seed] - base[seed] for seed in seeds]
    return Comparison(
        baseline=baseline,
        seeds=seeds,
        differences=differences,
        mean=float(np.mean(differences)) if differences else None,
        interval=bca_interval(differences),
        p=float(sign_flip_p(differences)) if len(differences) > 1 else None,
    )


def _correct(comparisons: list[Comparison]) -> None:
    # A module without runs counts as p = 1, lest its first runs change the others' correction.
    corrected = holm([1.0 if c.p is None else c.p for c in comparisons])
    # Holm's correction grows with every p: the smallest of all give the smallest corrected ones.
    reachable = holm([smallest_p(len(c.seeds)) for c in comparisons])
    for comparison, p, smallest in zip(comparisons, corrected, reachable, strict=True):
        comparison.p_corrected = None if comparison.p is None else p
        comparison.smallest_p = smallest


def _judge(c: Comparison, metric: Metric) -> None:
    if c.mean is None:
        c.finding = "no data"
        c.verdict = f"nothing to compare: no seed is finished with both this and {c.baseline}"
        return
    unit = metric.difference_unit
    against = f"{metric.difference(c.mean)} {unit} against {c.baseline}"
    if c.smallest_p is not None and c.smallest_p > LEVEL:
        c.finding, start = "too few seeds", f"too few seeds to tell: {against}"
    elif c.p_corrected is not None and c.p_corrected <= LEVEL:
        c.finding = "higher" if c.mean > 0 else "lower"
        by = metric.difference(abs(c.mean), sign=False)
        start = f"{c.finding} than {c.baseline} by {by} {unit}"
        if not metric.higher_is_better:
            start += f", which is {'worse' if c.mean > 0 else 'better'}"
    else:
        c.finding, start = "no evidence", f"no evidence of a difference: {against}"
    interval = "no interval: " + no_interval(c.differences, 3)
    if c.interval:
        interval = f"95 % interval {' to '.join(map(metric.difference, c.interval))}"
    p = f", p = {format_p(c.p_corrected)} corrected" if c.p_corrected is not None else ", no p"
    c.verdict = f"{start} over {counted(len(c.seeds), 'seed')} ({interval}){p}"


def no_interval(values: Sequence[float], least: int) -> str:
    """Return why so many values have no interval."""
    return f"fewer than {least} seeds" if len(values) < least else "all seeds gave the same"


def format_p(p: float) -> str:
    """Return p with two significant digits, or ``<0.0001``."""
    return "<0.0001" if p < 1e-4 else f"{p:#.2g}"


def _notes(
    summary: StudySummary, modules: list[ModuleStatistics], comparisons: list[Comparison]
) -> list[str]:
    runs = [len(module.accuracies) for module in modules]
    if not any(runs):
        return []
    notes = []
    if max(runs) == 1:
        notes.append(
            "With 1 seed there is no spread to see: no standard deviation, no interval and no "
            "p-value. A difference between single runs may be chance alone."
            + (f" {_enough(len(comparisons))}" if comparisons else "")
        )
    if not comparisons:
        notes.append("There is only the baseline: nothing is compared.")
    notes += _out_of_reach([c for c in comparisons if len(c.seeds) > 1], len(comparisons))
    if sum(runs) < len(summary.seeds) * len(summary.attention):
        notes.append(
            "The study is not complete. Stopping as soon as a p-value is small would make chance "
            "findings more frequent than 5 %: judge the whole study."
        )
    return notes


def coverage_note(statistics: StudyStatistics) -> str:
    """Return how far the intervals of the differences can be trusted; "" for none, or for many seeds."""
    found = [m.comparison for m in statistics.modules if m.comparison and m.comparison.interval]
    seeds = min((len(c.seeds) for c in found), default=0)
    if seeds not in BCA_COVERAGE:
        return ""
    return (
        f"BCa intervals from few seeds are too narrow: in simulations with normal noise, those from "
        f"{seeds} seeds held the true difference {100 * BCA_COVERAGE[seeds]:.0f} % of the time, not 95."
    )


def _out_of_reach(comparisons: Iterable[Comparison], number: int) -> list[str]:
    """Sentences on comparisons that no accuracies could have brought to the 5 % level."""
    sentences = []
    for c in comparisons:
        if c.smallest_p is None or c.smallest_p <= LEVEL:
            continue
        alone, start = smallest_p(len(c.seeds)), f"With {counted(len(c.seeds), 'seed')}"
        if alone > LEVEL:
            start += f" the smallest possible p is {alone:.4g}"
        else:
            start += f" and {counted(number, 'comparison')} the smallest possible p after Holm's "
            start += f"correction is {c.smallest_p:.4g}"
        sentences.append(f"{start}: no difference can reach the 5 % level. {_enough(number)}")
    return list(dict.fromkeys(sentences))


def _enough(comparisons: int) -> str:
    seeds = counted(seeds_needed(comparisons), "seed")
    return f"It takes at least {seeds} for {counted(comparisons, 'comparison')}."
