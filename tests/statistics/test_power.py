"""Simulated power, against the noncentral t distribution."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from ecanet.statistics.design import Design
from ecanet.statistics.power import detectable, power


@pytest.mark.parametrize(("seeds", "effect"), [(6, 1.5), (10, 1.0)])
def test_power_of_correlated_seeds_is_that_of_the_paired_t_test(seeds: int, effect: float) -> None:
    # Where seeds correlate by 0.99 the unpaired test has no weight.
    design, deviation = Design(seeds, sequential=False), math.sqrt(2 * 0.01)
    level = design.level(seeds)
    critical = stats.t.isf(level / 2, seeds - 1)
    noncentral = effect * math.sqrt(seeds)
    exact = stats.nct.sf(critical, seeds - 1, noncentral)
    found = power(design, effect * deviation, correlation=0.99, margin=1e-9, studies=20_000)
    assert found.better == pytest.approx(exact, abs=0.02)
    assert found.seeds == seeds


def test_the_detectable_difference_is_detected() -> None:
    design = Design(8, sequential=False)
    effect = detectable(design, 0.8)
    critical = stats.t.isf(design.level(8) / 2, 7)
    assert stats.nct.sf(critical, 7, effect * math.sqrt(8)) == pytest.approx(0.8, abs=0.001)
    assert detectable(Design(2, sequential=False)) == math.inf


def test_shares_add_up_and_the_same_seed_gives_the_same() -> None:
    found = power(Design(12), 0.5, margin=1.0, studies=500)
    assert found == power(Design(12), 0.5, margin=1.0, studies=500)
    assert found.better + found.worse + found.equivalent + found.undecided == pytest.approx(1)


def test_a_spread_per_study_is_averaged_over() -> None:
    import numpy as np

    wide, narrow = (
        power(Design(6, sequential=False), 1.0, sd=sd, margin=1.0, studies=2000).better
        for sd in (2.0, 0.5)
    )
    mixed = power(
        Design(6, sequential=False), 1.0, sd=np.tile([2.0, 0.5], 1000), margin=1.0, studies=2000
    ).better
    assert mixed == pytest.approx((wide + narrow) / 2, abs=0.03)
    assert wide < mixed < narrow
