"""One verdict over several cells, each a network on a data set.

Every cell counts the same, whatever its spread, so that the question is "on average over these networks and
data sets". Around the one mean there are two intervals: with other seeds for the same cells, and for other
networks and data sets like these. docs/several.md gives the reasons and the coverage that was simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ecanet.statistics.design import Finding, Interval, finding_of

LEAST_FOR_OTHERS = 3
"""Cells from which an interval for other networks and data sets is given."""
LEAST_MODULES, LEAST_CELLS = 3, 5
"""Modules and cells from which ranks are tested: below, Friedman's approximation does not hold."""


@dataclass(frozen=True)
class CellDifference:
    """A module against the baseline in one cell; values in the unit of the metric."""

    cell: str
    mean: float
    standard_error: float
    df: float
    """Degrees of freedom of the standard error."""
    widening: float = 1.0
    """How much wider the cell's interval is than Student's t, as its results were looked at several times."""


@dataclass(frozen=True)
class Overall:
    """A module against the baseline over cells; values in the unit of the metric."""

    cells: list[str]
    """Those that count."""
    mean: float | None
    """Of the cells' mean differences, with equal weights."""
    standard_error: float | None
    """With other seeds in the same cells."""
    df: float | None
    interval: Interval | None
    """For these networks and data sets: with other seeds."""
    others: Interval | None
    """For other networks and data sets like these; None for fewer than three cells."""
    tau: float | None
    """Standard deviation of the true differences between cells."""
    i_squared: float | None
    """Share of the variance between the cells' means that is not due to seeds, 0..1."""
    heterogeneous: bool | None
    """Whether the cells differ by more than seeds explain, by an F test at the 5 % level."""
    finding: Finding


def combine(
    differences: Sequence[CellDifference],
    *,
    confidence: float = 0.95,
    comparisons: int = 1,
    margin: float = 0.0,
    higher_is_better: bool = True,
) -> Overall:
    """Combine a module's differences over cells.

    For these cells: the mean of the means, its standard error from theirs, Student's t with Satterthwaite's
    degrees of freedom (Biometrics Bulletin 1946), widened as the cells' own intervals are. For others like
    these: a random-effects interval, that of Hartung and Knapp (Statistics in Medicine 2001) with equal
    weights, which is Student's t over the cells' means, never narrower than their seeds allow (the ad hoc
    correction). tau: Hedges and Olkin's moment estimate, which needs no weights from variances that few seeds
    estimate badly.

    Args:
        differences: one for each cell.
        confidence: of both intervals, for all comparisons together (Bonferroni's correction).
        comparisons: modules that are compared with the baseline.
        margin: differences up to this one are equivalent.
        higher_is_better: whether high values of the metric are good.
    """
    from scipy import stats

    names, k = [one.cell for one in differences], len(differences)
    if not k:
        return Overall([], None, None, None, None, None, None, None, None, "no data")
    means = np.array([one.mean for one in differences])
    variances = np.array([one.standard_error**2 for one in differences])
    mean, within = float(means.mean()), float(variances.mean())
    widened = variances * np.array([one.widening for one in differences]) ** 2
    each = np.array([one.df for one in differences])
    error, df = math.sqrt(within / k), _satterthwaite(variances, each)
    tail, wide_df = 1 - (1 - confidence) / (2 * comparisons), _satterthwaite(widened, each)
    half = float(stats.t.ppf(tail, wide_df)) * math.sqrt(widened.mean() / k)
    interval = (mean - half, mean + half)
    others = tau = i_squared = heterogeneous = None
    if k > 1:
        between = float(means.var(ddof=1))
        tau = math.sqrt(max(0.0, between - within))
        i_squared = max(0.0, between - within) / between if between else 0.0
        heterogeneous = bool(between > widened.mean() * stats.f.ppf(0.95, k - 1, wide_df))
    if k >= LEAST_FOR_OTHERS:
        wide = float(stats.t.ppf(tail, k - 1)) * math.sqrt(max(between, widened.mean()) / k)
        others = (mean - wide, mean + wide)
    finding = finding_of(interval, margin, higher_is_better)
    return Overall(names, mean, error, df, interval, others, tau, i_squared, heterogeneous, finding)


def _satterthwaite(variances: np.ndarray, df: np.ndarray) -> float:
    """Return the degrees of freedom of a sum of independent variances."""
    total = float(variances.sum())
    return total**2 / float((variances**2 / df).sum()) if total else float(df.sum())


class Ranks(NamedTuple):
    """Ranks of modules over cells, 1 the best."""

    mean: dict[str, float]
    cells: int
    p: float | None
    """Friedman's test that all modules are alike; None for few modules or cells."""
    critical_difference: float | None
    """Nemenyi's: mean ranks that differ by more belong to modules that differ."""


def rank(
    scores: Sequence[Mapping[str, float]], higher_is_better: bool = True, confidence: float = 0.95
) -> Ranks | None:
    """Rank modules by their mean metric in each cell.

    Args:
        scores: by module, for each cell; cells that lack a module are left out.
        higher_is_better: whether high values of the metric are good.
        confidence: of the critical difference.

    Returns:
        The mean ranks, the best first; None if there are not two modules and two cells to rank. Source:
        Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006.
    """
    from scipy import stats

    modules = list(dict.fromkeys(name for cell in scores for name in cell))
    table = np.array([[c[m] for m in modules] for c in scores if all(m in c for m in modules)])
    n, k = len(table), len(modules)
    if n < 2 or k < 2:
        return None
    ranks = stats.rankdata(-table if higher_is_better else table, axis=1)
    means = dict(
        sorted(zip(modules, map(float, ranks.mean(axis=0)), strict=True), key=lambda m: m[1])
    )
    if k < LEAST_MODULES or n < LEAST_CELLS:
        return Ranks(means, n, None, None)
    # Of cells in which all modules tie, Friedman's statistic is not defined.
    p = float(stats.friedmanchisquare(*table.T).pvalue) if np.ptp(ranks) else 1.0
    q = float(stats.studentized_range.ppf(confidence, k, math.inf)) / math.sqrt(2)
    return Ranks(means, n, p, q * math.sqrt(k * (k + 1) / (6 * n)))
