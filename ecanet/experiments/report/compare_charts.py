"""The pictures of a comparison's report: plotly for the page, matplotlib for files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ecanet.experiments.analysis.compare import StudySummary
from ecanet.experiments.analysis.statistics import ModuleStatistics, StudyStatistics
from ecanet.experiments.report.style import (
    GREY,
    Chart,
    Look,
    cut,
    file_figure,
    file_style,
    layout,
    look,
    page_html,
    png,
    text,
)
from ecanet.record import Cost, Record, Speed

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is drawn


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


def curve(records: Sequence[Record], metric: Callable[[Any], float]) -> Curve:
    """Average ``metric`` over runs, epoch by epoch; values that are not finite are left out."""
    values: dict[int, list[float]] = {}
    for record in records:
        for epoch in record.epochs:
            if math.isfinite(value := metric(epoch)):
                values.setdefault(epoch.epoch + 1, []).append(value)
    epochs = sorted(values)
    return Curve(
        epochs,
        [float(np.mean(values[e])) for e in epochs],
        [min(values[e]) for e in epochs],
        [max(values[e]) for e in epochs],
        len(records),
    )


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (time, accuracy) than which none is both faster and more accurate, by time."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _time_unit(speeds: Sequence[Speed]) -> tuple[str, float]:
    slowest = max((1 / speed.median for speed in speeds), default=1.0)
    if slowest < 1e-3:
        return "µs", 1e6
    return ("ms", 1e3) if slowest < 1 else ("s", 1.0)


def _spread(seeds: Sequence[int]) -> dict[int, float]:
    """Where in its row a seed's points lie, so that equal accuracies do not hide each other."""
    places = np.linspace(-0.2, 0.12, len(seeds)) if len(seeds) > 1 else np.array([-0.04])
    return dict(zip(seeds, map(float, places), strict=True))


def _all_seeds(modules: Sequence[ModuleStatistics]) -> list[int]:
    return sorted({seed for module in modules for seed in module.seeds})


@dataclass
class Panel:
    """Curves of one metric, one a module; without epochs where a module has no finished run."""

    name: str
    title: str
    unit: str
    loss: bool
    curves: list[Curve]


