"""The charts of a comparison: first their data, then their drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ecanet.errors import capitalized, percent
from ecanet.experiments.analysis.compare import Metric, StudySummary, column_title
from ecanet.experiments.analysis.statistics import (
    Comparison,
    Interval,
    ModuleStatistics,
    StudyStatistics,
)
from ecanet.experiments.report.style import (
    GRAY,
    Chart,
    add_line,
    add_markers,
    cut,
    error_bar,
    module_style,
    name_rows,
    new_figure,
    text,
)
from ecanet.record import Record, Speed

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Data


class PointRow(NamedTuple):
    """One module's row in a chart of runs; values as they are shown, in percent or nats."""

    module: int
    """Its place in the study, from 0."""
    name: str
    values: dict[int, float]
    """By seed."""
    mean: float | None
    interval: Interval | None


def points(statistics: StudyStatistics) -> list[PointRow]:
    """Return the metric of every run, a row for each module."""
    scale = statistics.metric.scale
    return [
        _point_row(i, m.attention, m.accuracies, m, scale) for i, m in enumerate(statistics.modules)
    ]


def differences(statistics: StudyStatistics) -> list[PointRow]:
    """Return the differences from the baseline, seed by seed, a row for each module compared."""
    return [
        _point_row(i, m.attention, m.comparison.differences, m.comparison, statistics.metric.scale)
        for i, m in enumerate(statistics.modules)
        if m.comparison
    ]


def _point_row(
    index: int,
    name: str,
    measured: Sequence[float],
    found: ModuleStatistics | Comparison,
    scale: float,
) -> PointRow:
    values = {seed: scale * value for seed, value in zip(found.seeds, measured, strict=True)}
    mean = None if found.mean is None else scale * found.mean
    interval = found.interval and (scale * found.interval[0], scale * found.interval[1])
    return PointRow(index, name, values, mean, interval)


def seed_offsets(statistics: StudyStatistics) -> dict[int, float]:
    """Return where in its row a seed's point lies, so that equal accuracies do not hide each other."""
    seeds = sorted({seed for module in statistics.modules for seed in module.seeds})
    offsets = np.linspace(-0.2, 0.12, len(seeds)) if len(seeds) > 1 else np.array([-0.04])
    return dict(zip(seeds, map(float, offsets), strict=True))


def pareto_front(
    points: Sequence[tuple[float, float]], higher_is_better: bool = True
) -> list[tuple[float, float]]:
    """Return the points (time, metric) than which none is both faster and better, by time."""
    sign = 1 if higher_is_better else -1
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not best or sign * point[1] > sign * best[-1][1]:
            best.append(point)
    return best


@dataclass
class Curve:
    """A metric over the epochs: mean, lowest and highest of a module's runs."""

    epochs: list[int]
    """Counted from 1."""
    mean: list[float]
    low: list[float]
    high: list[float]
    runs: int

    def after(self, epoch: int) -> Curve:
        """Return what lies beyond ``epoch``."""
        first = sum(e <= epoch for e in self.epochs)
        mean, low, high = self.mean[first:], self.low[first:], self.high[first:]
        return Curve(self.epochs[first:], mean, low, high, self.runs)


def curve(records: Sequence[Record], column: str, scale: float = 1.0) -> Curve:
    """Average a column, times ``scale``, over runs, epoch by epoch; leave out what is not finite."""
    values: dict[int, list[float]] = {}
    for record in records:
        for epoch in record.epochs:
            if math.isfinite(value := scale * epoch.get(column, math.nan)):
                values.setdefault(int(epoch["epoch"]) + 1, []).append(value)
    epochs = sorted(values)
    return Curve(
        epochs,
        [float(np.mean(values[e])) for e in epochs],
        [min(values[e]) for e in epochs],
        [max(values[e]) for e in epochs],
        len(records),
    )


# Drawing


