"""The interval of a change of accuracy on the same images."""

from __future__ import annotations

import numpy as np
import pytest

from ecanet.statistics.paired import paired_interval


def test_the_published_example() -> None:
    """Agresti and Min give it as Wald's interval of the counts with 1/2 in each cell."""
    low, high = paired_interval(150, 86, 1600)
    middle, error = 64 / 1602, np.sqrt((150.5 + 86.5) - 64**2 / 1602) / 1602
    assert (low, high) == pytest.approx((middle - 1.959964 * error, middle + 1.959964 * error))


def test_it_has_a_width_where_nothing_has_changed() -> None:
    low, high = paired_interval(0, 0, 200)
    assert low == -high
    assert 0.005 < high < 0.02
    assert paired_interval(1, 0, 1)[1] == 1


@pytest.mark.parametrize(
    ("gained", "lost"), [(0.01, 0.01), (0.03, 0.01), (0.002, 0.002), (0.1, 0.05)]
)
@pytest.mark.parametrize("total", [100, 1000, 10_000])
def test_it_covers_the_truth(gained: float, lost: float, total: int) -> None:
    chance = np.random.default_rng(0)
    draws = chance.multinomial(total, [gained, lost, 1 - gained - lost], size=4000)
    ends = np.array([paired_interval(int(g), int(w), total) for g, w, _ in draws])
    covered = np.mean((ends[:, 0] <= gained - lost) & (gained - lost <= ends[:, 1]))
    assert covered > 0.94