def _panels(summary: StudySummary, statistics: StudyStatistics) -> list[Panel]:
    score, unit = statistics.metric.curve, statistics.metric.loss_unit
    metrics: list[tuple[str, str, bool, Callable[[Any], float]]] = [
        (score, f"{score} (%)", False, lambda e: 100 * e.score),
        ("Training loss", f"Training loss ({unit})", True, lambda e: e.train_loss),
        ("Validation loss", "Validation loss (nats)", True, lambda e: e.val_loss),
    ]
    panels = []
    for title, unit, loss, metric in metrics:
        curves = [curve(_records(summary, m), metric) for m in statistics.modules]
        last = max((c.epochs[-1] for c in curves if c.epochs), default=0)
        name = title.lower().replace(" ", "-")
        if last:
            panels.append(Panel(name, title, unit, loss, curves))
        if last >= 6 and not loss:
            # The whole curve hides what modules differ by.
            ends = [c.after(last // 2) for c in curves]
            panels.append(Panel(f"{name}-end", f"{title}, second half", unit, loss, ends))
    return panels


def _records(summary: StudySummary, module: ModuleStatistics) -> list[Record]:
    return [record for record in summary.records if record.attention == module.attention]


def _band(curves: int) -> float:
    """How opaque the band of a curve is: many lie over each other."""
    return 0.14 if curves <= 4 else 0.06


def _logarithmic(panel: Panel) -> bool:
    """Whether losses span so much that only a logarithmic axis shows them."""
    low = min((min(c.low) for c in panel.curves if c.low), default=1.0)
    high = max((max(c.high) for c in panel.curves if c.high), default=1.0)
    return panel.loss and low > 0 and high / low > 20


# For the page


def charts(summary: StudySummary, statistics: StudyStatistics) -> list[Chart]:
    """Draw every chart that the study has numbers for."""
    found = []
    drawn = list(enumerate(statistics.modules))
    if any(module.accuracies for _, module in drawn):
        found.append(_points_chart(statistics))
    if any(module.comparison and module.comparison.differences for _, module in drawn):
        found.append(_differences_chart(statistics))
    for key, name in (("train", "training"), ("inference", "inference")):
        chart = _pareto_chart(summary.costs, statistics, key, name)
        if chart:
            found.append(chart)
    names = [module.attention for module in statistics.modules]
    return found + [_curve_chart(panel, names) for panel in _panels(summary, statistics)]


def _points_chart(statistics: StudyStatistics) -> Chart:
    import plotly.graph_objects as go

    modules = statistics.modules
    place = _spread(_all_seeds(modules))
    figure = go.Figure()
    for seed, shift in place.items():
        pairs = [
            (100 * module.accuracies[module.seeds.index(seed)], row + shift)
            for row, module in enumerate(modules)
            if seed in module.seeds
        ]
        figure.add_scatter(
            x=[x for x, _ in pairs],
            y=[y for _, y in pairs],
            mode="lines",
            line={"color": GREY, "width": 1},
            hoverinfo="skip",
        )
    for row, module in enumerate(modules):
        _row(
            figure,
            row,
            row,
            module.attention,
            {s: 100 * a for s, a in zip(module.seeds, module.accuracies, strict=True)},
            place,
            None if module.mean is None else 100 * module.mean,
            None if module.interval is None else [100 * v for v in module.interval],
            " %",
            ".2f",
        )
    _rows_layout(
        figure, [m.attention for m in modules], len(modules), f"{statistics.metric.title()} (%)"
    )
    return Chart(
        "points",
        f"{statistics.metric.title()} of every run",
        "Each dot is one run; a thin line joins the runs of one seed. Below the dots: the mean and "
        "its 95 % t-interval.",
        page_html(figure, "points"),
    )


def _differences_chart(statistics: StudyStatistics) -> Chart:
    import plotly.graph_objects as go

    compared = [(i, m, m.comparison) for i, m in enumerate(statistics.modules) if m.comparison]
    place = _spread(_all_seeds(statistics.modules))
    figure = go.Figure()
    figure.add_vline(x=0, line={"color": "#808894", "width": 1.5})
    for row, (index, module, comparison) in enumerate(compared):
        _row(
            figure,
            row,
            index,
            module.attention,
            {s: 100 * d for s, d in zip(comparison.seeds, comparison.differences, strict=True)},
            place,
            None if comparison.mean is None else 100 * comparison.mean,
            None if comparison.interval is None else [100 * v for v in comparison.interval],
            " points",
            "+.2f",
        )
    names = [module.attention for _, module, _ in compared]
    _rows_layout(figure, names, len(statistics.modules), "Difference (percentage points)")
    return Chart(
        "differences",
        "Difference from the baseline, seed by seed",
        f"Each dot is a module's {statistics.metric.short} minus that of {statistics.baseline} with "
        "the same seed. Below the dots: the mean and its 95 % BCa interval, not corrected for the "
        "number of comparisons.",
        page_html(figure, "differences"),
    )


def _row(
    figure: go.Figure,
    row: int,
    index: int,
    name: str,
    values: dict[int, float],
    place: dict[int, float],
    mean: float | None,
    interval: Sequence[float] | None,
    unit: str,
    form: str,
) -> None:
    """Draw a module's dots in row ``row``, its mean and interval below them."""
    style = look(index)
    figure.add_scatter(
        x=list(values.values()),
        y=[row + place[seed] for seed in values],
        mode="markers",
        marker={"color": style.transparent(0.75), "size": 8},
        customdata=list(values),
        hovertemplate=f"{text(name)}, seed %{{customdata}}: %{{x:{form}}}{unit}<extra></extra>",
    )
    if mean is None:
        return
    reach = {}
    note = "no interval"
    if interval:
        low, high = interval
        note = f"95 % interval {low:{form}} to {high:{form}}{unit}"
        reach = {
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [high - mean],
                "arrayminus": [mean - low],
                "color": style.colour,
                "thickness": 2.5,
                "width": 5,
            }
        }
    figure.add_scatter(
        x=[mean],
        y=[row + 0.32],
        mode="markers",
        marker={"color": style.colour, "symbol": style.symbol, "size": 12},
        hovertemplate=f"{text(name)}: mean %{{x:{form}}}{unit}<br>{note}<extra></extra>",
        **reach,
    )


def _rows_layout(figure: go.Figure, names: Sequence[str], rows: int, title: str) -> None:
    layout(figure, 100 + 64 * rows)
    figure.update_xaxes(title_text=title)
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[text(name, width=18, lines=3) for name in names],
        range=[len(names) - 0.4, -0.5],
        showgrid=False,
        zeroline=False,
        # Invisible ticks keep the names off the plot.
        ticks="outside",
        ticklen=8,
        tickcolor="rgba(0,0,0,0)",
    )