def charts(summary: StudySummary, statistics: StudyStatistics) -> list[Chart]:
    """Draw every chart that the study has numbers for."""
    metric = statistics.metric
    found = main_charts(statistics)
    for key, name in (("train", "training"), ("inference", "inference")):
        speeds = {cost.attention: getattr(cost, key) for cost in summary.costs}
        if any(m.attention in speeds and m.mean is not None for m in statistics.modules):
            found.append(_pareto_chart(speeds, statistics, name))
    loss = metric.loss_unit if metric.reported_by else "nats"
    for title, unit, column in (
        (metric.curve, metric.unit, metric.curve_key),
        ("Training loss", metric.loss_unit, "train_loss"),
        *([("Validation loss", loss, "val_loss")] if metric.curve_key != "val_loss" else []),
    ):
        chosen = column == metric.curve_key
        scale = metric.scale if chosen else 1.0
        curves = {
            m.attention: curve(
                [r for r in summary.records if r.attention == m.attention], column, scale
            )
            for m in statistics.modules
        }
        last = max((c.epochs[-1] for c in curves.values() if c.epochs), default=0)
        if last:
            found.append(_curve_chart(title, unit, curves))
        if last >= 6 and chosen:
            # The whole curve hides what modules differ by.
            ends = {name: c.after(last // 2) for name, c in curves.items()}
            found.append(_curve_chart(title, unit, ends, end=True))
    return found


def main_charts(statistics: StudyStatistics) -> list[Chart]:
    """Draw every run, and the differences from the baseline, as far as there are any."""
    found = []
    if any(module.accuracies for module in statistics.modules):
        found.append(_points_chart(statistics))
    if any(row.values for row in differences(statistics)):
        found.append(_differences_chart(statistics))
    return found


def _points_chart(statistics: StudyStatistics) -> Chart:
    title = column_title(statistics.metric.name)
    figure, rows, offsets = _rows_figure(statistics), points(statistics), seed_offsets(statistics)
    for seed, offset in offsets.items():
        line = [(row.values[seed], i + offset) for i, row in enumerate(rows) if seed in row.values]
        add_line(figure, line, GRAY, 1)
    _draw_rows(figure, rows, offsets, f" {statistics.metric.unit}", statistics.metric.digits)
    _label_rows(figure, rows, f"{title} ({statistics.metric.unit})")
    _not_below_zero(figure.update_xaxes, statistics.metric)
    caption = (
        "Each dot is one run; a thin line joins the runs of one seed. Below the dots: the mean and "
        "its 95 % t-interval."
    )
    return Chart("points", f"{title} of every run", caption, figure)


def _differences_chart(statistics: StudyStatistics) -> Chart:
    figure, rows = _rows_figure(statistics), differences(statistics)
    figure.add_vline(x=0, line={"color": "#808894", "width": 1.5})
    metric = statistics.metric
    unit, form = metric.difference_unit, f"+{metric.digits}"
    _draw_rows(figure, rows, seed_offsets(statistics), f" {unit}", form)
    _label_rows(figure, rows, f"Difference ({'percentage points' if metric.is_share else unit})")
    figure.update_layout(meta=f"against {cut(statistics.baseline)}")
    caption = (
        f"Each dot is a module's {statistics.metric.short} minus that of {statistics.baseline} with "
        f"the same seed. Below the dots: the mean and its {percent(statistics.design.confidence)} "
        "interval, which holds for all modules together."
    )
    return Chart("differences", "Difference from the baseline, seed by seed", caption, figure)


def _draw_rows(
    figure: go.Figure, rows: Sequence[PointRow], offsets: dict[int, float], unit: str, form: str
) -> None:
    """Draw each row's dots, its mean and interval below them."""
    for place, row in enumerate(rows):
        style, name = module_style(row.module), text(row.name)
        dots = [(value, place + offsets[seed]) for seed, value in row.values.items()]
        hover = f"{name}, seed %{{customdata}}: %{{x:{form}}}{unit}<extra></extra>"
        seeds, color = list(row.values), style.transparent(0.75)
        add_markers(figure, dots, color, 8, customdata=seeds, hovertemplate=hover)
        if row.mean is None:
            continue
        reach, note = None, "no interval"
        if row.interval:
            low, high = row.interval
            note = f"interval {low:{form}} to {high:{form}}{unit}"
            reach = error_bar(row.mean, row.interval, style.color, 2.5, 5)
        hover = f"{name}: mean %{{x:{form}}}{unit}<br>{note}<extra></extra>"
        mean = [(row.mean, place + 0.32)]
        add_markers(figure, mean, style.color, 12, style.symbol, error_x=reach, hovertemplate=hover)


def _rows_figure(statistics: StudyStatistics) -> go.Figure:
    # As high as a row for each module, so that two charts side by side are equal.
    rows = len(statistics.modules)
    return new_figure(100 + (64 if rows <= 8 else 54) * rows)


def _label_rows(figure: go.Figure, rows: Sequence[PointRow], title: str) -> None:
    figure.update_xaxes(title_text=title)
    name_rows(figure, [row.name for row in rows], lines=3)
    figure.update_yaxes(showgrid=False)


def _not_below_zero(update_axes: Callable[..., object], metric: Metric) -> None:
    if metric.is_share:
        update_axes(rangemode="nonnegative")


def _pareto_chart(speeds: dict[str, Speed], statistics: StudyStatistics, name: str) -> Chart:
    shown = [
        (i, module, module.mean, speeds[module.attention])
        for i, module in enumerate(statistics.modules)
        if module.mean is not None and module.attention in speeds
    ]
    slowest = max(1 / speed.median for *_, speed in shown)
    unit, scale = ("µs", 1e6) if slowest < 1e-3 else ("ms", 1e3) if slowest < 1 else ("s", 1.0)
    figure = new_figure(360)
    metric = statistics.metric
    front = pareto_front(
        [(scale / speed.median, metric.scale * mean) for *_, mean, speed in shown],
        metric.higher_is_better,
    )
    add_line(figure, front, GRAY, 2, {"shape": "hv", "dash": "dot"})
    for i, module, mean, speed in shown:
        style, label = module_style(i), text(module.attention)
        pale = style.transparent(0.6)
        time, score = scale / speed.median, metric.scale * mean
        low, high = module.interval or (mean, mean)
        quartiles = (scale / speed.high, scale / speed.low)
        add_markers(
            figure,
            [(time, score)],
            style.color,
            13,
            style.symbol,
            name=label,
            error_x=error_bar(time, quartiles, pale, 1.5),
            error_y=error_bar(score, (metric.scale * low, metric.scale * high), pale, 1.5),
            hovertemplate=f"{label}: %{{y:{metric.digits}}} {metric.unit}, %{{x:.4g}} {unit} per image"
            "<extra></extra>",
            meta=i,
        )
    figure.update_xaxes(title_text=f"{capitalized(name)} time ({unit} per image)")
    figure.update_yaxes(title_text=f"{column_title(metric.name)} ({metric.unit})")
    _not_below_zero(figure.update_yaxes, metric)
    short = metric.short
    caption = (
        f"{'Up' if metric.higher_is_better else 'Down'} and to the left is better. Dotted: the Pareto "
        "front, the modules that no other beats in "
        f"both means. Bars: 95 % t-interval of the {short}, quartiles of the time."
    )
    title = f"{column_title(short)} against {name} time"
    return Chart(f"pareto-{name}", title, caption, figure)


def _curve_chart(title: str, unit: str, curves: dict[str, Curve], end: bool = False) -> Chart:
    figure, percent = new_figure(360), unit == "%"
    # Many bands lie over each other.
    opacity = 0.14 if len(curves) <= 4 else 0.06
    styles = [module_style(i) for i in range(len(curves))]
    for i, (style, c) in enumerate(zip(styles, curves.values(), strict=True)):
        if c.runs > 1:
            # Forth along the highest runs, back along the lowest.
            edge = [*zip(c.epochs, c.high, strict=True)]
            edge += [*zip(c.epochs, c.low, strict=True)][::-1]
            color = style.transparent(opacity)
            add_line(figure, edge, style.color, 0, fill="toself", fillcolor=color, meta=i)
    form = "%{y:.2f} %" if percent else "%{y:.4f}"
    for i, (style, (name, c)) in enumerate(zip(styles, curves.items(), strict=True)):
        line, every = list(zip(c.epochs, c.mean, strict=True)), max(1, len(c.epochs) // 8)
        add_line(figure, line, style.color, 2, name=text(name), hovertemplate=form, meta=i)
        marked = line[(i * 3) % every :: every]
        add_markers(figure, marked, style.color, 8, style.symbol, hoverinfo="skip", meta=i)
    figure.update_layout(hovermode="x unified")
    # Between few epochs, plotly would place ticks whose labels are rounded.
    apart = 1 if max(len(c.epochs) for c in curves.values()) <= 8 else None
    figure.update_xaxes(title_text="Epoch", tickformat="d", dtick=apart, showgrid=False)
    figure.update_yaxes(title_text=f"{title} ({unit})")
    caption = "One run for each module."
    if any(c.runs > 1 for c in curves.values()):
        caption = (
            "Mean over the finished runs; the band reaches from the lowest run to the highest."
        )
    low = min(min(c.low) for c in curves.values() if c.low)
    high = max(max(c.high) for c in curves.values() if c.high)
    if percent:
        figure.update_yaxes(rangemode="nonnegative")
    if not percent and low > 0 and high / low > 20:
        figure.update_yaxes(type="log", dtick=1)
        caption += " Logarithmic axis."
    name = title.lower().replace(" ", "-")
    if end:
        name, title = f"{name}-end", f"{title}, second half"
    return Chart(name, title, caption, figure)
