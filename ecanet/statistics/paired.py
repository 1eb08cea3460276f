"""The difference of two shares that were counted on the same things."""

from __future__ import annotations

import math

from scipy.special import ndtri

from ecanet.statistics.design import Interval


def paired_interval(gained: int, lost: int, total: int, confidence: float = 0.95) -> Interval:
    """Return an interval of ``(gained - lost) / total``, the change of a share of ``total`` paired answers.

    It is that of Agresti and Min (Statistics in Medicine 24, 2005): Wald's after half an answer was added to
    each of the four cells. So it has a width where no answer has changed, and covers what it should with few
    that have.

    Args:
        gained: answers that were wrong and are right.
        lost: answers that were right and are wrong.
        total: all answers, at least 1.
        confidence: of the interval.
    """
    count, difference, changed = total + 2, gained - lost, gained + lost + 1
    error = math.sqrt(changed - difference**2 / count) / count
    reach = float(ndtri((1 + confidence) / 2)) * error
    return max(difference / count - reach, -1.0), min(difference / count + reach, 1.0)
