"""The report over several networks and data sets, with a link to the report of each cell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ecanet.errors import first_of, percent
from ecanet.experiments.analysis.cells import CellsSummary, headline, notices, of_all
from ecanet.experiments.analysis.compare import ACCURACY
from ecanet.experiments.analysis.images import OtherImages, other_images
from ecanet.experiments.report.cells_charts import charts
from ecanet.experiments.report.compare import result_rows
from ecanet.experiments.report.methods import citations, methods, methods_files
from ecanet.experiments.report.page import UNITS, Report, flat
from ecanet.experiments.report.papers import (
    NONE,
    PaperTable,
    difference_text,
    interval_text,
    label,
    table_files,
)
from ecanet.experiments.report.style import module_style


def write_cells_report(summary: CellsSummary, out: Path, folder: Path) -> Path:
    """Write the report over all cells into the folder ``out``; see :func:`make_cells_report`.

    Returns:
        The path of index.html.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full; the old files, if any, are intact.
    """
    return make_cells_report(summary, out, folder).write(out)[-1]


def make_cells_report(summary: CellsSummary, out: Path, folder: Path) -> Report:
    """Make the report over all cells for the folder ``out``.

    It has index.html, overall.csv (a row for each module), cells.csv (each module in each cell), report.json
    and PNG files.

    Args:
        summary: of the comparison.
        out: folder of the report.
        folder: of the comparison; the cells' own reports are linked if they are there.
    """
    others = _other_images(summary)
    rows = _result_rows(summary, others)
    overall = overall_rows(summary)
    tables, paragraphs = _paper_tables(summary), _methods(summary, others)
    recipe, differing = _recipe(summary)
    sources = citations(*(cell.summary for cell in summary.cells))
    return Report(
        summary,
        template="cells.html.j2",
        context={
            "style": module_style,
            "metric": summary.metric,
            "notices": notices(summary),
            "opening": opening(summary),
            "groups": grouped(summary),
            "expected": lambda module: expected_elsewhere(summary, module),
            "other_images": others,
            "headline": headline(summary),
            "level": percent(summary.confidence),
            "costs": {
                name: {row["attention"]: row for row in found} for name, found in rows.items()
            },
            "chance": lambda cell: summary.metric == ACCURACY and cell.summary.majority is not None,
            "links": _links(summary, out, folder),
            "runs": {
                cell.name: (
                    len(cell.summary.records),
                    len(cell.summary.planned),
                )
                for cell in summary.cells
            },
            "recipe": recipe,
            "differing": differing,
            "papers": tables,
            "study": shlex.quote(str(folder)),
            "methods": paragraphs,
            "citations": sources,
        },
        tables={
            "overall": overall,
            "cells": cell_rows(summary, rows),
        },
        numbers={
            "answer": [headline(summary), opening(summary), *sentences(summary)],
            "units": {
                f"{summary.metric.plural}, their differences and intervals": summary.metric.stored_unit,
                **UNITS,
            },
            "notices": notices(summary),
            "confidence": summary.confidence,
            "margin": summary.margin,
            "baseline": summary.baseline,
            "attention": summary.attention,
            "overall": overall,
            "ranks": summary.ranks._asdict() if summary.ranks else None,
            "cells": rows,
            "waiting": summary.waiting,
            "failed": summary.failed,
        },
        charts=charts(summary),
        images={"forest": ["forest"], "ranks": ["ranks"]},
        environments=[
            record.environment for cell in summary.cells for record in cell.summary.records
        ],
        texts=table_files(tables) | {"methods": methods_files(paragraphs, sources)},
    )


def _paper_tables(summary: CellsSummary) -> list[PaperTable]:
    """Return the tables for papers: each module over all cells, and in each of them."""
    metric, baseline = summary.metric, summary.baseline
    unit, level = metric.difference_unit, percent(summary.confidence)
    within = f"{metric.difference(summary.margin, sign=False)} {unit}"
    rows = [
        [
            module.attention,
            of_all(len(module.overall.cells), summary.count),
            NONE if module.overall.mean is None else metric.difference(module.overall.mean),
            interval_text(metric, module.overall.interval),
            interval_text(metric, module.overall.others),
            module.overall.finding,
        ]
        for module in summary.modules
    ]
    bold = {
        (i, column)
        for i, module in enumerate(summary.modules)
        if module.overall.finding == "better"
        for column in (0, 2, 3, 5)
    }
    caption = (
        f"{summary.title}: mean difference in {metric.name} from {baseline} over cells, each a network on a "
        f"data set, with {level} intervals for these cells and for others like them. "
        f"Equivalent: within {within} of {baseline}. Bold: better than {baseline}."
    )
    head = [
        "Module",
        "Cells",
        f"Difference\n({unit})",
        f"{level}\ninterval",
        "Other cells",
        "Verdict",
    ]
    modules = [module.attention for module in summary.modules]
    found = [[cell.comparison(name) for name in modules] for cell in summary.cells]
    each = [
        [cell.title, *(difference_text(metric, c) for c in row)]
        for cell, row in zip(summary.cells, found, strict=True)
    ]
    of_each = f"{summary.title}: difference in {metric.name} from {baseline}, in {unit}, with its verdict."
    title = label(summary.title)
    return [
        PaperTable("overall", "Over all cells", f"{title}-overall", caption, head, rows, bold),
        PaperTable("cells", "By cell", f"{title}-cells", of_each, ["Cell", *modules], each),
    ]


def _methods(summary: CellsSummary, others: Mapping[str, Mapping[str, OtherImages]]) -> list[str]:
    """Return the methods of all cells, and how they are combined."""
    paragraphs = []
    for cell in summary.cells:
        own = methods(cell.summary, cell.statistics, others[cell.name])
        paragraphs += [f"## {cell.title}", *own]
    level = percent(summary.confidence)
    return [
        *paragraphs,
        "## Over all cells",
        "A module's difference over all cells is the mean of its differences in each, of equal weight. Its "
        f"interval, with {level} for all modules together (Bonferroni), is Student's t with Satterthwaite's "
        "degrees of freedom, widened as those of the cells are for repeated looks. That for other networks "
        "and data sets is Hartung and Knapp's random-effects interval with equal weights.",
    ]


def cell_rows(
    summary: CellsSummary, rows: Mapping[str, list[dict[str, Any]]] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of cells.csv: each module in each cell.

    Args:
        rows: those of results.csv of each cell, by its name, if they are known.
    """
    rows = rows or _result_rows(summary, _other_images(summary))
    return [
        {"cell": cell.name, "model": cell.model, "data": cell.data, **row}
        for cell in summary.cells
        for row in rows[cell.name]
    ]


