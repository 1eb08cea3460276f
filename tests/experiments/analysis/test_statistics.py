"""The statistics against scipy, hand counts, and studies in which nothing differs."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from helpers.synthetic import make_accuracies, make_record, make_summary
from scipy import stats

from ecanet.experiments.analysis.compare import ACCURACY
from ecanet.experiments.analysis.statistics import (
    BCA_COVERAGE,
    LEVEL,
    bca_interval,
    coverage_note,
    format_p,
    holm,
    mean_interval,
    seeds_needed,
    sign_flip_p,
    smallest_p,
    study_statistics,
)

pytestmark = pytest.mark.usefixtures("quick_collections")


def comparison_of(accuracies: dict[str, list[float]], name: str = "eca", seeds: int | None = None):
    found = study_statistics(make_summary(accuracies, seeds=seeds, epochs=0))
    return next(m.comparison for m in found.modules if m.attention == name)


# Intervals


def test_mean_interval_is_that_of_student_among_accuracies() -> None:
    values = [0.91, 0.93, 0.92, 0.925, 0.918]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((low, high), rel=1e-12)
    # By hand: two values a apart have the interval mean ± 12.706 a / 2.
    assert mean_interval([0.5, 0.51]) == pytest.approx((0.505 - 0.06353, 0.505 + 0.06353), abs=1e-5)
    assert mean_interval([0.99, 1.0])[1] == 1.0
    assert mean_interval([0.01, 0.0])[0] == 0.0
    assert [mean_interval(values) for values in ([], [0.9], [0.9, 0.9, 0.9])] == [None] * 3


@pytest.mark.parametrize(
    "values",
    [
        [1.03, 2.17, 4.41, 9.29, 3.08, 5.66],
        [-0.31, 0.11, 0.23, 0.257, 0.64, 0.02],
        [0.01, 0.13, 1.07, 3.33, 8.21, 0.4],
    ],
)
def test_bca_interval_is_efrons(values: list[float]) -> None:
    """All 6^6 resamples and Efron's formulas, against 9999 random resamples."""
    data = np.array(values)
    means = np.stack(np.meshgrid(*[data] * len(data))).mean(axis=0).ravel()
    below = (np.mean(means < data.mean()) + np.mean(means <= data.mean())) / 2
    bias = stats.norm.ppf(below)
    jackknife = np.array([np.delete(data, i).mean() for i in range(len(data))])
    centered = jackknife.mean() - jackknife
    acceleration = (centered**3).sum() / (6 * (centered**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([0.025, 0.975])
    ranks = stats.norm.cdf(bias + z / (1 - acceleration * z))
    found = bca_interval(values)
    assert [np.mean(means <= end) for end in found] == pytest.approx(list(ranks), abs=0.01)
    assert found == bca_interval(values), "the same differences give the same interval"


def test_bca_interval_needs_three_values_that_differ() -> None:
    equal = [k / 360 - (k - 1) / 360 for k in range(300, 306)]
    for values in ([], [0.1], [0.1, 0.2], [0.0] * 6, [0.01] * 6, equal):
        assert bca_interval(values) is None


@pytest.mark.parametrize("seeds", [4, 6, 10])
def test_bca_intervals_cover_what_the_table_says(seeds: int) -> None:
    studies, expected = 600, BCA_COVERAGE[seeds]
    samples = np.random.default_rng(seeds).normal(size=(studies, seeds))
    held = np.mean([low <= 0 <= high for low, high in map(bca_interval, samples)])
    assert held == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / studies))
    assert held > 0.87 or seeds < 10


def test_the_coverage_note_is_for_the_fewest_seeds() -> None:
    accuracies = make_accuracies({"none": 0, "se": 0, "eca": 0}, 8)
    accuracies["se"] = accuracies["se"][:4]
    note = coverage_note(study_statistics(make_summary(accuracies, epochs=0)))
    assert "4 seeds" in note
    assert "80 %" in note
    assert coverage_note(study_statistics(make_summary({"none": [0.9]}, epochs=0))) == ""


