"""What a comparison over several networks and data sets shows, in each cell and over all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ecanet.errors import counted
from ecanet.experiments.analysis.compare import Metric, StudySummary
from ecanet.experiments.analysis.overall import (
    CellDifference,
    Finding,
    Overall,
    Ranks,
    combine,
    rank,
)
from ecanet.experiments.analysis.statistics import (
    LEVEL,
    Comparison,
    StudyStatistics,
    study_statistics,
)


@dataclass
class CellSummary:
    """One network on one data set."""

    name: str
    """Of its folder."""
    model: str
    data: str
    """Network and data set, in short."""
    summary: StudySummary

    @property
    def title(self) -> str:
        return f"{self.model} on {self.data}"

    @cached_property
    def statistics(self) -> StudyStatistics:
        return study_statistics(self.summary)

    def comparison(self, attention: str) -> Comparison | None:
        """Return how a module compares with the baseline here; None if it is not compared."""
        found = (m.comparison for m in self.statistics.modules if m.attention == attention)
        return next(found, None)


@dataclass
class ModuleOverall:
    """A module against the baseline, over the cells."""

    attention: str
    overall: Overall
    left_out: list[CellSummary]
    """Cells that do not count, as their differences have no standard error: one seed, or no spread."""
    verdict: str
    """The finding as a sentence, with its numbers."""


@dataclass
class CellsSummary:
    """A comparison over several networks and data sets, reduced to values for its report."""

    title: str
    cells: list[CellSummary]
    """Those that have begun."""
    waiting: list[str]
    """Names of the others."""
    modules: list[ModuleOverall]
    """Those that are compared with the baseline."""
    ranks: Ranks | None

    @property
    def metric(self) -> Metric:
        return self.cells[0].summary.metric

    @property
    def baseline(self) -> str:
        return self.cells[0].statistics.baseline

    @property
    def attention(self) -> list[str]:
        return list(dict.fromkeys(a for cell in self.cells for a in cell.summary.attention))

    @property
    def environment(self) -> dict[str, Any]:
        return self.cells[0].summary.environment

    @property
    def skipped_images(self) -> list[str]:
        skipped = {cell.data: cell.summary.skipped_images for cell in self.cells}
        return [f"{data}: {image}" for data, images in skipped.items() for image in images]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Runs that stopped with an error: ``cell``, ``attention``, ``seed`` and ``error`` of each."""
        return [{"cell": cell.name, **run} for cell in self.cells for run in cell.summary.failed]


def summarise_cells(title: str, cells: list[CellSummary], waiting: list[str]) -> CellsSummary:
    """Combine the cells of a comparison; all have the same baseline and metric."""
    found = CellsSummary(title, cells, waiting, [], None)
    baseline, metric = found.baseline, found.metric
    modules = [name for name in found.attention if name != baseline]
    for attention in modules:
        differences, left_out = [], []
        for cell in cells:
            difference = _difference(cell, attention)
            if difference:
                differences.append(difference)
            else:
                left_out.append(cell)
        overall = combine(
            differences,
            confidence=1 - LEVEL,
            comparisons=len(modules),
            higher_is_better=metric.higher_is_better,
        )
        verdict = _verdict(overall, baseline, metric)
        if pattern := _pattern(cells, attention, overall, metric):
            verdict += f"; {pattern}"
        found.modules.append(ModuleOverall(attention, overall, left_out, verdict))
    scores = [
        {m.attention: m.mean for m in cell.statistics.modules if m.mean is not None}
        for cell in cells
    ]
    found.ranks = rank(scores, metric.higher_is_better, 1 - LEVEL)
    return found


def _difference(cell: CellSummary, attention: str) -> CellDifference | None:
    c = cell.comparison(attention)
    # Equal differences of fractions such as 301/360 - 300/360 differ in the last bit.
    if c is None or c.mean is None or len(c.differences) < 2 or np.ptp(c.differences) < 1e-12:
        return None
    n = len(c.differences)
    return CellDifference(
        cell.name, c.mean, float(np.std(c.differences, ddof=1)) / math.sqrt(n), n - 1
    )


def finding_of(comparison: Comparison | None, metric: Metric) -> Finding:
    """Return the finding of one cell in the words of the overall one."""
    if comparison is None or comparison.finding == "no data":
        return "no data"
    if comparison.finding in ("higher", "lower"):
        better = (comparison.finding == "higher") == metric.higher_is_better
        return "better" if better else "worse"
    return "undecided"


def _verdict(found: Overall, baseline: str, metric: Metric) -> str:
    if found.mean is None or found.interval is None:
        return f"nothing to compare: no cell has two seeds that are finished with both this and {baseline}"
    unit = metric.difference_unit
    by = f"{metric.difference(abs(found.mean), sign=False)} {unit}"
    against = f"{metric.difference(found.mean)} {unit} against {baseline}"
    start = {
        "better": f"better than {baseline} by {by}",
        "worse": f"worse than {baseline} by {by}",
        "equivalent": f"equivalent to {baseline}: {against}",
        "undecided": f"undecided: {against}",
    }[found.finding]
    low, high = map(metric.difference, found.interval)
    over = f"on average over {counted(len(found.cells), 'cell')}"
    return f"{start} {over} (95 % interval {low} to {high})"


def _pattern(cells: list[CellSummary], attention: str, found: Overall, metric: Metric) -> str:
    """Return where a module helps and where it hurts, or whether cells differ, in words; "" for neither."""
    findings = {cell.name: finding_of(cell.comparison(attention), metric) for cell in cells}
    helps = [cell for cell in cells if findings[cell.name] == "better"]
    hurts = [cell for cell in cells if findings[cell.name] == "worse"]
    if helps and hurts:
        return f"it helps {_where(helps, cells)} and hurts {_where(hurts, cells)}"
    if found.heterogeneous and found.tau:
        spread = f"{metric.difference(found.tau, sign=False)} {metric.difference_unit}"
        return (
            "the cells differ by more than seeds explain, with a standard deviation of "
            f"{spread} between them"
        )
    return ""


def _where(some: list[CellSummary], cells: list[CellSummary]) -> str:
    """Name cells by their networks or their data sets, if all cells of these are meant."""
    models, data = {cell.model: None for cell in some}, {cell.data: None for cell in some}
    if len(some) == sum(cell.model in models for cell in cells):
        return ", ".join(models)
    if len(some) == sum(cell.data in data for cell in cells):
        return f"on {', '.join(data)}"
    return ", ".join(cell.title for cell in some)