def _curve_chart(panel: Panel, names: Sequence[str]) -> Chart:
    import plotly.graph_objects as go

    figure = go.Figure()
    opacity = _band(len(names))
    for index, c in enumerate(panel.curves):
        if c.runs > 1:
            figure.add_scatter(
                x=[*c.epochs, *reversed(c.epochs)],
                y=[*c.high, *reversed(c.low)],
                fill="toself",
                fillcolor=look(index).transparent(opacity),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                meta=index,
            )
    for index, (name, c) in enumerate(zip(names, panel.curves, strict=True)):
        style = look(index)
        every = max(1, len(c.epochs) // 8)
        figure.add_scatter(
            x=c.epochs,
            y=c.mean,
            mode="lines",
            line={"color": style.colour, "width": 2},
            name=text(name),
            hovertemplate=f"%{{y:{'.4f' if panel.loss else '.2f'}}}{'' if panel.loss else ' %'}",
            meta=index,
        )
        marked = slice((index * 3) % every, None, every)
        figure.add_scatter(
            x=c.epochs[marked],
            y=c.mean[marked],
            mode="markers",
            marker={"color": style.colour, "symbol": style.symbol, "size": 8},
            hoverinfo="skip",
            meta=index,
        )
    layout(figure, 360)
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title_text="Epoch", tickformat="d", showgrid=False)
    figure.update_yaxes(title_text=panel.unit)
    caption = "One run a module."
    if any(c.runs > 1 for c in panel.curves):
        caption = (
            "Mean over the finished runs; the band reaches from the lowest run to the highest."
        )
    if _logarithmic(panel):
        figure.update_yaxes(type="log", dtick=1)
        caption += " Logarithmic axis."
    return Chart(panel.name, panel.title, caption, page_html(figure, panel.name))


def _pareto_chart(
    costs: Sequence[Cost], statistics: StudyStatistics, key: str, name: str
) -> Chart | None:
    import plotly.graph_objects as go

    priced = {cost.attention: cost for cost in costs}
    shown = [
        (index, module, module.mean, getattr(priced[module.attention], key))
        for index, module in enumerate(statistics.modules)
        if module.mean is not None and module.attention in priced
    ]
    if not shown:
        return None
    unit, scale = _time_unit([speed for *_, speed in shown])
    figure = go.Figure()
    best = frontier([(scale / speed.median, 100 * mean) for _, _, mean, speed in shown])
    figure.add_scatter(
        x=[x for x, _ in best],
        y=[y for _, y in best],
        mode="lines",
        line={"color": GREY, "shape": "hv", "dash": "dot", "width": 2},
        hoverinfo="skip",
    )
    for index, module, mean, speed in shown:
        style = look(index)
        time = scale / speed.median
        low, high = module.interval or (mean, mean)
        figure.add_scatter(
            x=[time],
            y=[100 * mean],
            mode="markers",
            marker={"color": style.colour, "symbol": style.symbol, "size": 13},
            error_x=_error(time, scale / speed.high, scale / speed.low, style),
            error_y=_error(100 * mean, 100 * low, 100 * high, style),
            hovertemplate=f"{text(module.attention)}: %{{y:.2f}} %, "
            f"%{{x:.4g}} {unit} an image<extra></extra>",
            meta=index,
        )
    layout(figure, 360)
    figure.update_xaxes(title_text=f"{name.capitalize()} time ({unit} an image)")
    figure.update_yaxes(title_text=f"{statistics.metric.title()} (%)")
    short = statistics.metric.short
    return Chart(
        f"pareto-{name}",
        f"{short[0].upper()}{short[1:]} against {name} time",
        "Up and to the left is better. Dotted: the modules than which none is both faster and better "
        f"in the mean. Bars: 95 % t-interval of the {short}, quartiles of the time.",
        page_html(figure, f"pareto-{name}"),
    )


def _error(value: float, low: float, high: float, style: Look) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(high - value, 0)],
        "arrayminus": [max(value - low, 0)],
        "color": style.transparent(0.6),
        "thickness": 1.5,
        "width": 0,
    }


# For files


def pictures(summary: StudySummary, statistics: StudyStatistics) -> dict[str, bytes]:
    """Draw the PNG files that the study has numbers for: name to content, 160 dots an inch."""
    panels = _panels(summary, statistics)
    with file_style():
        drawn = {
            "points.png": _points_picture(statistics),
            f"{statistics.metric.short}.png": _curves_picture(
                [p for p in panels if not p.loss], statistics
            ),
            "loss.png": _curves_picture([p for p in panels if p.loss], statistics),
            "pareto.png": _pareto_picture(summary.costs, statistics),
        }
        return {name: png(figure) for name, figure in drawn.items() if figure}


