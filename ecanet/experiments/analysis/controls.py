"""Modules against their controls: are they better than the plain network that costs as much?"""

from __future__ import annotations

from statistics import median

from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.statistics import StudyStatistics


def against_controls(summary: StudySummary, statistics: StudyStatistics) -> list[str]:
    """Return a sentence for each control: how it compares with its module, and what their runs took."""
    return [
        _against(summary, statistics, name, control.module)
        for name, control in summary.controls.items()
    ]


def _against(summary: StudySummary, statistics: StudyStatistics, control: str, module: str) -> str:
    pair = (module, control)
    if pair not in statistics.pairs:
        pair = (control, module)
    comparison = statistics.pairs[pair]
    sentence = "{} against {}".format(*pair)
    sentence = f"for the same cost, {sentence}: {comparison.verdict}"
    if comparison.seeds:
        took = {
            arm: median(r.final["train_seconds"] for r in summary.records if r.attention == arm)
            for arm in pair
        }
        sentence += (
            f"; a run of {control} was trained in {took[control]:.3g} s, one of {module} in "
            f"{took[module]:.3g} s"
        )
    return sentence
