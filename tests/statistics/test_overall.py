"""One verdict over several cells, against statsmodels and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from ecanet.statistics.overall import (
    CellDifference,
    combine,
    rank,
)


def cells(
    means: list[float], errors: float | list[float] = 0.01, df: float = 5
) -> list[CellDifference]:
    spreads = errors if isinstance(errors, list) else [errors] * len(means)
    return [
        CellDifference(f"cell{i}", mean, error, df)
        for i, (mean, error) in enumerate(zip(means, spreads, strict=True))
    ]


def test_of_equal_errors_it_is_what_statsmodels_computes() -> None:
    means, error = [0.02, -0.01, 0.05, 0.03], 0.008
    found = combine(cells(means, error, df=1e9))
    reference = combine_effects(np.array(means), np.full(4, error**2), use_t=True)
    table = reference.summary_frame()
    assert found.mean == pytest.approx(table.loc["fixed effect", "eff"])
    assert found.standard_error == pytest.approx(table.loc["fixed effect", "sd_eff"])
    assert found.others == pytest.approx(
        tuple(table.loc["random effect wls", ["ci_low", "ci_upp"]])
    )
    assert found.tau == pytest.approx(math.sqrt(reference.tau2))
    assert found.i_squared == pytest.approx(reference.i2)
    homogeneity = reference.test_homogeneity()
    assert found.heterogeneous == (homogeneity.pvalue < 0.05)


def test_degrees_of_freedom_are_those_of_welch() -> None:
    """Half the difference of two means, of other spreads and numbers: Welch's t."""
    chance = np.random.default_rng(0)
    a, b = chance.normal(0.1, 1, 6), chance.normal(0, 4, 11)
    one = CellDifference("a", float(a.mean()), float(stats.sem(a)), 5)
    other = CellDifference("b", float(-b.mean()), float(stats.sem(b)), 10)
    found = combine([one, other])
    reference = stats.ttest_ind(a, b, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert found.df == pytest.approx(reference.df)
    assert found.interval == pytest.approx((interval.low / 2, interval.high / 2))


@pytest.mark.parametrize(
    ("means", "margin", "finding"),
    [
        ([0.05, 0.06, 0.04], 0.005, "better"),
        ([-0.05, -0.06, -0.04], 0.005, "worse"),
        ([0.001, -0.001, 0.0], 0.05, "equivalent"),
        ([0.001, -0.001, 0.0], 0.005, "undecided"),
        ([], 0.05, "no data"),
    ],
)
def test_the_finding_is_that_of_the_interval(
    means: list[float], margin: float, finding: str
) -> None:
    found = combine(cells(means), margin=margin)
    assert found.finding == finding
    mirrored = {"better": "worse", "worse": "better"}.get(finding, finding)
    assert combine(cells(means), margin=margin, higher_is_better=False).finding == mirrored


def test_more_comparisons_widen_both_intervals() -> None:
    means = [0.01, 0.03, 0.02]
    one, four = combine(cells(means)), combine(cells(means), comparisons=4)
    assert one.interval
    assert four.interval
    assert four.interval[0] < one.interval[0] < one.interval[1] < four.interval[1]
    same = combine(cells(means), confidence=1 - 0.05 / 4)
    assert (same.interval, same.others) == (four.interval, four.others)


def test_cells_whose_intervals_allow_for_looks_widen_both_intervals() -> None:
    plain = cells([0.01, 0.03, 0.02])
    looked = [replace(one, widening=1.5) for one in plain]
    narrow, wide = combine(plain), combine(looked)
    assert (wide.mean, wide.tau, wide.standard_error) == (
        narrow.mean, narrow.tau, narrow.standard_error
    )  # fmt: skip
    assert narrow.interval
    assert wide.interval
    assert wide.interval[1] - wide.mean == pytest.approx(1.5 * (narrow.interval[1] - narrow.mean))


def test_what_few_cells_can_show() -> None:
    alone, two = combine(cells([0.02])), combine(cells([0.02, 0.04]))
    assert (alone.others, alone.tau, alone.heterogeneous) == (None, None, None)
    assert alone.interval
    assert two.others is None
    assert two.tau is not None
    # Cells that happen to agree do not promise more than their seeds allow.
    agreeing = combine(cells([0.02, 0.02, 0.02]))
    assert agreeing.tau == 0
    assert agreeing.others
    assert agreeing.interval
    assert agreeing.others[0] < agreeing.interval[0]


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize(("k", "n"), [(2, 4), (3, 4), (3, 8), (6, 4)])
def test_both_intervals_cover(k: int, n: int, tau: float) -> None:
    chance, studies = np.random.default_rng(k * n), 800
    spreads = np.geomspace(0.5, 2, k)
    these = others = 0
    for _ in range(studies):
        true = tau * chance.standard_normal(k)
        seeds = true[:, None] + spreads[:, None] * chance.standard_normal((k, n))
        found = combine(
            [
                CellDifference(str(i), float(row.mean()), float(stats.sem(row)), n - 1)
                for i, row in enumerate(seeds)
            ]
        )
        assert found.interval
        these += found.interval[0] <= true.mean() <= found.interval[1]
        others += k < 3 or (found.others is not None and found.others[0] <= 0 <= found.others[1])
    # Three standard errors of a share of 95 % of 800.
    assert these / studies == pytest.approx(0.95, abs=0.024)
    assert others / studies > 0.926


# Demšar, JMLR 2006, table 5 (a): critical values of Nemenyi's test at 5 %, by the number of modules.
CRITICAL = {3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize("modules", CRITICAL)
def test_the_critical_difference_is_that_of_the_table(modules: int) -> None:
    table = np.random.default_rng(modules).normal(size=(14, modules))
    names = [f"module{i}" for i in range(modules)]
    found = rank([dict(zip(names, map(float, row), strict=True)) for row in table])
    assert found is not None
    expected = CRITICAL[modules] * math.sqrt(modules * (modules + 1) / (6 * 14))
    assert found.critical_difference == pytest.approx(expected, rel=5e-4)
    assert found.p == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)
    assert sum(found.mean.values()) == pytest.approx(modules * (modules + 1) / 2)
    assert list(found.mean.values()) == sorted(found.mean.values())


def test_modules_that_tie_share_a_rank() -> None:
    cells = [{"none": 0.5, "se": 0.7, "eca": 0.7}, {"none": 0.9, "se": 0.8, "eca": 0.7}]
    found = rank(cells)
    assert found is not None
    assert found.mean == {"se": 1.75, "none": 2.0, "eca": 2.25}
    always = rank([{"none": 0.5, "se": 0.5, "eca": 0.5}] * 5)
    assert always is not None
    assert always.p == 1.0


def test_ranks_of_few_cells_and_of_a_loss() -> None:
    scores = [{"none": 0.5, "eca": 0.4}, {"none": 0.3, "eca": 0.2}, {"none": 0.1}]
    found = rank(scores, higher_is_better=False)
    assert found is not None
    assert (found.mean, found.cells) == ({"eca": 1.0, "none": 2.0}, 2)
    assert (found.p, found.critical_difference) == (None, None)
    assert rank(scores[:1]) is None
