"""The pictures of a sweep's report: plotly for the page, matplotlib for files.

Thousands of trials are thinned out before they are drawn; the tables beside the page hold all of them.
Parallel coordinates are drawn as lines: plotly's own need WebGL, and a page that may run any code.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import CategoricalDistribution

from ecanet.experiments.analysis.sweep import SweepSummary, Trial, short
from ecanet.experiments.report.style import (
    GREY,
    Chart,
    cut,
    file_figure,
    file_style,
    layout,
    look,
    page_html,
    png,
    text,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Dots of a chart, lines of the parallel coordinates, and parameters that are drawn.
_DOTS, _LINES, _PARAMETERS = 600, 200, 12
_RUN, _BEST = look(1).colour, look(2).colour
# Of parallel coordinates, from the worse half of the trials to the best tenth.
_BANDS = (
    (1.0, "the worse half", GREY, 1.0),
    (0.5, "the better half", look(1).transparent(0.35), 1.2),
    (0.1, "the best tenth", look(1).transparent(0.9), 1.8),
)


@dataclass
class Scale:
    """Where a parameter's or the metric's values lie on an axis, from 0 to 1."""

    name: str
    categories: list[str] | None
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def place(self, value: Any) -> float:
        if self.categories is not None:
            last = len(self.categories) - 1
            return self.categories.index(short(value)) / last if last else 0.5
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def marks(self) -> list[tuple[float, str]]:
        """Return places on the axis and what stands there."""
        if self.categories is not None:
            return [(self.place(c), c) for c in self.categories]
        if self.low == self.high:
            return [(0.5, short(self.low))]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [(self.place(v), f"{v:.3g}") for v in (self.low, middle, self.high)]


def charts(summary: SweepSummary, importance: dict[str, float] | None) -> list[Chart]:
    """Draw every chart that the sweep has numbers for."""
    ranked = summary.ranked()
    if not ranked:
        return []
    found = [_history_chart(summary), _parallel_chart(summary, importance)]
    if importance:
        found.append(_importance_chart(importance))
    return found + [_slice_chart(summary, name) for name in drawn_parameters(summary, importance)]


def drawn_parameters(summary: SweepSummary, importance: dict[str, float] | None) -> list[str]:
    """Return the parameters that are drawn: the most important ones, or the first."""
    names = list(summary.parameters)
    if importance:
        names.sort(key=lambda name: -importance.get(name, 0.0))
    return names[:_PARAMETERS]


def thinned(trials: Sequence[Trial], most: int) -> list[Trial]:
    """Return at most ``most`` of the trials, which are sorted best first: the best and some of the others.

    A fifth of them are the best, the rest lie at even distances in the ranking.
    """
    if len(trials) <= most:
        return list(trials)
    best = most // 5
    places = np.linspace(best, len(trials) - 1, most - best).round().astype(int)
    return [*trials[:best], *(trials[i] for i in places)]


def fence(summary: SweepSummary) -> float | None:
    """Return the metric beyond which a trial is so bad that it would crush all others in a chart.

    It lies eight times as far behind the median as the best trial lies before it, which holds though
    almost half of the trials diverged. None: no trial is beyond.
    """
    values = [trial.metric for trial in summary.ranked()]
    if not values:
        return None
    median = float(np.median(values))
    edge = median + 8 * (median - values[0])
    beyond = values[-1] < edge if summary.maximize else values[-1] > edge
    return edge if beyond and median != values[0] else None


def metric_name(summary: SweepSummary) -> str:
    """Return what is optimised, with its unit."""
    return (
        "Validation accuracy (%)" if summary.metric == "val_accuracy" else "Validation loss (nats)"
    )


def shown(summary: SweepSummary, value: float) -> float:
    """Return the metric as it is drawn: accuracies in percent."""
    return 100 * value if summary.metric == "val_accuracy" else value


# For the page


def _history_chart(summary: SweepSummary) -> Chart:
    import plotly.graph_objects as go

    figure = go.Figure()
    ranked = summary.ranked()
    drawn = thinned(ranked, _DOTS)
    figure.add_scatter(
        x=[t.number + 1 for t in drawn],
        y=[shown(summary, t.metric) for t in drawn],
        mode="markers",
        marker={"color": look(1).transparent(0.55), "size": 8},
        text=[_hover(summary, t) for t in drawn],
        hovertemplate="%{text}<extra></extra>",
    )
    early = [t for t in summary.trials if t.state == "ended early" and math.isfinite(t.metric)]
    early = early[:: math.ceil(len(early) / _DOTS) or 1]
    figure.add_scatter(
        x=[t.number + 1 for t in early],
        y=[shown(summary, t.metric) for t in early],
        mode="markers",
        marker={"color": GREY, "symbol": "x", "size": 7},
        text=[_hover(summary, t) for t in early],
        hovertemplate="%{text}<extra></extra>",
    )
    steps = best_so_far(summary)
    figure.add_scatter(
        x=[number + 1 for number, _ in steps],
        y=[shown(summary, value) for _, value in steps],
        mode="lines",
        line={"color": _BEST, "width": 2.5, "shape": "hv"},
        hovertemplate="best so far: %{y:.4f}<extra></extra>",
    )
    layout(figure, 360)
    figure.update_xaxes(title_text="Trial", tickformat="d", showgrid=False)
    if len(summary.trials) < 10:
        figure.update_xaxes(dtick=1)
    figure.update_yaxes(title_text=metric_name(summary))
    caption = "A dot is a finished trial; the line is the best so far."
    if early:
        caption += " Crosses ended early, at the metric of their last epoch."
    if len(drawn) < len(ranked):
        caption += f" {len(drawn):,} of {len(ranked):,} trials are drawn, the best among them."
    return Chart(
        "history", "History", caption + _limit(figure, summary), page_html(figure, "history")
    )


def best_so_far(summary: SweepSummary) -> list[tuple[int, float]]:
    """Return where the best metric changed: trial numbers and metrics, and the last trial."""
    steps: list[tuple[int, float]] = []
    sign = 1 if summary.maximize else -1
    for trial in summary.trials:
        if trial.judged and (not steps or sign * trial.metric > sign * steps[-1][1]):
            steps.append((trial.number, trial.metric))
    if steps and summary.trials[-1].number > steps[-1][0]:
        steps.append((summary.trials[-1].number, steps[-1][1]))
    return steps


def _parallel_chart(summary: SweepSummary, importance: dict[str, float] | None) -> Chart:
    import plotly.graph_objects as go

    figure = go.Figure()
    axes, ranked = scales(summary, importance), summary.ranked()
    drawn = thinned(ranked, _LINES)
    place = {trial.name: i for i, trial in enumerate(ranked)}
    begins = [1.0, *(share for share, *_ in _BANDS[1:]), 0.0]
    for (share, name, colour, width), until in zip(_BANDS, begins[1:], strict=True):
        inside = [t for t in drawn if until * len(ranked) <= place[t.name] < share * len(ranked)]
        inside = [t for t in inside if place[t.name] > 0]
        if inside:
            _lines(figure, summary, axes, inside, colour, width, name)
    _lines(figure, summary, axes, ranked[:1], _BEST, 3.5, "the best")
    layout(figure, 420)
    figure.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=[text(axis.name, width=14, lines=3) for axis in axes],
        range=[-0.6, len(axes) - 0.65],
        showgrid=False,
        side="top",
        tickangle=0,
    )
    figure.update_yaxes(visible=False, range=[-0.08, 1.08])
    for i, axis in enumerate(axes):
        figure.add_shape(
            type="line", x0=i, x1=i, y0=0, y1=1, line={"color": "#808894", "width": 1.5}
        )
        for y, mark in axis.marks():
            figure.add_annotation(
                x=i, y=y, text=text(mark, width=12, lines=1), showarrow=False, xanchor="right",
                xshift=-6, font={"size": 11}, bgcolor="rgba(0,0,0,0)",
            )  # fmt: skip
    caption = (
        "A line is a finished trial. Orange: the best. Blue: the best tenth, and paler the better "
        "half. Grey: the worse half."
    )
    if len(drawn) < len(ranked):
        caption += f" {len(drawn):,} of {len(ranked):,} trials are drawn, the best among them."
    if len(axes) <= len(summary.parameters):
        caption += f" The {len(axes) - 1} most important of {len(summary.parameters)} parameters."
    return Chart("parallel", "Parallel coordinates", caption, page_html(figure, "parallel"))


def scales(summary: SweepSummary, importance: dict[str, float] | None) -> list[Scale]:
    """Return the axes of the parallel coordinates: the parameters, and the metric, better above."""
    found = [_scale(summary, name) for name in drawn_parameters(summary, importance)]
    values = [trial.metric for trial in summary.ranked()]
    edge = fence(summary)
    if edge is not None:
        values = [max(v, edge) if summary.maximize else min(v, edge) for v in values]
    low, high = shown(summary, min(values)), shown(summary, max(values))
    name = "accuracy (%)" if summary.metric == "val_accuracy" else "loss (nats)"
    return [*found, (Scale if summary.maximize else _Falling)(name, None, low, high)]


class _Falling(Scale):
    """A scale on which the low values, which are better, lie above."""

    def place(self, value: Any) -> float:
        return 1 - super().place(value)


def _scale(summary: SweepSummary, name: str) -> Scale:
    values = [t.values[name] for t in summary.ranked()]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    distribution = summary.distributions.get(name)
    categorical = isinstance(distribution, CategoricalDistribution)
    if categorical or len(numbers) < len(values):
        choices: Sequence[Any] = distribution.choices if categorical else values  # type: ignore[union-attr]
        seen = {short(v) for v in values}
        names = list(dict.fromkeys(short(c) for c in choices))
        return Scale(name, [n for n in names if n in seen] + sorted(seen - set(names)))
    low, high = min(numbers), max(numbers)
    return Scale(name, None, low, high, log=low > 0 and high / low > 20)


def _lines(
    figure: go.Figure,
    summary: SweepSummary,
    axes: Sequence[Scale],
    trials: Sequence[Trial],
    colour: str,
    width: float,
    name: str,
) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    hover: list[str | None] = []
    for trial in trials:
        # So that trials of one category do not hide each other.
        shift = 0.03 * (((trial.number * 0.618034) % 1) - 0.5)
        for i, axis in enumerate(axes):
            last = i == len(axes) - 1
            value = shown(summary, trial.metric) if last else trial.values[axis.name]
            x.append(i)
            y.append(axis.place(value) + (shift if axis.categories else 0.0))
            hover.append(_hover(summary, trial))
        x.append(None)
        y.append(None)
        hover.append(None)
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": colour, "width": width}, text=hover,
        hovertemplate="%{text}<extra></extra>", name=name,
    )  # fmt: skip


def _importance_chart(importance: dict[str, float]) -> Chart:
    import plotly.graph_objects as go

    names = sorted(importance, key=lambda name: importance[name])[-_PARAMETERS:]
    figure = go.Figure()
    figure.add_bar(
        x=[100 * importance[name] for name in names],
        y=list(range(len(names))),
        orientation="h",
        marker={"color": _RUN},
        text=[f"{100 * importance[name]:.0f} %" for name in names],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    layout(figure, 110 + 44 * len(names))
    most = max(100 * importance[name] for name in names)
    figure.update_xaxes(title_text="Share of the variance (%)", range=[0, 1.18 * most or 1])
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[text(name, width=18, lines=3) for name in names],
        showgrid=False,
    )
    return Chart(
        "importance",
        "Importance of the parameters",
        "How much of the metric's variance over the searched space each parameter alone explains: fANOVA "
        "(Hutter, Hoos and Leyton-Brown, ICML 2014) on the finished trials. From few trials it is rough.",
        page_html(figure, "importance"),
    )


def _slice_chart(summary: SweepSummary, name: str) -> Chart:
    import plotly.graph_objects as go

    scale, ranked = _scale(summary, name), summary.ranked()
    figure = go.Figure()
    drawn = thinned(ranked, _DOTS)
    best = ranked[0]
    for trials, marker in (
        (drawn[1:], {"color": look(1).transparent(0.5), "size": 8}),
        ([best], {"color": _BEST, "symbol": "star", "size": 15}),
    ):
        figure.add_scatter(
            x=[_across(scale, t.values[name], t.number) for t in trials],
            y=[shown(summary, t.metric) for t in trials],
            mode="markers",
            marker=marker,
            text=[_hover(summary, t) for t in trials],
            hovertemplate="%{text}<extra></extra>",
        )
    caption = "Orange: the best trial."
    if scale.categories:
        for i, category in enumerate(scale.categories):
            inside = [t.metric for t in ranked if short(t.values[name]) == category]
            median = shown(summary, float(np.median(inside)))
            figure.add_scatter(
                x=[i - 0.3, i + 0.3], y=[median] * 2, mode="lines",
                line={"color": "#808894", "width": 2.5},
                hovertemplate=f"median of {len(inside)}: %{{y:.4f}}<extra></extra>",
            )  # fmt: skip
        caption += " Bars: the median of each value."
    layout(figure, 320)
    figure.update_xaxes(title_text=text(name, lines=3), showgrid=False)
    figure.update_yaxes(title_text=metric_name(summary))
    if scale.categories:
        figure.update_xaxes(
            tickvals=list(range(len(scale.categories))),
            ticktext=[text(c, width=14, lines=2) for c in scale.categories],
            range=[-0.5, len(scale.categories) - 0.5],
        )
    elif scale.log:
        figure.update_xaxes(
            type="log", exponentformat="e", dtick=1 if scale.high > 100 * scale.low else None
        )
    return Chart(
        f"slice-{list(summary.parameters).index(name)}",
        name,
        caption + _limit(figure, summary),
        page_html(figure, f"slice-{list(summary.parameters).index(name)}"),
    )


def _across(scale: Scale, value: Any, number: int) -> Any:
    """Where a trial stands along a slice; trials of one category beside each other."""
    if scale.categories is None:
        return value
    return scale.categories.index(short(value)) + 0.5 * (((number * 0.618034) % 1) - 0.5)


def _limit(figure: go.Figure, summary: SweepSummary) -> str:
    """Leave the worst trials out of sight where they would crush all others, and say so."""
    edge = fence(summary)
    if edge is None:
        return ""
    values = [trial.metric for trial in summary.ranked()]
    inside = [v for v in values if (v >= edge if summary.maximize else v <= edge)]
    low, high = shown(summary, min(inside)), shown(summary, max(inside))
    margin = 0.06 * (high - low) or 0.01
    figure.update_yaxes(range=[low - margin, high + margin])
    return f" {len(values) - len(inside):,} trials lie so far off that they are out of the picture."


def _hover(summary: SweepSummary, trial: Trial) -> str:
    lines = [trial.name, *(f"{cut(k, 30)}: {cut(short(v), 30)}" for k, v in trial.values.items())]
    lines = [
        *lines[: _PARAMETERS + 1],
        f"{metric_name(summary)}: {shown(summary, trial.metric):.4f}",
    ]
    return "<br>".join(html.escape(line).replace("%{", "%&#123;") for line in lines)


# For files


def pictures(summary: SweepSummary, importance: dict[str, float] | None) -> dict[str, bytes]:
    """Draw the PNG files that the sweep has numbers for: name to content, 160 dots an inch."""
    if not summary.ranked():
        return {}
    with file_style():
        drawn = {
            "history.png": _history_picture(summary),
            "slices.png": _slices_picture(summary, importance),
        }
        if importance:
            drawn["importance.png"] = _importance_picture(importance)
        return {name: png(figure) for name, figure in drawn.items()}


def _history_picture(summary: SweepSummary) -> Figure:
    figure, (ax,) = file_figure(7, 4, 1)
    drawn = thinned(summary.ranked(), 5 * _DOTS)
    ax.scatter(
        [t.number + 1 for t in drawn], [shown(summary, t.metric) for t in drawn],
        s=26, color=_RUN, alpha=0.6, linewidths=0,
    )  # fmt: skip
    steps = best_so_far(summary)
    ax.step(
        [n + 1 for n, _ in steps], [shown(summary, v) for _, v in steps],
        where="post", color=_BEST, lw=2,
    )  # fmt: skip
    ax.set_xlabel("Trial")
    _metric_axis(ax, summary)
    return figure


def _slices_picture(summary: SweepSummary, importance: dict[str, float] | None) -> Figure:
    names = drawn_parameters(summary, importance)[:6]
    figure, axes = file_figure(3.6 * len(names), 3.6, len(names))
    drawn = thinned(summary.ranked(), _DOTS)
    for ax, name in zip(axes, names, strict=True):
        scale = _scale(summary, name)
        for trials, style in (
            (drawn[1:], {"s": 22, "color": _RUN, "alpha": 0.6, "linewidths": 0}),
            (drawn[:1], {"s": 120, "color": _BEST, "marker": "*"}),
        ):
            ax.scatter(
                [_across(scale, t.values[name], t.number) for t in trials],
                [shown(summary, t.metric) for t in trials],
                **style,  # type: ignore[arg-type]
            )
        ax.set_xlabel(cut(name))
        if scale.categories:
            labels = [cut(c, 12) for c in scale.categories]
            ax.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 3 else 0)
            ax.grid(axis="x", visible=False)
        elif scale.log:
            ax.set_xscale("log")
        _metric_axis(ax, summary)
    return figure


def _importance_picture(importance: dict[str, float]) -> Figure:
    names = sorted(importance, key=lambda name: importance[name])[-_PARAMETERS:]
    figure, (ax,) = file_figure(6.5, 1.2 + 0.4 * len(names), 1)
    ax.barh([cut(name) for name in names], [100 * importance[name] for name in names], color=_RUN)
    ax.set_xlabel("Share of the variance (%)")
    ax.grid(axis="y", visible=False)
    return figure


def _metric_axis(ax: Axes, summary: SweepSummary) -> None:
    ax.set_ylabel(metric_name(summary))
    edge = fence(summary)
    if edge is None:
        return
    values = [t.metric for t in summary.ranked()]
    inside = [shown(summary, v) for v in values if (v >= edge if summary.maximize else v <= edge)]
    margin = 0.06 * (max(inside) - min(inside)) or 0.01
    ax.set_ylim(min(inside) - margin, max(inside) + margin)
    ax.set_title(
        f"{len(values) - len(inside):,} far worse not shown", loc="right", fontsize="small"
    )