def _points_picture(statistics: StudyStatistics) -> Figure | None:
    modules = statistics.modules
    if not any(module.accuracies for module in modules):
        return None
    compared = [m for m in modules if m.comparison and m.comparison.differences]
    place = _spread(_all_seeds(modules))
    figure, axes = file_figure(
        11 if compared else 6.5, 1.4 + 0.62 * len(modules), 2 if compared else 1
    )
    for seed, shift in place.items():
        rows = [row for row, module in enumerate(modules) if seed in module.seeds]
        found = [100 * modules[r].accuracies[modules[r].seeds.index(seed)] for r in rows]
        axes[0].plot(found, [row + shift for row in rows], color="#b9bec6", lw=0.8, zorder=1)
    for row, module in enumerate(modules):
        values = dict(zip(module.seeds, module.accuracies, strict=True))
        _row_picture(axes[0], row, look(row), values, place, module.mean, module.interval)
    axes[0].set_xlabel(f"{statistics.metric.title()} (%)")
    for ax in axes:
        ax.set_ylim(len(modules) - 0.4, -0.5)
        ax.grid(axis="y", visible=False)
        ax.set_yticks(range(len(modules)), [cut(m.attention) for m in modules])
    if compared:
        axes[1].axvline(0, color="#808894", lw=1.2)
        axes[1].set_yticklabels([])
        axes[1].set_xlabel(f"Difference from {cut(statistics.baseline)} (percentage points)")
        for row, module in enumerate(modules):
            c = module.comparison
            if c:
                values = dict(zip(c.seeds, c.differences, strict=True))
                _row_picture(axes[1], row, look(row), values, place, c.mean, c.interval)
    return figure


def _row_picture(
    ax: Axes,
    row: int,
    style: Look,
    values: dict[int, float],
    place: dict[int, float],
    mean: float | None,
    interval: tuple[float, float] | None,
) -> None:
    ax.scatter(
        [100 * v for v in values.values()],
        [row + place[seed] for seed in values],
        s=26,
        color=style.colour,
        alpha=0.75,
        linewidths=0,
        zorder=2,
    )
    if mean is None:
        return
    if interval:
        low, high = interval
        ax.plot([100 * low, 100 * high], [row + 0.32] * 2, color=style.colour, lw=2, zorder=2)
    ax.plot([100 * mean], [row + 0.32], style.marker, color=style.colour, ms=7, zorder=3)


def _curves_picture(panels: Sequence[Panel], statistics: StudyStatistics) -> Figure | None:
    from matplotlib.ticker import MaxNLocator

    if not panels:
        return None
    figure, axes = file_figure(6.2 * len(panels), 4.2, len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        opacity = _band(len(panel.curves))
        for index, c in enumerate(panel.curves):
            style = look(index)
            if c.runs > 1:
                ax.fill_between(c.epochs, c.low, c.high, color=style.colour, alpha=opacity, lw=0)
            every = max(1, len(c.epochs) // 8)
            ax.plot(
                c.epochs,
                c.mean,
                color=style.colour,
                marker=style.marker,
                ms=5,
                markevery=((index * 3) % every, every),
                lw=1.6,
            )
        ax.set_xlabel("Epoch")
        ax.set_ylabel(panel.unit)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if _logarithmic(panel):
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
    _legend(figure, statistics)
    return figure


def _pareto_picture(costs: Sequence[Cost], statistics: StudyStatistics) -> Figure | None:
    priced = {cost.attention: cost for cost in costs}
    shown = [
        (index, module, module.mean, priced[module.attention])
        for index, module in enumerate(statistics.modules)
        if module.mean is not None and module.attention in priced
    ]
    if not shown:
        return None
    figure, axes = file_figure(11, 4.2, 2)
    for ax, key, name in zip(axes, ("train", "inference"), ("Training", "Inference"), strict=True):
        unit, scale = _time_unit([getattr(cost, key) for *_, cost in shown])
        points = [(scale / getattr(c, key).median, 100 * mean) for _, _, mean, c in shown]
        best = frontier(points)
        ax.step([x for x, _ in best], [y for _, y in best], ":", where="post", color="#9aa1ab")
        for (index, module, _, _), (x, y) in zip(shown, points, strict=True):
            style = look(index)
            if module.interval:
                ax.plot([x, x], [100 * v for v in module.interval], color=style.colour, alpha=0.6)
            ax.plot([x], [y], style.marker, color=style.colour, ms=9)
        ax.set_xlabel(f"{name} time ({unit} an image)")
        ax.set_ylabel(f"{statistics.metric.title()} (%)")
    _legend(figure, statistics)
    return figure


def _legend(figure: Figure, statistics: StudyStatistics) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=look(i).colour, marker=look(i).marker)
        for i in range(len(statistics.modules))
    ]
    figure.legend(
        handles,
        # A label that starts with an underscore would be left out.
        [" " + cut(module.attention) for module in statistics.modules],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
