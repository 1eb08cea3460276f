"""Warnings to read before the results of a comparison, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence

from ecanet.errors import capitalized, listed
from ecanet.experiments.analysis.adequacy import NOTHING_LEARNED, Check, warnings
from ecanet.experiments.analysis.compare import ACCURACY, StudySummary
from ecanet.experiments.analysis.controls import against_controls
from ecanet.experiments.analysis.statistics import StudyStatistics


def notices(
    summary: StudySummary, statistics: StudyStatistics, adequacy: Sequence[Check] = ()
) -> list[str]:
    """Return the warnings to read before a study's results, one sentence each.

    Args:
        adequacy: what :func:`ecanet.experiments.analysis.adequacy.baseline_adequacy` found, to be warned of.
    """
    guess = no_better_than_a_guess(statistics, summary.majority)
    # Both would say that the baseline guesses.
    said = [check for check in adequacy if not (guess and check.name == NOTHING_LEARNED)]
    texts = [*summary.notices, guess, *warnings(said), *against_controls(summary, statistics)]
    return [f"{capitalized(text)}." for text in texts if text]


def no_better_than_a_guess(statistics: StudyStatistics, majority: float | None) -> str:
    """Return a warning of modules that are no better than predicting the most frequent class; "" if none."""
    if statistics.metric.key != ACCURACY.key:
        return ""
    known = {m.attention: m.mean for m in statistics.modules if m.mean is not None}
    guessing = [name for name, mean in known.items() if majority is not None and mean <= majority]
    if majority is None or not guessing:
        return ""
    if len(guessing) == len(known):
        start = "no accuracy is better"
    else:
        start = f"the accuracy of {listed(guessing)} is no better"
    return (
        f"{start} than predicting the most frequent class for every image, which is right for "
        f"{100 * majority:.2f} % of the test split; nothing follows from differences among such runs"
    )
