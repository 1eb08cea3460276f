"""A difference's p and interval, against scipy's t-tests and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ecanet.statistics.design import Design
from ecanet.statistics.difference import FEWEST, UNCORRELATED, difference
from ecanet.statistics.power import normal

X = np.array([0.912, 0.921, 0.917, 0.925, 0.914, 0.919])
Y = np.array([0.905, 0.913, 0.915, 0.916, 0.903, 0.914])


def test_paired_p_and_interval_are_those_of_the_paired_t_test() -> None:
    found, reference = difference(X, Y, pairing="paired"), stats.ttest_rel(X, Y)
    assert float(found.p_value()) == pytest.approx(reference.pvalue, rel=1e-9)
    low, high = reference.confidence_interval(0.95)
    half = float(found.half_width(0.05))
    assert (found.mean - half, found.mean + half) == pytest.approx((low, high), rel=1e-9)
    assert float(found.standard_error) == pytest.approx(stats.sem(X - Y))
    assert float(found.df) == 5


def test_unpaired_p_and_interval_are_welchs() -> None:
    found = difference(X, Y, pairing="unpaired")
    reference = stats.ttest_ind(X, Y, equal_var=False)
    assert float(found.p_value()) == pytest.approx(reference.pvalue, rel=1e-9)
    low, high = reference.confidence_interval(0.99)
    half = float(found.half_width(0.01))
    assert (found.mean - half, found.mean + half) == pytest.approx((low, high), rel=1e-9)


def test_the_averaged_p_lies_between_both_by_the_evidence() -> None:
    found = difference(X, Y)
    paired, unpaired = stats.ttest_rel(X, Y).pvalue, stats.ttest_ind(X, Y, equal_var=False).pvalue
    weight = float(found.unpaired)
    assert float(found.p_value()) == pytest.approx(weight * unpaired + (1 - weight) * paired)
    # By hand: the likelihood of Fisher's z, integrated over the prior.
    z = math.atanh(float(found.correlation))
    grid = np.linspace(0, math.atanh(0.95), 20_001)
    some = np.mean(np.cosh(z - grid) ** -5.0)
    none = math.cosh(z) ** -5
    by_hand = UNCORRELATED * none / (UNCORRELATED * none + (1 - UNCORRELATED) * some)
    assert weight == pytest.approx(by_hand, abs=0.01)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_correlation_is_estimated_and_decides_the_pairing(correlation: float) -> None:
    x, y = normal(np.random.default_rng(0), 2000, 20, correlation)
    found = difference(x, y)
    assert np.mean(found.correlation) == pytest.approx(correlation, abs=0.03)
    mostly_unpaired = np.mean(found.unpaired > 0.5)
    assert (mostly_unpaired > 0.5) == (correlation == 0.0)


def test_interval_and_p_are_the_same_test() -> None:
    x, y = normal(np.random.default_rng(1), 300, 7, 0.4)
    found = difference(x, y)
    for level in (0.2, 0.05, 0.001):
        half = found.half_width(level)
        for sign in (-1, 1):
            assert found.p_value(found.mean + sign * half) == pytest.approx(level, rel=1e-6)
        assert np.array_equal(np.abs(found.mean) > half, found.p_value() < level)


def test_swapping_the_modules_mirrors_everything() -> None:
    one, other = difference(X, Y), difference(Y, X)
    assert float(one.mean) == -float(other.mean)
    assert float(one.p_value(0.002)) == pytest.approx(float(other.p_value(-0.002)))


def test_runs_that_happen_to_agree_do_not_look_exact() -> None:
    x, y = np.full(6, 301 / 360), np.full(6, 300 / 360)
    exact, stepped = difference(x, y), difference(x, y, resolution=1 / 360)
    assert float(exact.p_value()) < 1e-12
    assert float(stepped.p_value()) == pytest.approx(
        float(difference(x, y, pairing="auto", resolution=1 / 360).p_value())
    )
    assert 0.0001 < float(stepped.p_value()) < 0.05
    # Where runs vary by more than a step, it changes nothing.
    assert float(difference(X, Y, resolution=1e-4).p_value()) == float(difference(X, Y).p_value())


def test_two_seeds_are_too_few() -> None:
    with pytest.raises(ValueError, match="2 seeds"):
        difference(X[: FEWEST - 1], Y[: FEWEST - 1])


@pytest.mark.parametrize("seeds", [4, 6, 12])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_intervals_of_fixed_designs_cover(seeds: int, correlation: float) -> None:
    """benchmarks/statistics_hold.py has more distributions, at 10,000 studies each."""
    studies = 4000
    x, y = normal(np.random.default_rng(seeds), studies, seeds, correlation)
    level = Design(seeds, sequential=False).level(seeds)
    assert level is not None
    held = float(np.mean(difference(x, y).p_value() > level))
    error = math.sqrt(0.05 * 0.95 / studies)
    assert 0.95 - 3 * error < held < 0.975 + 3 * error