# The sign-flip test


def enumerated_p(values: list[Fraction]) -> float:
    """Count the sign patterns by hand, in exact arithmetic."""
    seen = abs(sum(values))
    signs = list(itertools.product((1, -1), repeat=len(values)))
    extreme = sum(abs(sum(s * v for s, v in zip(p, values, strict=True))) >= seen for p in signs)
    return extreme / len(signs)


def test_sign_flip_p_of_known_cases() -> None:
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    # |1 + 2 - 3| = 0: every pattern is as far from 0.
    assert sign_flip_p([1, 2, -3]) == 1.0
    # 4 of the 16 patterns of 1, 2, 3, 4 reach 8 or more: +10, +8 and their negatives.
    assert sign_flip_p([-1, 2, 3, 4]) == 4 / 16
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_p([0.01] * 6) == 2 / 64


@pytest.mark.parametrize("seeds", [2, 3, 5, 6, 8, 10])
@pytest.mark.parametrize("images", [360, 10_000, 7])
def test_sign_flip_p_is_the_enumerated_one(seeds: int, images: int) -> None:
    """On accuracies that are multiples of 1/images, where exact ties abound and floats blur them."""
    generator = np.random.default_rng([seeds, images])
    for _ in range(4):
        right = generator.integers(images // 2, images, size=(2, seeds))
        exact = [Fraction(int(a) - int(b), images) for a, b in right.T]
        floats = [int(a) / images - int(b) / images for a, b in right.T]
        assert float(sign_flip_p(floats)) == pytest.approx(enumerated_p(exact), abs=1e-12)


def test_sign_flip_p_of_many_seeds_is_near_the_exact_one() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, size=17)
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    exact = np.mean(np.abs(sums) >= abs(values.sum()) - 1e-9)
    found = float(sign_flip_p(values))
    assert found == pytest.approx(exact, abs=5 * 2 * math.sqrt(exact / 1e5))
    assert found == float(sign_flip_p(values)), "the same differences give the same p"


def test_sign_flip_p_takes_many_studies_at_once() -> None:
    values = np.random.default_rng(4).normal(size=(20, 6))
    assert np.array_equal(sign_flip_p(values), [sign_flip_p(row) for row in values])


def test_smallest_p_is_reached_when_all_seeds_agree() -> None:
    for seeds in range(2, 11):
        values = np.random.default_rng(seeds).uniform(0.001, 0.01, size=seeds)
        assert float(sign_flip_p(values)) == smallest_p(seeds) == 2 / 2**seeds


# Holm's correction


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    generator = np.random.default_rng(0)
    for number in range(1, 8):
        p = generator.uniform(size=number)
        order = np.argsort(p)
        by_hand = np.empty(number)
        by_hand[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(number, 0, -1)), 1.0)
        assert holm(list(p)) == pytest.approx(list(by_hand), rel=1e-12)


def test_the_smallest_corrected_p_bounds_every_other() -> None:
    accuracies = make_accuracies({"none": 0, "se": 0, "eca": 0, "cbam": 0}, 9)
    accuracies["se"], accuracies["cbam"] = accuracies["se"][:6], accuracies["cbam"][:7]
    found = study_statistics(make_summary(accuracies, epochs=0)).modules[1:]
    bounds = [m.comparison.smallest_p for m in found]
    smallest = np.array([smallest_p(len(m.seeds)) for m in found])
    generator = np.random.default_rng(0)
    for _ in range(500):
        p = smallest * generator.integers(1, 1 / smallest + 1)
        assert np.all(np.array(holm(list(p))) >= np.array(bounds) - 1e-12)


@pytest.mark.parametrize("comparisons", range(1, 20))
def test_seeds_needed_are_the_fewest_that_suffice(comparisons: int) -> None:
    seeds = seeds_needed(comparisons)
    assert comparisons * smallest_p(seeds) <= LEVEL < comparisons * smallest_p(seeds - 1)


