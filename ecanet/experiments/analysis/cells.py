"""What a comparison over several networks and data sets shows, in each cell and over all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scipy import special

from ecanet.errors import listed, percent, uncapitalized
from ecanet.experiments.analysis.adequacy import baseline_adequacy, failed
from ecanet.experiments.analysis.compare import Metric, StudySummary
from ecanet.experiments.analysis.notices import no_better_than_a_guess
from ecanet.experiments.analysis.recommendation import in_words
from ecanet.experiments.analysis.statistics import (
    Comparison,
    StudyStatistics,
    study_statistics,
)
from ecanet.statistics.design import Finding
from ecanet.statistics.overall import CellDifference, Overall, Ranks, combine, rank


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

    @cached_property
    def doubts(self) -> list[str]:
        """Names of the checks of the baseline that failed."""
        return [check.name for check in failed(baseline_adequacy(self.summary))]

    def comparison(self, attention: str) -> Comparison | None:
        """Return how a module compares with the baseline here; None if it is not compared."""
        return self.statistics.comparisons.get(attention)


@dataclass
class ModuleOverall:
    """A module against the baseline, over the cells."""

    attention: str
    overall: Overall
    left_out: list[CellSummary]
    """Cells that do not count, as their differences have no interval yet."""
    verdict: str
    """The finding as a sentence, with its numbers and the cells that it lacks."""


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
    def count(self) -> int:
        """Number of cells, those that have not begun included."""
        return len(self.cells) + len(self.waiting)

    @property
    def confidence(self) -> float:
        """Probability that all intervals of the verdicts hold."""
        return max(cell.statistics.design.confidence for cell in self.cells)

    @property
    def margin(self) -> float:
        """Smallest difference that matters."""
        return min(cell.summary.margin for cell in self.cells)

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
            confidence=found.confidence,
            comparisons=len(modules),
            margin=found.margin,
            higher_is_better=metric.higher_is_better,
        )
        missing = [*(cell.title for cell in left_out), *waiting]
        verdict = _verdict(overall, found, missing)
        if pattern := _pattern(cells, attention, overall, metric):
            verdict += f"; {pattern}"
        found.modules.append(ModuleOverall(attention, overall, left_out, verdict))
    scores = [
        {m.attention: m.mean for m in cell.statistics.modules if m.mean is not None}
        for cell in cells
    ]
    found.ranks = rank(scores, metric.higher_is_better, found.confidence)
    return found


def notices(summary: CellsSummary) -> list[str]:
    """Return the warnings to read before the verdict, one sentence each."""
    guesses = {
        cell.title: no_better_than_a_guess(cell.statistics, cell.summary.majority)
        for cell in summary.cells
    }
    return [f"{title}: {guess}." for title, guess in guesses.items() if guess] + [
        f"The baseline of {cell.title} is not trained well enough to be compared with "
        f"({', '.join(cell.doubts)}): see the report of that cell."
        for cell in summary.cells
        if cell.doubts
    ]


def _difference(cell: CellSummary, attention: str) -> CellDifference | None:
    c = cell.comparison(attention)
    if c is None or c.mean is None or not c.interval or not c.standard_error or not c.df:
        return None
    students = -float(special.stdtrit(c.df, cell.statistics.design.alpha / 2)) * c.standard_error
    widening = (c.interval[1] - c.interval[0]) / (2 * students)
    return CellDifference(cell.name, c.mean, c.standard_error, c.df, max(widening, 1.0))


def _verdict(found: Overall, cells: CellsSummary, missing: list[str]) -> str:
    baseline, metric = cells.baseline, cells.metric
    if found.mean is None or found.interval is None:
        return "no answer yet: no cell has an interval"
    unit = metric.difference_unit
    by, within = metric.amount(found.mean), metric.amount(cells.margin)
    against = f"{metric.difference(found.mean)} {unit}"
    start = {
        "better": f"better than {baseline} by {by}",
        "worse": f"worse than {baseline} by {by}",
        "equivalent": f"equivalent to {baseline} within {within}: {against}",
        "undecided": f"undecided: {against} against {baseline}",
    }[found.finding]
    ends = " to ".join(map(metric.difference, found.interval))
    over = f"on average over {of_all(len(found.cells), cells.count)} cells"
    without = f", so far without {listed(missing)}" if missing else ""
    return f"{start} {over} ({percent(cells.confidence)} interval {ends}){without}"


def of_all(count: int, every: int) -> str:
    """Return ``2``, or ``1 of 2`` where some are missing."""
    return str(every) if count == every else f"{count} of {every}"


def cells_found(cells: list[CellSummary], attention: str, finding: Finding) -> list[CellSummary]:
    """Return the cells in which a module was found so."""
    compared = ((cell, cell.comparison(attention)) for cell in cells)
    return [cell for cell, c in compared if c and c.finding == finding]


def headline(summary: CellsSummary) -> str:
    """Return what the verdicts over all cells come to, in a few words."""
    found = _headline(summary)
    if all(len(module.overall.cells) in (0, summary.count) for module in summary.modules):
        return found
    return f"So far: {uncapitalized(found)}"


def _headline(summary: CellsSummary) -> str:
    baseline, metric = summary.baseline, summary.metric
    sign = 1 if metric.higher_is_better else -1
    found = [module for module in summary.modules if module.overall.mean is not None]
    if not found:
        return "No answer yet."
    if all(cell.doubts for cell in summary.cells):
        return f"Train {in_words(baseline)} better first."
    better = [module for module in found if module.overall.finding == "better"]
    if better:
        best = max(better, key=lambda module: sign * (module.overall.mean or 0.0))
        if max(map(abs, best.overall.interval or (math.inf,))) < summary.margin:
            return f"Keep {in_words(baseline)}, unless {metric.amount(best.overall.mean or 0.0)} matter."
        hurts = cells_found(summary.cells, best.attention, "worse")
        return f"Use {best.attention}, but not everywhere." if hurts else f"Use {best.attention}."
    if any(cells_found(summary.cells, module.attention, "better") for module in found):
        return f"Keep {in_words(baseline)}, except where a module helps."
    undecided = any(module.overall.finding == "undecided" for module in found)
    return f"Keep {in_words(baseline)} for now." if undecided else f"Keep {in_words(baseline)}."


def _pattern(cells: list[CellSummary], attention: str, found: Overall, metric: Metric) -> str:
    """Return where a module helps and where it hurts, or whether cells differ, in words; "" for neither."""
    helps, hurts = cells_found(cells, attention, "better"), cells_found(cells, attention, "worse")
    if helps and hurts:
        return f"it helps {_where(helps, cells)} and hurts {_where(hurts, cells)}"
    if found.heterogeneous and found.tau:
        return (
            "the cells differ by more than seeds explain, with a standard deviation of "
            f"{metric.amount(found.tau)} between them"
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
