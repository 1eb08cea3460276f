"""Modules against their controls: are they better than the plain network that costs as much?"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.statistics import study_statistics


def against_controls(summary: StudySummary) -> list[str]:
    """Return a sentence for each control: how its module compares with it, and what their runs took."""
    return [_against(summary, name, control.module) for name, control in summary.controls.items()]


def _against(summary: StudySummary, control: str, module: str) -> str:
    pair = [control, module]
    records = [record for record in summary.records if record.attention in pair]
    two = study_statistics(replace(summary, attention=pair, records=records))
    comparison = two.modules[1].comparison
    assert comparison is not None
    sentence = f"against its control, {module}: {comparison.verdict}"
    if comparison.seeds:
        took = {
            arm: median(r.final["train_seconds"] for r in records if r.attention == arm)
            for arm in pair
        }
        sentence += (
            f"; a run of {control} was trained in {took[control]:.3g} s, one of {module} in "
            f"{took[module]:.3g} s"
        )
    return sentence