def _other_images(summary: CellsSummary) -> dict[str, dict[str, OtherImages]]:
    return {
        cell.name: other_images(cell.summary.answers, cell.statistics) for cell in summary.cells
    }


def _result_rows(
    summary: CellsSummary, others: Mapping[str, Mapping[str, OtherImages]]
) -> dict[str, list[dict[str, Any]]]:
    return {
        cell.name: result_rows(cell.summary, cell.statistics, others[cell.name])
        for cell in summary.cells
    }


def overall_rows(summary: CellsSummary) -> list[dict[str, Any]]:
    """Return the rows of overall.csv: each module over all cells."""
    return [_overall_row(module, summary.count) for module in summary.modules]


def _overall_row(module: Any, count: int) -> dict[str, Any]:
    values = asdict(module.overall)
    for name, ends in (("interval", "difference"), ("others", "others")):
        low, high = values.pop(name) or (None, None)
        values |= {f"{ends}_low": low, f"{ends}_high": high}
    return {
        "attention": module.attention,
        "finding": values.pop("finding"),
        "verdict": module.verdict,
        "cells": len(values.pop("cells")),
        "difference_mean": values.pop("mean"),
        **values,
        "cells_left_out": count - len(module.overall.cells),
    }


def _links(summary: CellsSummary, out: Path, folder: Path) -> dict[str, str]:
    """Return the addresses of the cells' own pages, relative to ``out``, of those that are there."""
    pages = {cell.name: folder / cell.name / "report" / "index.html" for cell in summary.cells}
    return {
        name: quote(Path(os.path.relpath(page, out)).as_posix())
        for name, page in pages.items()
        if page.is_file()
    }


def _recipe(summary: CellsSummary) -> tuple[dict[str, str], dict[str, str]]:
    """Return the recipe that all cells share, and what differs between them: the value in each cell."""
    recipes = [flat(cell.summary.recipe or cell.summary.settings) for cell in summary.cells]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    values = {name: [recipe.get(name, "default") for recipe in recipes] for name in names}
    titles = [cell.title for cell in summary.cells]
    shared = {name: each[0] for name, each in values.items() if len(set(each)) == 1}
    differing = {
        name: "; ".join(f"{title}: {value}" for title, value in zip(titles, each, strict=True))
        for name, each in values.items()
        if name not in shared
    }
    return shared, differing


# Sentences


def opening(summary: CellsSummary) -> str:
    """Return the sentence that the answer begins with."""
    counts = sorted({len(module.overall.cells) for module in summary.modules} - {0})
    if len(counts) > 1:
        cells = f"{counts[0]} to {of_all(counts[-1], summary.count)}"
    else:
        cells = of_all(counts[0] if counts else summary.count, summary.count)
    start = f"On average over {cells} cells, each a network on a data set:"
    groups = grouped(summary)
    if not groups:
        return f"{start} nothing is compared, as there is only the baseline."
    words = {
        "better": f"better than {summary.baseline}",
        "worse": f"worse than {summary.baseline}",
        "equivalent": f"equivalent to {summary.baseline}",
        "undecided": "undecided",
        "no data": "without an answer yet",
    }
    those = [f"{first_of(names, 3)} {words[finding]}" for finding, names in groups.items()]
    return f"{start} {'; '.join(those)}."


def grouped(summary: CellsSummary) -> dict[str, list[str]]:
    """Return the modules by their finding over all cells."""
    order = ("better", "worse", "equivalent", "undecided", "no data")
    found = [(m.overall.finding, m.attention) for m in summary.modules]
    groups = {one: [name for finding, name in found if finding == one] for one in order}
    return {finding: names for finding, names in groups.items() if names}


def sentences(summary: CellsSummary) -> list[str]:
    """Return a sentence for each module: the verdict over all cells."""
    return [f"{module.attention}: {module.verdict}." for module in summary.modules]


def closing_lines(summary: CellsSummary) -> list[str]:
    """Return what a command ends with: the verdict of each module over all cells, and what they come to."""
    width = max((len(module.attention) for module in summary.modules), default=0)
    lines = [f"{module.attention:{width}}  {module.verdict}" for module in summary.modules]
    return [*notices(summary), "over all cells:", *lines, headline(summary)] if lines else []


def expected_elsewhere(summary: CellsSummary, module: Any) -> str:
    """Return what may be expected of other networks and data sets."""
    found, metric = module.overall, summary.metric
    if found.mean is None:
        return ""
    start = "For other networks and data sets like these"
    if not found.others:
        return f"{start}: no interval, from fewer than 3 cells."
    low, high = map(metric.difference, found.others)
    return f"{start}: {low} to {high} {metric.difference_unit}."
