"""The difference between the runs of two modules: its estimate, p-value and interval.

Runs with one seed share initial weights, data order and augmentation. Whether that makes their accuracies
correlate, so that comparing them in pairs pays, depends on network and data, and is itself estimated: the
paired and the unpaired t-test (Welch's) are averaged, weighted by how probable it is, given these runs, that
seeds do not correlate. All functions work on arrays whose last axis is the seeds, so that simulations call
the code that judges studies. docs/statistics.md has the reasons, and how well it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special
from scipy.optimize import elementwise

Pairing = Literal["auto", "paired", "unpaired"]
Array = Any
"""A float64 array, or a number where the seeds are the only axis."""

FEWEST = 3
"""Seeds from which there is a p-value and an interval."""
UNCORRELATED = 0.25
"""Prior probability that the runs of one seed do not correlate."""
CORRELATIONS = np.linspace(0, np.arctanh(0.95), 25)
"""Fisher's z of the correlations that are equally probable otherwise: 0 to 0.95."""


@dataclass(frozen=True)
class Difference:
    """A difference of means over n seeds, and what its error is judged by. Each field has the shape of the
    studies, () for one."""

    n: int
    mean: Array
    paired_error: Array
    """Standard error of the mean, from the differences seed by seed."""
    unpaired_error: Array
    """The same from the variances of both modules alone."""
    unpaired_df: Array
    """Degrees of freedom of the latter (Welch and Satterthwaite); the former has n - 1."""
    unpaired: Array
    """Weight of the unpaired test, 0 to 1: the probability that seeds do not correlate."""
    correlation: Array
    """Of the seeds: 2 covariance / (sum of the variances)."""

    @property
    def standard_error(self) -> Array:
        """Of the mean, both tests averaged."""
        w = self.unpaired
        return np.sqrt(w * self.unpaired_error**2 + (1 - w) * self.paired_error**2)

    @property
    def df(self) -> Array:
        """Degrees of freedom of ``standard_error``."""
        return self.unpaired * self.unpaired_df + (1 - self.unpaired) * (self.n - 1)

    def p_value(self, at: Array = 0.0) -> Array:
        """Return the averaged two-sided p of the hypothesis that the true difference is ``at``.

        It is compared with :meth:`ecanet.statistics.design.Design.level`, which is calibrated
        for it.
        """
        return _averaged_p(np.abs(self.mean - at), self.n - 1, *self._tests)

    def half_width(self, level: float) -> Array:
        """Return how far from the mean ``p_value`` falls to ``level``: half of the interval's width."""
        paired, unpaired, df, _ = self._tests
        ends = (
            -special.stdtrit(self.n - 1, level / 2) * paired,
            -special.stdtrit(df, level / 2) * unpaired,
        )
        # The root lies between the half-widths of both tests; a hair is for where they are the same.
        bracket = np.minimum(*ends) * (1 - 1e-9), np.maximum(*ends) * (1 + 1e-9)
        root = elementwise.find_root(
            lambda distance, *tests: _averaged_p(distance, self.n - 1, *tests) - level,
            bracket,
            args=self._tests,
        )
        return root.x

    @property
    def _tests(self) -> tuple[Array, Array, Array, Array]:
        return self.paired_error, self.unpaired_error, self.unpaired_df, self.unpaired


def has_spread(of: Sequence[float], baseline: Sequence[float], resolution: float = 0.0) -> bool:
    """Whether runs show how much they vary: those of a module do, or the step between two values is known."""
    return resolution > 0 or bool(max(np.ptp(of), np.ptp(baseline)) > 1e-12)


def difference(
    of: Array, baseline: Array, *, pairing: Pairing = "auto", resolution: float = 0.0
) -> Difference:
    """Estimate the difference of two modules' means.

    Args:
        of: (..., n) values of the module, such as test accuracies, over n seeds.
        baseline: (..., n) the baseline's with the same seeds.
        pairing: how seeds are taken; auto averages both tests by the evidence.
        resolution: step between two possible values: 1 / images for a share. No variance is taken for
            less than that of a value within one step, so that runs that happen to agree do not look exact.

    Raises:
        ValueError: there are fewer than ``FEWEST`` seeds.
    """
    x, y = np.asarray(of, dtype=float), np.asarray(baseline, dtype=float)
    n = x.shape[-1]
    if n < FEWEST:
        raise ValueError(f"{n} seeds: a difference takes {FEWEST}")
    step, nu = resolution**2 / 12, n - 1
    # Not 0: values that are all alike in both have next to no error.
    least = max(step, np.finfo(float).tiny ** 0.5)
    variances = [np.maximum(values.var(-1, ddof=1), least) for values in (x, y)]
    total = variances[0] + variances[1]
    paired = np.maximum((x - y).var(-1, ddof=1), 2 * least)
    correlation = np.clip((total - paired) / total, -1 + 1e-9, 1 - 1e-9)
    squares = variances[0] ** 2 + variances[1] ** 2
    if pairing == "auto":
        # With D = x - y and S = x + y, independent normals, log(s_S / s_D) is the z below, and its
        # likelihood under a true z is cosh(z - true)^-(n - 1).
        z = np.arctanh(correlation)
        none = UNCORRELATED * np.cosh(z) ** -nu
        some = (1 - UNCORRELATED) * np.mean(
            [np.cosh(z - true) ** -nu for true in CORRELATIONS], axis=0
        )
        unpaired = none / (none + some)
    else:
        unpaired = np.full(np.shape(total), float(pairing == "unpaired"))
    return Difference(
        n,
        (x - y).mean(-1),
        np.sqrt(paired / n),
        np.sqrt(total / n),
        np.clip(nu * total**2 / squares, nu, 2 * nu),
        unpaired,
        correlation,
    )


def _averaged_p(
    distance: Array, paired_df: int, paired: Array, unpaired: Array, df: Array, weight: Array
) -> Array:
    """Return both tests' two-sided p of a mean this far away, weighted."""
    return weight * _two_sided(distance / unpaired, df) + (1 - weight) * _two_sided(
        distance / paired, paired_df
    )


def _two_sided(t: Array, df: Array) -> Array:
    """Return the two-sided p of Student's t."""
    return 2 * special.stdtr(df, -np.abs(t))