# Studies


def test_pairs_only_the_seeds_that_both_have() -> None:
    summary = make_summary({"none": [0.90, 0.91, 0.92], "eca": [0.91, 0.93, 0.95]}, epochs=0)
    summary.records = [r for r in summary.records if (r.attention, r.seed) != ("none", 1)]
    found = study_statistics(summary)
    comparison = found.modules[1].comparison
    assert comparison.seeds == [0, 2]
    assert comparison.differences == pytest.approx([0.01, 0.03])
    assert comparison.mean == pytest.approx(0.02)
    assert found.modules[1].mean == pytest.approx(0.93), "the mean is over all of a module's runs"
    assert found.modules[1].sd == pytest.approx(0.02)


def test_the_verdict_names_the_difference() -> None:
    base = [0.900, 0.905, 0.910, 0.902, 0.907, 0.904, 0.909, 0.903]
    shift = [0.007, 0.008, 0.009, 0.008, 0.006, 0.010, 0.008, 0.008]
    up = [a + s for a, s in zip(base, shift, strict=True)]
    down = [a - s for a, s in zip(base, shift, strict=True)]
    for finding, accuracies, sign in (("higher", up, "+"), ("lower", down, "−")):
        found = comparison_of({"none": base, "eca": accuracies})
        assert (found.finding, found.p) == (finding, 2 / 256)
        start = f"{finding} than none by 0.80 points over 8 seeds (95 % interval {sign}0."
        assert found.verdict.startswith(start)
        assert found.verdict.endswith("), p = 0.0078 corrected")
    shuffled = comparison_of({"none": base, "eca": [*base[1:], base[0]]})
    assert shuffled.finding == "no evidence"
    assert shuffled.verdict.startswith("no evidence of a difference: +0.00 points against none")


@pytest.mark.parametrize(
    ("seeds", "names", "there", "needed"),
    [
        (5, ["eca"], "5 seeds", "6 seeds for 1 comparison"),
        (6, ["se", "eca"], "6 seeds and 2 comparisons", "7 seeds for 2 comparisons"),
    ],
)
def test_too_few_seeds(seeds: int, names: list[str], there: str, needed: str) -> None:
    accuracies = make_accuracies({"none": 0} | dict.fromkeys(names, 0.05), seeds)
    found = study_statistics(make_summary(accuracies, epochs=0))
    for module in found.modules[1:]:
        assert module.comparison.finding == "too few seeds"
        assert module.comparison.smallest_p == 0.0625
    (note,) = found.notes
    after = " after Holm's correction" if len(names) > 1 else ""
    assert note == (
        f"With {there} the smallest possible p{after} is 0.0625: no difference can reach the 5 % "
        f"level. It takes at least {needed}."
    )


def test_one_seed_has_no_spread() -> None:
    found = study_statistics(make_summary({"none": [0.90], "eca": [0.95]}, epochs=0))
    module = found.modules[1]
    assert (module.sd, module.interval, module.comparison.p) == (None, None, None)
    assert module.comparison.interval is None
    assert module.comparison.finding == "too few seeds"
    assert module.comparison.verdict == (
        "too few seeds to tell: +5.00 points against none over 1 seed "
        "(no interval: fewer than 3 seeds), no p"
    )
    assert any("no standard deviation, no interval and no p-value" in note for note in found.notes)


def test_equal_differences_have_a_p_but_no_interval() -> None:
    base = [300 / 360, 310 / 360, 320 / 360, 305 / 360, 306 / 360, 307 / 360]
    comparison = comparison_of({"none": base, "eca": [a + 1 / 360 for a in base]})
    assert comparison.interval is None
    assert comparison.p == 2 / 64
    assert comparison.finding == "higher"
    assert "no interval: all seeds gave the same" in comparison.verdict
    same = comparison_of({"none": base, "eca": base})
    assert (same.p, same.finding) == (1.0, "no evidence")


