"""Modules against their controls: are they better than the plain network that costs as much?"""

from __future__ import annotations

from statistics import median

from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.statistics import StudyStatistics


def against_controls(summary: StudySummary, statistics: StudyStatistics) -> list[str]:
    """Return a sentence for each control: how it compares with its module, and how long their runs took."""
    return [
        _against(summary, statistics, name, control.module)
        for name, control in summary.controls.items()
    ]


def _against(summary: StudySummary, statistics: StudyStatistics, control: str, module: str) -> str:
    pair = (module, control)
    if pair not in statistics.pairs:
        pair = (control, module)
    comparison = statistics.pairs[pair]
    sentence = f"for the same cost, {pair[0]}: {comparison.verdict}"
    if comparison.seeds:
        seconds = {(r.attention, r.seed): r.final["train_seconds"] for r in summary.records}
        ratio = median(seconds[control, seed] / seconds[module, seed] for seed in comparison.seeds)
        sentence += (
            f"; a run of {control} took {ratio:.2f} times as long as that of {module} with the same seed "
            "(median)"
        )
    return sentence
