"""Levels of fixed and sequential designs, and what they say of the seeds to come."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ecanet.statistics.design import FIRST_LOOK, Design, finding_of
from ecanet.statistics.difference import difference
from ecanet.statistics.power import judge, normal, power


def ever_wrong(design: Design, correlation: float, studies: int, most: int) -> float:
    """Return the share of studies without a difference that find one at any number of seeds."""
    x, y = normal(np.random.default_rng(3), studies, most, correlation)
    wrong = np.zeros(studies, dtype=bool)
    for n in range(3, most + 1):
        level = design.level(n)
        if level is not None:
            wrong |= difference(x[:, :n], y[:, :n]).p_value() < level
    return float(wrong.mean())


@pytest.mark.parametrize(
    "design", [Design(12), Design(8), Design(6, sequential=False), Design(12, sequential=False)]
)
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_any_number_of_looks_and_extensions_finds_too_much_at_most_at_its_level(
    design: Design, correlation: float
) -> None:
    studies = 3000
    found = ever_wrong(design, correlation, studies, 18)
    assert found <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert found > 0.02, "a design that never finds anything would pass"


def test_levels_rise_to_the_planned_seeds_and_fall_behind_them() -> None:
    design = Design(12)
    levels = [design.level(n) for n in range(FIRST_LOOK, 25)]
    assert all(level is not None and 0 < level < 0.05 for level in levels)
    assert levels[:9] == sorted(levels[:9])
    assert levels[8:] == sorted(levels[8:], reverse=True)
    assert design.level(3) is None


def test_a_fixed_design_spends_nearly_all_at_its_look() -> None:
    design = Design(6, sequential=False)
    assert 0.04 < design.level(6) < 0.05
    assert max(design.level(n) for n in (4, 5, 7, 8, 12)) < 0.003
    assert design.level(3) is None
    assert Design(2, sequential=False).level(2) is None
    assert Design(3, sequential=False).level(3) is not None


def test_more_comparisons_and_more_confidence_lower_the_levels() -> None:
    for n in (4, 8, 12):
        base = Design(12).level(n)
        assert Design(12, comparisons=3).level(n) < base / 2
        assert Design(12, confidence=0.99).level(n) < base / 3
    assert Design(12, comparisons=200, confidence=0.999).level(12) > 0


@pytest.mark.parametrize("seeds", [4, 5, 9, 11, 13, 40, 100])
def test_there_are_levels_for_every_number_of_seeds(seeds: int) -> None:
    known = Design(12).level(12), Design(seeds).level(seeds)
    assert 0.3 < known[1] / known[0] < 3
    assert 0.04 < Design(seeds, sequential=False).level(seeds) < 0.06


def test_findings_follow_from_the_interval() -> None:
    assert finding_of((0.001, 0.02), 0.005) == "better"
    assert finding_of((-0.02, -0.001), 0.005) == "worse"
    assert finding_of((-0.02, -0.001), 0.005, higher_is_better=False) == "better"
    assert finding_of((-0.004, 0.0049), 0.005) == "equivalent"
    assert finding_of((-0.004, 0.006), 0.005) == "undecided"
    assert finding_of((-math.inf, math.inf), 0.005) == "undecided"
    # Both: the difference is there, and small.
    assert finding_of((0.001, 0.003), 0.005) == "better"


@pytest.mark.parametrize(("effect", "margin"), [(0.8, 0.5), (0.0, 1.2), (0.3, 0.9)])
def test_answers_come_as_often_as_predicted(effect: float, margin: float) -> None:
    """The prediction from six seeds, averaged, against the same studies with twelve."""
    studies, design = 4000, Design(12)
    x, y = normal(np.random.default_rng(5), studies, 12, 0.3)
    # Effects vary as the prediction supposes: nothing is known of them but the data.
    truth = effect + np.random.default_rng(6).normal(0, 3, (studies, 1))
    early = difference(x[:, :6] + truth, y[:, :6])
    predicted = float(np.mean(design.answer_probability(early, 12, margin)))
    late = difference(x + truth, y)
    half = design.half_width(late)
    decided = (np.abs(late.mean) > half) | (np.abs(late.mean) + half < margin)
    assert predicted == pytest.approx(float(np.mean(decided)), abs=0.04)


def test_a_study_gives_up_only_where_no_answer_is_likely() -> None:
    noise = np.array([0.01, -0.01, 0.008, -0.008, 0.002, -0.002])
    x, y = 0.9 + noise, 0.9 + noise[::-1]
    hopeless = difference(x, y)
    assert bool(Design(12).futile(hopeless, 0.001))
    assert not bool(Design(12).futile(hopeless, 0.05))
    assert bool(Design(6).futile(hopeless, 0.05)), "no seed is left"
    assert Design(12).seeds_needed(hopeless, 1e-5) is None
    assert 6 < Design(12).seeds_needed(hopeless, 0.02) <= 200


def test_few_seeds_show_a_large_difference_and_many_a_small_one() -> None:
    large = power(Design(12), 3.0, margin=0.5, studies=2000)
    small = power(Design(12), 1.0, margin=0.5, studies=2000)
    assert large.better > 0.99
    assert large.seeds < 6 < small.seeds
    assert large.covered > 0.94
    assert small.covered > 0.94


def test_equivalent_is_rarely_wrong_at_the_margin() -> None:
    studies = 3000
    x, y = normal(np.random.default_rng(8), studies, 12, 0.3)
    for margin in (0.8, 1.5):
        found = judge(x + margin, y, margin, Design(12), margin)
        assert found.equivalent <= 0.05
    nothing = judge(x, y, 0.0, Design(12), 1.5)
    assert nothing.equivalent > 0.5
