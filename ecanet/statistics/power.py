"""How probably a design finds a difference, and with how many seeds: by simulating studies.

The simulated accuracies are judged by the code that judges real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ecanet.statistics.design import FIRST_LOOK, Design
from ecanet.statistics.difference import FEWEST, Pairing, difference

STUDIES = 4000
"""Simulated for each figure: the standard error of a power of 80 % is 0.6 points."""


@dataclass(frozen=True)
class Outcome:
    """What simulated studies of one module against the baseline found; shares of 1."""

    better: float
    worse: float
    equivalent: float
    seeds: float
    """Mean number of seeds that were trained."""
    covered: float
    """Share of studies whose last interval held the true difference."""

    @property
    def undecided(self) -> float:
        return 1 - self.better - self.worse - self.equivalent


def normal(
    generator: np.random.Generator, studies: int, seeds: int, correlation: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return standard normal results of two modules that do not differ, (studies, seeds) each.

    Args:
        generator: of the random numbers.
        studies: number of studies.
        seeds: seeds of each.
        correlation: of the results of one seed, 0 to 1; a number or one per study.
    """
    rho = np.broadcast_to(np.asarray(correlation, dtype=float), (studies,))[:, None]
    common = np.sqrt(rho) * generator.standard_normal((studies, seeds))
    own = np.sqrt(1 - rho) * generator.standard_normal((2, studies, seeds))
    return common + own[0], common + own[1]


def judge(
    x: np.ndarray,
    y: np.ndarray,
    truth: Any,
    design: Design,
    margin: Any,
    *,
    pairing: Pairing = "auto",
    resolution: float = 0.0,
) -> Outcome:
    """Return what studies with these results find, each stopped as its design says.

    Args:
        x: (studies, seeds) results of the module, for as many seeds as the design plans.
        y: those of the baseline.
        truth: the true difference; a number or one per study.
        design: a fixed or a sequential one.
        margin: differences up to this one are equivalent; a number or one per study.
        pairing: how seeds are taken.
        resolution: step between two possible results.
    """
    studies = len(x)
    truth, margin = (
        np.broadcast_to(np.asarray(v, dtype=float), (studies,)) for v in (truth, margin)
    )
    counts = np.zeros(3)
    trained, covered, open_ = 0, 0, np.arange(studies)
    looks = range(FIRST_LOOK, design.seeds + 1) if design.sequential else [design.seeds]
    for n in looks:
        if n < FEWEST:
            return Outcome(0.0, 0.0, 0.0, n, 1.0)
        found = difference(x[open_, :n], y[open_, :n], pairing=pairing, resolution=resolution)
        half, limit = design.half_width(found), margin[open_]
        low, high = found.mean - half, found.mean + half
        up, down = low > 0, high < 0
        within = (-limit < low) & (high < limit) & ~up & ~down
        ended = up | down | within
        if design.sequential:
            ended |= design.futile(found, limit)
        if n == design.seeds:
            ended[:] = True
        counts += [np.sum(kind & ended) for kind in (up, down, within)]
        trained += n * int(ended.sum())
        covered += int(np.sum(ended & (np.abs(found.mean - truth[open_]) <= half)))
        open_ = open_[~ended]
    better, worse, equivalent = map(float, counts / studies)
    return Outcome(better, worse, equivalent, trained / studies, covered / studies)


def power(
    design: Design,
    effect: float,
    *,
    sd: Any = 1.0,
    correlation: Any = 0.0,
    margin: float,
    studies: int = STUDIES,
    seed: int = 0,
) -> Outcome:
    """Simulate a design on normal results.

    Args:
        design: the design.
        effect: the true difference.
        sd: standard deviation of the runs of one module; a number or one per study.
        correlation: of the runs of one seed; a number or one per study.
        margin: differences up to this one are equivalent.
        studies: to simulate.
        seed: of the random numbers, so that two designs are compared on the same ones.
    """
    x, y = normal(np.random.default_rng(seed), studies, design.seeds, correlation)
    scale = np.broadcast_to(np.asarray(sd, dtype=float), (studies,))
    # In units of one run's standard deviation.
    return judge(x + (effect / scale)[:, None], y, effect / scale, design, margin / scale)


def detectable(design: Design, chance: float = 0.8) -> float:
    """Return the difference that a fixed design finds with probability ``chance``.

    In standard deviations of the paired differences; infinite if the seeds are too few.
    """
    from statsmodels.stats.power import TTestPower

    level = design.level(design.seeds)
    if level is None:
        return float("inf")
    return float(TTestPower().solve_power(nobs=design.seeds, alpha=level, power=chance))
