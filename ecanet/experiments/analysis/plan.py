"""What a comparison would take before it is run: seeds and hours, from a pilot or a given spread."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ecanet.errors import UserError
from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.statistics import study_values
from ecanet.statistics.design import FIRST_LOOK, Design
from ecanet.statistics.difference import CORRELATIONS
from ecanet.statistics.power import STUDIES, power

SEEDS = (*range(3, 17), 18, 20, 22, 24, 28, 32, 40, 48, 64)
UNCORRELATED = 0.5
"""Prior probability that the runs of one seed do not correlate. More than that of the test: what a pilot
takes for correlated and is not would get less power than was promised."""
ENOUGH = 0.99
"""Power of both designs from which no more seeds are looked at."""


@dataclass(frozen=True)
class Spread:
    """How runs vary over seeds, in units of the metric, and how well that is known."""

    sd: float
    """Standard deviation of the runs of one module."""
    correlation: float
    """Of the runs of one seed."""
    df: float = math.inf
    """Degrees of freedom that ``sd`` was estimated with; infinite for a given one."""
    seeds: int | None = None
    """Seeds that ``correlation`` was estimated from; None for a given one."""
    seconds: float | None = None
    """Of one run; None if unknown."""

    def draws(self, studies: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return what ``sd`` and ``correlation`` may truly be, one of each per study."""
        generator = np.random.default_rng(seed)
        sds = np.full(studies, self.sd)
        if not math.isinf(self.df):
            sds = self.sd * np.sqrt(self.df / generator.chisquare(self.df, studies))
        if self.seeds is None:
            return sds, np.full(studies, self.correlation)
        # As in ecanet.statistics.difference, with another prior.
        true = np.concatenate([[0.0], CORRELATIONS])
        prior = np.full(len(true), (1 - UNCORRELATED) / len(CORRELATIONS))
        prior[0] = UNCORRELATED
        z = math.atanh(float(np.clip(self.correlation, -0.999, 0.999)))
        posterior = prior * np.cosh(z - true) ** (1.0 - self.seeds)
        drawn = generator.choice(true, studies, p=posterior / posterior.sum())
        return sds, np.tanh(drawn)


@dataclass(frozen=True)
class PlanRow:
    """What so many seeds give."""

    seeds: int
    """Of each module, or at most with --seeds auto."""
    fixed_power: float
    """Probability that so many seeds, looked at once, find the wanted difference."""
    auto_power: float | None
    """The same with --seeds auto and this --max-seeds; None below four seeds."""
    auto_seeds: float | None
    """Seeds of each module that auto then trains on average."""
    equivalent: float | None
    """Probability that auto finds "equivalent" where nothing differs."""


def spread_of(summary: StudySummary) -> Spread:
    """Estimate the spread from the runs of a study.

    Raises:
        UserError: no module has two finished runs, or all runs gave the same.
    """
    found = estimate_spread(study_values(summary), summary.resolution)
    times = [record.final["train_seconds"] for record in summary.records]
    return replace(found, seconds=float(np.mean(times)))


def estimate_spread(values: Mapping[str, Mapping[int, float]], resolution: float = 0.0) -> Spread:
    """Estimate the spread from values by module and seed.

    Args:
        values: of the runs.
        resolution: step between two possible values; 0 if there is none.

    Raises:
        UserError: no module has two values, or all are the same.
    """
    modules = [found for found in values.values() if len(found) > 1]
    if not modules:
        raise UserError("no module has two finished runs: train at least two seeds")
    df = sum(len(found) - 1 for found in modules)
    variance = sum((len(f) - 1) * np.var(list(f.values()), ddof=1) for f in modules) / df
    variance += resolution**2 / 12
    if variance <= 0:
        raise UserError("all runs gave the same result, so there is no spread to plan with")
    common = sorted(set.intersection(*map(set, modules)))
    correlation, seeds = 0.0, 1
    if len(common) > 1 and len(modules) > 1:
        covariance = np.cov([[found[seed] for seed in common] for found in modules])
        off = covariance[~np.eye(len(modules), dtype=bool)].mean()
        correlation, seeds = float(np.clip(off / variance, -0.95, 0.95)), len(common)
    # Modules of one seed are not independent.
    shared = max(correlation, 0.0)
    independent = df * (1 - shared) + (max(map(len, modules)) - 1) * shared
    return Spread(float(np.sqrt(variance)), correlation, float(independent), seeds)


