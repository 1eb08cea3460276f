"""Modules against their controls: are they better than the plain network that costs as much?"""

from __future__ import annotations

from statistics import median

from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.statistics import StudyStatistics
from ecanet.experiments.plans.controls import WITHIN, Control


def against_controls(summary: StudySummary, statistics: StudyStatistics) -> list[str]:
    """Return a sentence for each control: how it compares with its module, and how long their runs took."""
    return [
        _against(summary, statistics, name, control) for name, control in summary.controls.items()
    ]


def _against(
    summary: StudySummary, statistics: StudyStatistics, name: str, control: Control
) -> str:
    module, pair = control.module, (control.module, name)
    if pair not in statistics.pairs:
        pair = (name, module)
    comparison = statistics.pairs[pair]
    about, took = "", ""
    if comparison.seeds:
        seconds = {(r.attention, r.seed): r.final["train_seconds"] for r in summary.records}
        ratio = median(seconds[name, seed] / seconds[module, seed] for seed in comparison.seeds)
        took = (
            f"; a run of {name} took {ratio:.2f} times as long as that of {module} with the same seed "
            "(median)"
        )
        # Steps were timed before the training; runs also load, evaluate and share their machine.
        if control.resource == "time" and abs(ratio - 1) > WITHIN:
            about = "about "
            took += f", so their training times differ by {100 * abs(ratio - 1):.0f} %"
    return f"for {about}the same cost, {pair[0]}: {comparison.verdict}{took}"
