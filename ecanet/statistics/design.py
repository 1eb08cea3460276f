"""The design of a comparison: which p counts as a finding after how many seeds.

A sequential design looks at its results after every seed from the fourth on, and stops when they suffice.
Each look could find a difference by chance, so its level is lower: all looks together, at however many seeds
a study is extended to, find one with probability alpha. A fixed design looks once, at the seeds it was
planned with, and keeps a twentieth of alpha for whatever is looked at beside that. Levels were calibrated by
simulation (benchmarks/calibrate_levels.py). Source of group-sequential designs: Jennison and Turnbull, Group
Sequential Methods with Applications to Clinical Trials, 2000.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special

from ecanet.files import read_json
from ecanet.statistics.difference import FEWEST, Difference, Pairing, difference, has_spread

Interval = tuple[float, float]
Finding = Literal["better", "worse", "equivalent", "undecided", "no data"]

LEVELS = Path(__file__).with_name("levels.json")
FIRST_LOOK = 4
"""Seeds after which a sequential design looks for the first time."""
RESERVE = 0.05
"""Share of alpha that a fixed design keeps for looks before and after the one that was planned."""
FUTILE = 0.05
"""Probability of an answer by the last planned seed below which a sequential design gives up."""
PROBABLY = 0.8
"""Probability of an answer from which seeds "would probably tell"."""
_RISE, _FALL = 2, 6


class Judgement(NamedTuple):
    """What the runs of a module and the baseline show."""

    estimate: Difference | None
    """None with too few seeds, or where all runs of each module gave the same."""
    interval: Interval | None
    """Of the difference; None where there are too few seeds for one."""
    finding: Finding


def shape(share: Any) -> Any:
    """Return the levels of a sequential design, relative to that of its last planned look.

    Args:
        share: seeds, as a share of those planned at most.
    """
    share = np.asarray(share, dtype=float)
    return np.where(share <= 1, share**_RISE, share**-_FALL)


@dataclass(frozen=True)
class Design:
    """When a study's results are looked at, and with which chance of error."""

    seeds: int
    """Seeds planned: the only look of a fixed design, the last planned one of a sequential design."""
    sequential: bool = True
    confidence: float = 0.95
    """Probability that the intervals of all comparisons hold the true differences, at all looks together."""
    comparisons: int = 1
    """Number of modules that are compared with the baseline."""

    @property
    def alpha(self) -> float:
        """Chance of error of one comparison."""
        return (1 - self.confidence) / max(self.comparisons, 1)

    def level(self, n: int) -> float | None:
        """Return the p up to which a difference over ``n`` seeds counts; None if ``n`` are too few."""
        if not self.sequential and n == self.seeds:
            return _level("fixed", n, (1 - RESERVE) * self.alpha) if n >= FEWEST else None
        if n < FIRST_LOOK:
            return None
        planned = self.seeds if self.sequential else max(2 * self.seeds, FIRST_LOOK)
        alpha = self.alpha if self.sequential else RESERVE * self.alpha
        planned = max(planned, FIRST_LOOK)
        return _level("sequential", planned, alpha) * float(shape(n / planned))

    def half_width(self, found: Difference) -> Any:
        """Return half the width of the difference's interval; infinite if there are too few seeds."""
        level = self.level(found.n)
        return np.full(np.shape(found.mean), math.inf) if level is None else found.half_width(level)

    def judge(
        self,
        of: Sequence[float],
        baseline: Sequence[float],
        margin: float,
        *,
        higher_is_better: bool = True,
        pairing: Pairing = "auto",
        resolution: float = 0.0,
    ) -> Judgement:
        """Judge a module by its values and the baseline's with the same seeds.

        Args:
            of: the module's values.
            baseline: the baseline's.
            margin: differences up to this one are equivalent.
            higher_is_better: of the values.
            pairing: how seeds are taken.
            resolution: step between two possible values.
        """
        if len(of) < FEWEST or not has_spread(of, baseline, resolution):
            return Judgement(None, None, "undecided")
        estimate = difference(of, baseline, pairing=pairing, resolution=resolution)
        half = float(self.half_width(estimate))
        if math.isinf(half):
            return Judgement(estimate, None, "undecided")
        interval = float(estimate.mean) - half, float(estimate.mean) + half
        return Judgement(estimate, interval, finding_of(interval, margin, higher_is_better))

    def answer_probability(
        self, found: Difference, seeds: int, margin: float, *, anew: bool = False
    ) -> Any:
        """Predict how probably ``seeds`` seeds, those of ``found`` included, give an answer.

        An answer is an interval without 0, or one within the margin.

        Args:
            found: the difference so far.
            seeds: more than those so far.
            margin: differences up to this one are equivalent.
            anew: whether the seeds are those of another study, without those of ``found``.

        Returns:
            A probability for each study in ``found``.
        """
        level = self.level(seeds)
        if level is None:
            return np.zeros(np.shape(found.mean))
        n = found.n
        df = found.df * (seeds - 1) / (n - 1)
        deviation = found.standard_error * math.sqrt(n)
        half = -special.stdtrit(df, level / 2) * deviation / math.sqrt(seeds)
        spread = deviation * math.sqrt(1 / n + (1 / seeds if anew else -1 / seeds))

        def below(limit: Any) -> Any:
            return special.stdtr(found.df, (limit - found.mean) / spread)

        # Without an answer |mean| lies from margin - half to half.
        inner = np.maximum(margin - half, 0.0)
        none = below(half) - below(inner) + below(-inner) - below(-half)
        return np.where(half <= inner, 1.0, 1 - none)

    def futile(self, found: Difference, margin: float, most: int | None = None) -> Any:
        """Whether the seeds that are left, up to ``most`` or those planned, would hardly give an answer."""
        most = most or self.seeds
        if found.n >= most:
            return np.ones(np.shape(found.mean), dtype=bool)
        ends = {most, min(max(self.seeds, found.n + 1), most)}
        chances = [self.answer_probability(found, seeds, margin) for seeds in ends]
        return np.max(chances, axis=0) < FUTILE

    def seeds_needed(self, found: Difference, margin: float, most: int = 200) -> int | None:
        """Return with how many fresh seeds another study would probably give an answer."""
        for seeds in [*range(FIRST_LOOK, 41), *range(44, most + 1, 4)]:
            design = replace(self, seeds=seeds, sequential=True)
            if design.answer_probability(found, seeds, margin, anew=True) >= PROBABLY:
                return seeds
        return None


def finding_of(interval: Interval, margin: float, higher_is_better: bool = True) -> Finding:
    """Return what the interval of a difference shows."""
    low, high = interval
    if low > 0 or high < 0:
        return "better" if (low > 0) == higher_is_better else "worse"
    return "equivalent" if -margin < low and high < margin else "undecided"


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = read_json(LEVELS) or {}
    return table


@functools.lru_cache(maxsize=4096)
def _level(kind: str, seeds: int, alpha: float) -> float:
    """Return the calibrated level, relative to alpha interpolated between those of the table."""
    table = _table()
    alphas = np.array(table["alpha"])[::-1]
    known = sorted(map(int, table[kind]))
    at = [
        np.interp(math.log(alpha), np.log(alphas), np.array(table[kind][str(n)])[::-1] / alphas)
        for n in known
    ]
    return float(alpha * np.interp(math.log(seeds), np.log(known), at))
