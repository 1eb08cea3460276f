"""What `compare`, `compare_cells` and `sweep` return: summaries with tables and charts to look at in Python.

Numbers come from ``analysis/`` and drawings from ``report/``, as in the page of the report.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from ecanet.errors import visible
from ecanet.experiments.analysis import cells as cells_analysis
from ecanet.experiments.analysis import compare as compare_analysis
from ecanet.experiments.analysis import sweep as sweep_analysis
from ecanet.experiments.analysis.adequacy import baseline_adequacy
from ecanet.experiments.analysis.cells import CellsSummary
from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.images import other_images
from ecanet.experiments.analysis.notices import notices
from ecanet.experiments.analysis.recommendation import Recommendation, recommend
from ecanet.experiments.analysis.statistics import Comparison, StudyStatistics, study_statistics
from ecanet.experiments.analysis.sweep import SweepSummary
from ecanet.experiments.plans.sweep_space import format_values
from ecanet.experiments.report import cells as cells_report
from ecanet.experiments.report import cells_charts, compare_charts, sweep_charts
from ecanet.experiments.report import compare as compare_report
from ecanet.experiments.report import sweep as sweep_report
from ecanet.experiments.report.image import figure_of
from ecanet.experiments.report.page import page_templates
from ecanet.statistics.design import Finding, Interval
from ecanet.statistics.overall import Overall

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ecanet.experiments.study.study import Study

_BEST_SHOWN = 5  # trials


@dataclass(frozen=True)
class Verdict:
    """How one module compares with the baseline. Shares such as accuracies are fractions of 1."""

    module: str
    baseline: str
    finding: Finding
    """better, worse, equivalent, undecided, or no data."""
    difference: float | None
    """The mean of module minus baseline; None if no seed is finished with both."""
    interval: Interval | None
    """Of the difference; None with too few seeds."""
    confidence: float
    """Probability that the intervals of all modules hold."""
    seeds: tuple[int, ...]
    """Those that both have finished."""
    text: str
    """The verdict as a sentence."""


class _Shown:
    """A result that shows itself as a table: in a notebook, and as text where it is printed."""

    report: Path

    def _headline(self) -> str:
        """Return the first line."""
        raise NotImplementedError

    def _answer(self) -> tuple[str, str]:
        """Return what it comes to, in a few words, and why."""
        raise NotImplementedError

    def _notices(self) -> list[str]:
        """Return the warnings to read before the answer."""
        return []

    def _heads(self) -> list[str]:
        raise NotImplementedError

    def _rows(self) -> list[list[str]]:
        raise NotImplementedError

    def _answer_lines(self) -> list[str]:
        """Return the answer as text."""
        return [" ".join(filter(None, self._answer()))]

    def _table(self) -> list[str]:
        return _aligned([self._heads(), *self._rows()])

    def __repr__(self) -> str:
        lines = [self._headline(), "", *self._table(), "", *self._answer_lines()]
        return "\n".join(map(visible, [*lines, f"report: {self.report}"]))

    def _repr_html_(self) -> str:
        headline, reason = self._answer()
        # Notebooks follow no link out of their folder. "./" so that a name with a colon is no scheme.
        page = self.report
        path = page if not page.is_absolute() else Path(os.path.relpath(page))
        outside = ".." in path.parts or path.is_absolute()
        template = page_templates().get_template("result.html.j2")
        return template.render(
            title=self._headline(),
            headline=headline,
            reason=reason,
            notices=self._notices(),
            heads=self._heads(),
            rows=self._rows(),
            report=page,
            link=None if outside else f"./{quote(path.as_posix())}",
        )


@dataclass(repr=False, kw_only=True)
class ComparisonResult(_Shown, StudySummary):
    """A comparison of attention modules, finished or not.

    In a notebook it shows itself as a table; ``print`` shows the same as text.
    """

    report: Path
    """The report's page, index.html."""

    @cached_property
    def statistics(self) -> StudyStatistics:
        """Means, intervals and comparisons, and what the study cannot show."""
        return study_statistics(self)

    @cached_property
    def recommendation(self) -> Recommendation:
        """What the verdicts come to, and why."""
        return recommend(self, self.statistics, baseline_adequacy(self))

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each module but the baseline, by name.

        Example::

            if study.verdicts["eca"].finding == "better":
                print(study.verdicts["eca"].difference)
        """
        return {
            name: Verdict(
                module=name,
                baseline=c.baseline,
                finding=c.finding,
                difference=c.mean,
                interval=c.interval,
                confidence=c.confidence,
                seeds=tuple(c.seeds),
                text=c.verdict,
            )
            for name, c in self.statistics.comparisons.items()
        }

    def to_frame(self, rows: Literal["runs", "modules", "epochs"] = "runs") -> pd.DataFrame:
        """Return a table as a pandas DataFrame; it is that of the CSV file beside the report.

        Args:
            rows: runs, one per row, as in runs.csv; modules (results.csv); or epochs of all runs
                (epochs.csv). Shares are fractions of 1, speeds images per second.

        Raises:
            UserError: pandas is not installed.
            ValueError: there is no such table.
        """
        return _frame(rows, {
            "runs": lambda: compare_report.run_rows(self),
            "modules": lambda: compare_report.result_rows(
                self, self.statistics, other_images(self.answers, self.statistics)
            ),
            "epochs": lambda: compare_report.epoch_rows(self),
        })  # fmt: skip

    def plot(self) -> Figure:
        """Return a matplotlib figure of every run, and of the differences from the baseline.

        The charts are those of the report; ``study.plot().savefig("runs.pdf")`` writes them for a paper.

        Raises:
            UserError: no run has finished.
        """
        return figure_of(compare_charts.main_charts(self.statistics))

    def table(self) -> list[str]:
        """Return a line for each module: seeds, mean and spread, difference from the baseline, verdict."""
        return self._table()

    def _answer(self) -> tuple[str, str]:
        return self.recommendation.headline, self.recommendation.reason

    def _notices(self) -> list[str]:
        return notices(self, self.statistics, baseline_adequacy(self))

    def _headline(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{self.title}: {len(self.records)} of {len(self.planned)} runs{failed}"

    def _heads(self) -> list[str]:
        return ["module", "seeds", self.metric.name, "difference", "verdict"]

    def _rows(self) -> list[list[str]]:
        metric, rows = self.metric, []
        for m in self.statistics.modules:
            c = m.comparison
            difference = ""
            if c and c.mean is not None:
                difference = f"{metric.difference(c.mean)} {metric.difference_unit}"
                if c.interval:
                    difference += f" ({' to '.join(map(metric.difference, c.interval))})"
            value = "" if m.mean is None else metric.text(m.mean, m.sd)
            rows.append(
                [m.attention, str(len(m.seeds)), value, difference, c.finding if c else "baseline"]
            )
        return rows


@dataclass(repr=False, kw_only=True)
class CellsResult(_Shown, CellsSummary):
    """A comparison over several networks and data sets, finished or not.

    In a notebook it shows itself as a table with a row for each cell; ``print`` shows the same as text.
    """

    report: Path
    """The page of the report over all cells, index.html."""

    def to_frame(self, rows: Literal["cells", "modules"] = "cells") -> pd.DataFrame:
        """Return a table as a pandas DataFrame; it is that of the CSV file beside the report.

        Args:
            rows: each module in each cell, as in cells.csv; or modules over all cells (overall.csv).

        Raises:
            UserError: pandas is not installed.
            ValueError: there is no such table.
        """
        return _frame(rows, {
            "cells": lambda: cells_report.cell_rows(self),
            "modules": lambda: cells_report.overall_rows(self),
        })  # fmt: skip

    def plot(self) -> Figure:
        """Return a matplotlib figure of the differences from the baseline in each cell and over all.

        Raises:
            UserError: no cell has an answer yet.
        """
        return figure_of(cells_charts.charts(self)[:1])

    def _headline(self) -> str:
        return self.title

    def _answer(self) -> tuple[str, str]:
        return cells_analysis.headline(self), ""

    def _notices(self) -> list[str]:
        return cells_analysis.notices(self)

    def _heads(self) -> list[str]:
        return ["cell", "runs", *(module.attention for module in self.modules)]

    def _rows(self) -> list[list[str]]:
        def found(comparison: Comparison | Overall | None) -> str:
            if comparison is None or comparison.mean is None:
                return "no data"
            unit = self.metric.difference_unit
            return f"{self.metric.difference(comparison.mean)} {unit}, {comparison.finding}"

        cells = [
            [
                cell.title,
                f"{len(cell.summary.records)} of {len(cell.summary.planned)}",
                *(found(cell.comparison(module.attention)) for module in self.modules),
            ]
            for cell in self.cells
        ]
        waiting = [[name, "waiting", *("" for _ in self.modules)] for name in self.waiting]
        return [*cells, *waiting, ["all cells", "", *(found(m.overall) for m in self.modules)]]


@dataclass(repr=False, kw_only=True)
class SweepResult(_Shown, SweepSummary):
    """A sweep, finished or not.

    In a notebook it shows itself as a table; ``print`` shows the same as text.
    """

    report: Path
    """The report's page, index.html."""
    best: dict[str, Any] = field(init=False)
    """The swept settings that have won, by the names of the sweep file; empty as long as there are none."""

    def __post_init__(self) -> None:
        winner = self.winner()
        self.best = next((dict(t.values) for t in self.trials if t.name == winner), {})

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings of the winner, as keywords for :func:`ecanet.compare`; empty if there is none."""
        return self.recipes.get(self.winner() or "", {})

    def to_frame(self, rows: Literal["trials", "confirmed", "epochs"] = "trials") -> pd.DataFrame:
        """Return a table as a pandas DataFrame; it is that of the CSV file beside the report.

        Args:
            rows: trials and confirming runs, one per row, as in runs.csv; settings that were confirmed
                (confirmed.csv); or the metric after each epoch of the trials (epochs.csv).

        Raises:
            UserError: pandas is not installed.
            ValueError: there is no such table.
        """
        return _frame(rows, {
            "trials": lambda: sweep_report.run_rows(self),
            "confirmed": lambda: sweep_report.confirmed_rows(self),
            "epochs": lambda: sweep_report.epoch_rows(self),
        })  # fmt: skip

    def plot(self) -> Figure:
        """Return a matplotlib figure of the trials and the best so far.

        Raises:
            UserError: no trial has ended with a result.
        """
        return figure_of([sweep_charts.history_chart(self)] if self.ranked() else [])

    def _answer(self) -> tuple[str, str]:
        settings = format_values(self.best) if self.best else "No trial has ended yet."
        return settings, " ".join(self._answer_lines())

    def _answer_lines(self) -> list[str]:
        return sweep_report.answer(self)

    def _headline(self) -> str:
        ended = sum(trial.state in ("finished", "ended early") for trial in self.trials)
        return f"{self.title}: {ended} of {len(self.trials)} trials"

    def _heads(self) -> list[str]:
        return ["trial", *self.parameters, compare_analysis.column_name(self.metric)]

    def _rows(self) -> list[list[str]]:
        return [
            [
                t.name,
                *(sweep_report.format_value(t.values[name]) for name in self.parameters),
                sweep_report.format_metric(self.metric, t.metric),
            ]
            for t in self.ranked()[:_BEST_SHOWN]
        ]


def result_of(study: Study) -> ComparisonResult | SweepResult:
    """Return what an open study has come to so far."""
    page = study.report_folder() / "index.html"
    if study.plan().kind == "sweep":
        return SweepResult(**vars(sweep_analysis.summarise(study)), report=page)
    return ComparisonResult(**vars(compare_analysis.summarise(study)), report=page)


def _frame(rows: str, tables: dict[str, Any]) -> pd.DataFrame:
    from ecanet.frames import frame

    if rows not in tables:
        raise ValueError(f"rows are {', '.join(tables)}, not {rows!r}")
    return frame(tables[rows]())


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
