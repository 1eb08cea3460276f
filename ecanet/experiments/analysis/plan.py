"""What a comparison would take before it is run: seeds and hours, from a pilot or a given spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ecanet.errors import UserError
from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.statistics import study_values
from ecanet.statistics.design import FIRST_LOOK, Design
from ecanet.statistics.power import STUDIES, power

SEEDS = (*range(3, 17), 18, 20, 22, 24, 28, 32, 40, 48, 64)


@dataclass(frozen=True)
class Spread:
    """How runs vary over seeds, in units of the metric, and how well that is known."""

    sd: float
    """Standard deviation of the runs of one module."""
    correlation: float
    """Of the runs of one seed, 0 to 1."""
    df: float = math.inf
    """Degrees of freedom that ``sd`` was estimated with; infinite for a given one."""
    seconds: float | None = None
    """Of one run; None if unknown."""

    def draws(self, studies: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return what ``sd`` and ``correlation`` may truly be, one of each per study."""
        generator = np.random.default_rng(seed)
        if math.isinf(self.df):
            return np.full(studies, self.sd), np.full(studies, self.correlation)
        sds = self.sd * np.sqrt(self.df / generator.chisquare(self.df, studies))
        z = math.atanh(min(self.correlation, 0.95)) + generator.standard_normal(
            studies
        ) / math.sqrt(max(self.df, 1))
        return sds, np.tanh(np.clip(z, 0.0, 1.8))


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
        UserError: no module has two finished runs.
    """
    values = study_values(summary)
    arms = [list(found.values()) for found in values.values() if len(found) > 1]
    if not arms:
        raise UserError("the study has no module with two finished runs: train at least two seeds")
    df = sum(len(arm) - 1 for arm in arms)
    variance = sum((len(arm) - 1) * np.var(arm, ddof=1) for arm in arms) / df
    variance += summary.resolution**2 / 12
    if variance <= 0:
        raise UserError("all runs of the study gave the same: it shows no spread to plan with")
    common = set.intersection(*[set(found) for found in values.values() if len(found) > 1])
    correlation = 0.0
    if len(common) > 1 and len(arms) > 1:
        table = np.array(
            [[found[s] for s in sorted(common)] for found in values.values() if len(found) > 1]
        )
        covariance = np.cov(table)
        off = covariance[~np.eye(len(table), dtype=bool)].mean()
        correlation = float(np.clip(off / variance, 0.0, 0.95))
    # Arms of one seed are not independent.
    independent = df * (1 - correlation) + (max(map(len, arms)) - 1) * correlation
    times = [record.final["train_seconds"] for record in summary.records]
    return Spread(float(np.sqrt(variance)), correlation, float(independent), float(np.mean(times)))


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
        seeds: numbers of seeds to look at.
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
    return rows


def needed(rows: Sequence[PlanRow], chance: float) -> tuple[PlanRow | None, PlanRow | None]:
    """Return the first rows whose fixed and whose auto power reach ``chance``."""
    fixed = next((row for row in rows if row.fixed_power >= chance), None)
    auto = next((row for row in rows if (row.auto_power or 0.0) >= chance), None)
    return fixed, auto