def plan_rows(
    spread: Spread,
    effect: float,
    *,
    comparisons: int = 1,
    confidence: float = 0.95,
    margin: float | None = None,
    seeds: Sequence[int] = SEEDS,
    studies: int = STUDIES,
) -> list[PlanRow]:
    """Return the power of designs with so many seeds to find a difference of ``effect``.

    Averaged over what the spread may truly be, so that a small pilot promises no more than it can.

    Args:
        spread: of the runs.
        effect: the difference to find, in units of the metric.
        comparisons: modules beside the baseline.
        confidence: of the study.
        margin: the smallest difference that matters; by default ``effect``.
        seeds: numbers of seeds to look at, in turn until the power is all but certain.
        studies: to simulate for each.
    """
    sd, correlation = spread.draws(studies)
    margin = effect if margin is None else margin

    def simulate(design: Design, difference: float) -> tuple[float, float, float]:
        found = power(
            design, difference, sd=sd, correlation=correlation, margin=margin, studies=studies
        )
        return found.better, found.equivalent, found.seeds

    rows = []
    for n in seeds:
        fixed, auto = (Design(n, kind, confidence, comparisons) for kind in (False, True))
        found, _, _ = simulate(fixed, effect)
        if n < FIRST_LOOK:
            rows.append(PlanRow(n, found, None, None, None))
            continue
        better, _, trained = simulate(auto, effect)
        _, same, _ = simulate(auto, 0.0)
        rows.append(PlanRow(n, found, better, trained, same))
        if min(found, better) >= ENOUGH:
            break
    return rows


def needed(rows: Sequence[PlanRow], chance: float) -> tuple[PlanRow | None, PlanRow | None]:
    """Return the first rows whose fixed and whose auto power reach ``chance``."""
    fixed = next((row for row in rows if row.fixed_power >= chance), None)
    auto = next((row for row in rows if (row.auto_power or 0.0) >= chance), None)
    return fixed, auto


def smallest_found(
    spread: Spread,
    effect: float,
    chance: float,
    seeds: int,
    *,
    comparisons: int = 1,
    confidence: float = 0.95,
    studies: int = STUDIES // 2,
) -> float | None:
    """Return a round difference above ``effect`` that auto with so many seeds finds with ``chance``.

    Args:
        spread: of the runs.
        effect: a difference that so many seeds do not find, in units of the metric.
        chance: power that is wanted, 0..1.
        seeds: at most, of each module.
        comparisons: modules beside the baseline.
        confidence: of the study.
        studies: to simulate for each difference that is tried.

    Returns:
        The smallest of 1, 1.5, 2, 3, 5 and 7 times a power of ten that is found, as both the margin and the
        true difference; None if none below about 1000 times ``effect`` is.
    """
    start = math.floor(math.log10(effect))
    steps = [float(f"{d}e{e}") for e in range(start, start + 4) for d in (1, 1.5, 2, 3, 5, 7)]
    steps = [step for step in steps if step > effect * (1 + 1e-9)]
    sd, correlation = spread.draws(studies)
    design = Design(seeds, True, confidence, comparisons)

    def finds(step: float) -> bool:
        found = power(design, step, sd=sd, correlation=correlation, margin=step, studies=studies)
        return found.better >= chance

    place = bisect.bisect_left(steps, True, key=finds)
    return steps[place] if place < len(steps) else None
