"""Warnings to read before the results of a comparison, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.statistics import StudyStatistics


def notices(summary: StudySummary, statistics: StudyStatistics) -> list[str]:
    """Return the warnings to read before a study's results, one sentence each."""
    means = {module.attention: module.mean for module in statistics.modules}
    guess = no_better_than_a_guess(means, summary.majority)
    return [f"{text[0].upper()}{text[1:]}." for text in [*summary.notices, guess] if text]


def no_better_than_a_guess(
    accuracies: Mapping[str, float | None], majority: float | None
) -> str | None:
    """Name the modules whose mean accuracy is no higher than that of one answer for all images.

    Args:
        accuracies: mean test accuracy of each module, 0..1; None where there is none.
        majority: share of the test split's most frequent class, 0..1.
    """
    known = {name: mean for name, mean in accuracies.items() if mean is not None}
    guessing = [name for name, mean in known.items() if majority is not None and mean <= majority]
    if majority is None or not guessing:
        return None
    those = "no accuracy" if len(guessing) == len(known) else f"the accuracy of {_list(guessing)}"
    return (
        f"{those} is {'' if len(guessing) == len(known) else 'no '}better than that of one answer for every "
        f"image: the most frequent class is {100 * majority:.2f} % of the test split; nothing follows "
        "from differences among such runs"
    )


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