@pytest.mark.parametrize(
    "runs", [{"none": [], "eca": []}, {"none": [], "eca": [0.9]}, {"none": []}, {}]
)
def test_nothing_to_compare_is_no_error(runs: dict[str, list[float]]) -> None:
    found = study_statistics(make_summary(runs, seeds=6, epochs=0))
    assert all(m.comparison.finding == "no data" for m in found.modules[1:])


def test_a_module_without_runs_still_counts_as_a_comparison() -> None:
    accuracies = make_accuracies({"none": 0, "eca": 0.05}, 6) | {"se": []}
    comparison = comparison_of(accuracies, seeds=6)
    assert comparison.p_corrected == pytest.approx(2 * comparison.p)
    assert comparison.finding == "too few seeds"


def test_an_unfinished_study_warns_of_stopping_early() -> None:
    found = study_statistics(make_summary(make_accuracies({"none": 0, "eca": 0}, 7), seeds=8))
    assert any("not complete" in note for note in found.notes)


def test_diverged_runs_count_and_runs_without_accuracy_are_named() -> None:
    summary = make_summary({"none": [0.90, 0.91, 0.92], "eca": [0.10, 0.93, 0.91]})
    diverged, blank = summary.records[3], summary.records[5]
    diverged.epochs[4]["train_loss"] = math.nan
    diverged.final["test_loss"] = math.inf
    blank.final["test_accuracy"] = math.nan
    module = study_statistics(summary).modules[1]
    assert module.diverged == [0]
    assert module.accuracies == [0.10, 0.93], "chance level is a value"
    assert module.without_accuracy == [2]
    assert module.comparison.seeds == [0, 1]


def test_a_module_outside_the_plan_is_not_lost() -> None:
    summary = make_summary({"none": [0.9, 0.91]}, epochs=0)
    summary.records.append(make_record("eca", 0, 0.95, epochs=0))
    assert [m.attention for m in study_statistics(summary).modules] == ["none", "eca"]


def test_p_has_two_significant_digits_and_points_have_a_sign() -> None:
    found = [format_p(p) for p in (1.0, 0.5, 0.0312, 0.00024, 1e-6)]
    assert found == ["1.0", "0.50", "0.031", "0.00024", "<0.0001"]
    found = [ACCURACY.difference(v) for v in (0.00799, -0.0125, -0.00001, 0.0)]
    assert found == ["+0.80", "−1.25", "+0.00", "+0.00"], "no negative zero"


# Calibration: studies in which no module makes a difference


@pytest.mark.parametrize(("seeds", "modules"), [(8, 4), (7, 2)])
def test_a_study_without_differences_is_flagged_at_most_at_its_level(
    seeds: int, modules: int
) -> None:
    """Family-wise: a study counts if any of its modules is called higher or lower."""
    names = ["none", *(f"module{i}" for i in range(modules))]
    studies, flagged, findings = 400, 0, 0
    for study in range(studies):
        accuracies = make_accuracies(dict.fromkeys(names, 0.0), seeds, generator_seed=study)
        rounded = {name: [round(a * 10_000) / 10_000 for a in accuracies[name]] for name in names}
        found = study_statistics(make_summary(rounded, epochs=0, costs=False))
        hits = [m for m in found.modules[1:] if m.comparison.finding in ("higher", "lower")]
        flagged += bool(hits)
        findings += len(hits)
    # More come once in ten thousand tests if the rate is no higher than the level.
    assert flagged <= stats.binom.ppf(0.9999, studies, LEVEL)
    assert findings > 0, "a test that never flags would pass for calibrated"


def test_a_study_with_a_difference_finds_it() -> None:
    found = 0
    for study in range(20):
        accuracies = make_accuracies({"none": 0, "se": 0, "eca": 0.006}, 8, generator_seed=study)
        found += comparison_of(accuracies).finding == "higher"
    assert found >= 18
