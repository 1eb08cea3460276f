"""The charts over several networks and data sets: a forest plot and, from five cells on, ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ecanet.experiments.analysis.cells import CellsSummary
from ecanet.experiments.report.style import (
    Chart,
    add_line,
    add_markers,
    error_bar,
    module_style,
    name_rows,
    new_figure,
    text,
)
from ecanet.statistics.design import Interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SPREAD = 0.62
"""How much of a row's height its modules take."""
_OVERALL = "All cells"

# Data


class Estimate(NamedTuple):
    """A module's mean difference in a row of the forest plot; values as they are shown."""

    module: int
    """Its place in the study, from 0."""
    name: str
    mean: float
    interval: Interval | None
    others: Interval | None
    """For other networks and data sets, in the last row alone."""


class ForestRow(NamedTuple):
    """A cell, or all of them."""

    name: str
    estimates: list[Estimate]


def forest(summary: CellsSummary) -> list[ForestRow]:
    """Return the mean differences from the baseline, a row for each cell and the last for all."""
    scale = summary.metric.scale
    index = {name: i for i, name in enumerate(summary.attention)}

    def shown(interval: Interval | None) -> Interval | None:
        return interval and (scale * interval[0], scale * interval[1])

    rows = []
    for cell in summary.cells:
        estimates = []
        for module in summary.modules:
            c = cell.comparison(module.attention)
            if c and c.mean is not None:
                name = module.attention
                estimates.append(
                    Estimate(index[name], name, scale * c.mean, shown(c.interval), None)
                )
        rows.append(ForestRow(f"{cell.model}, {cell.data}", estimates))
    overall = [
        Estimate(
            index[m.attention], m.attention, scale * o.mean, shown(o.interval), shown(o.others)
        )
        for m in summary.modules
        if (o := m.overall).mean is not None
    ]
    return [*rows, ForestRow(_OVERALL, overall)] if overall else rows


# Drawing


def charts(summary: CellsSummary) -> list[Chart]:
    """Draw every chart that there are numbers for."""
    rows = forest(summary)
    found = [_forest_chart(summary, rows)] if any(row.estimates for row in rows) else []
    if summary.ranks and summary.ranks.critical_difference:
        found.append(_ranks_chart(summary))
    return found


def _forest_chart(summary: CellsSummary, rows: list[ForestRow]) -> Chart:
    metric, modules = summary.metric, len(summary.modules)
    figure = new_figure(110 + len(rows) * (34 + 16 * modules))
    figure.add_vline(x=0, line={"color": "#808894", "width": 1.5})
    unit, form = metric.difference_unit, f"+{metric.digits}"
    order = {module.attention: i for i, module in enumerate(summary.modules)}
    named: set[str] = set()
    for place, row in enumerate(rows):
        for estimate in row.estimates:
            offset = (order[estimate.name] - (modules - 1) / 2) * _SPREAD / max(modules, 3)
            _draw(figure, estimate, place + offset, row.name, f" {unit}", form)
            # Once: image files have a legend of the traces' names.
            if estimate.name not in named:
                figure.data[-1].name = text(estimate.name)
                named.add(estimate.name)
    figure.update_xaxes(
        title_text=f"Difference ({'percentage points' if metric.is_share else unit})"
    )
    name_rows(figure, [row.name for row in rows], lines=3)
    figure.update_yaxes(showgrid=False)
    figure.update_layout(meta=f"against {text(summary.baseline)}")
    caption = (
        f"Each mark is the mean difference of a module from {summary.baseline} in one cell, a network on "
        "a data set, with the interval of that cell. Diamonds: the mean over the cells, as wide as its "
        "interval for these networks and data sets."
    )
    if any(estimate.others for row in rows for estimate in row.estimates):
        caption += " Dotted: the interval for other networks and data sets like these."
    return Chart("forest", f"Difference from {summary.baseline} in every cell", caption, figure)


def _draw(figure: go.Figure, estimate: Estimate, y: float, row: str, unit: str, form: str) -> None:
    style, mean, name = module_style(estimate.module), estimate.mean, text(estimate.name)
    note, reach = "no interval", None
    if estimate.interval:
        low, high = estimate.interval
        note = f"interval {low:{form}} to {high:{form}}{unit}"
        reach = error_bar(mean, estimate.interval, style.color, 2.5, 5)
    where = f"{name}, {text(row)}: %{{x:{form}}}{unit}<br>{note}"
    if row != _OVERALL:
        hover = f"{where}<extra></extra>"
        add_markers(
            figure, [(mean, y)], style.color, 11, style.symbol, error_x=reach, hovertemplate=hover,
            meta=estimate.module,
        )  # fmt: skip
        return
    if estimate.others:
        low, high = estimate.others
        where += f"<br>for others {low:{form}} to {high:{form}}{unit}"
        add_line(
            figure, [(low, y), (high, y)], style.color, 2, {"dash": "dot"}, meta=estimate.module
        )
    if estimate.interval:
        low, high = estimate.interval
        corners = [(low, y), (mean, y - 0.09), (high, y), (mean, y + 0.09), (low, y)]
        add_line(
            figure, corners, style.color, 1.5, fill="toself", fillcolor=style.color,
            meta=estimate.module,
        )  # fmt: skip
    hover = f"{where}<extra></extra>"
    add_markers(
        figure, [(mean, y)], style.color, 8, "diamond", hovertemplate=hover, meta=estimate.module
    )


def _ranks_chart(summary: CellsSummary) -> Chart:
    ranks = summary.ranks
    assert ranks is not None
    assert ranks.critical_difference is not None
    index = {name: i for i, name in enumerate(summary.attention)}
    figure, half = new_figure(100 + 44 * len(ranks.mean)), ranks.critical_difference / 2
    for place, (name, mean) in enumerate(ranks.mean.items()):
        style = module_style(index[name])
        reach = error_bar(mean, (mean - half, mean + half), style.color, 2.5, 5)
        hover = f"{text(name)}: mean rank %{{x:.2f}}<extra></extra>"
        add_markers(
            figure, [(mean, place)], style.color, 12, style.symbol, error_x=reach,
            hovertemplate=hover, meta=index[name],
        )  # fmt: skip
    figure.update_xaxes(title_text="Mean rank over the cells (1 is the best)")
    name_rows(figure, list(ranks.mean), lines=3)
    figure.update_yaxes(showgrid=False)
    caption = (
        f"Nemenyi's critical difference is {ranks.critical_difference:.2f}: modules whose bars do not "
        f"overlap differ in rank. Ranks are over {ranks.cells} cells, and ignore how large a difference is."
    )
    return Chart("ranks", "Mean ranks of the modules", caption, figure)
