"""The charts of a sweep: first their data, then their drawing.

Thousands of trials are thinned out before they are drawn; the tables hold all of them. Parallel
coordinates are drawn as lines: plotly's own need WebGL and a page that may evaluate code.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import CategoricalDistribution

from ecanet.experiments.analysis.compare import column_name, column_title
from ecanet.experiments.analysis.sweep import SweepSummary, Trial
from ecanet.experiments.plans.sweep_space import format_value
from ecanet.experiments.report.style import (
    GRAY,
    Chart,
    add_line,
    add_markers,
    cut,
    module_style,
    new_figure,
    text,
)
from ecanet.metrics import metric_named

if TYPE_CHECKING:
    import plotly.graph_objects as go

_DOTS = 600  # trials in a chart
_LINES = 200  # trials in the parallel coordinates
_PARAMETERS = 12  # parameters that are drawn
_RUN, _BEST = module_style(1).color, module_style(2).color
# Groups of the parallel coordinates, from the worse half of the trials to the best tenth.
_BANDS = (
    (1.0, "the worse half", GRAY, 1.0),
    (0.5, "the better half", module_style(1).transparent(0.35), 1.2),
    (0.1, "the best tenth", module_style(1).transparent(0.9), 1.8),
)


@dataclass
class Scale:
    """The axis of a parameter or of the metric, which places values from 0 to 1."""

    name: str
    categories: list[str] | None
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def place(self, value: Any) -> float:
        if self.categories is not None:
            last = len(self.categories) - 1
            return self.categories.index(format_value(value)) / last if last else 0.5
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log(v) for v in (low, high, value))
        return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return the axis's ticks: place and label."""
        if self.categories is not None:
            return [(self.place(c), c) for c in self.categories]
        if self.low == self.high:
            return [(0.5, format_value(self.low))]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [(self.place(v), f"{v:.3g}") for v in (self.low, middle, self.high)]


def charts(summary: SweepSummary, importance: dict[str, float] | None) -> list[Chart]:
    """Draw every chart that the sweep has numbers for."""
    ranked = summary.ranked()
    if not ranked:
        return []
    found = [history_chart(summary), _parallel_chart(summary, importance)]
    if importance:
        found.append(_importance_chart(importance))
    return found + [_slice_chart(summary, name) for name in drawn_parameters(summary, importance)]


def drawn_parameters(summary: SweepSummary, importance: dict[str, float] | None) -> list[str]:
    """Return the parameters that are drawn: the most important ones, or the first."""
    weights = importance or {}
    return sorted(summary.parameters, key=lambda name: -weights.get(name, 0.0))[:_PARAMETERS]


def thinned(trials: Sequence[Trial], most: int) -> list[Trial]:
    """Return at most ``most`` of the trials, which are sorted best first: the best and some of the others.

    A fifth of them are the best, the rest lie at even distances in the ranking.
    """
    if len(trials) <= most:
        return list(trials)
    best = most // 5
    places = np.linspace(best, len(trials) - 1, most - best).round().astype(int)
    return [*trials[:best], *(trials[i] for i in places)]


def outlier_cutoff(summary: SweepSummary) -> float | None:
    """Return the metric beyond which trials are so bad that they would flatten the chart of all others.

    It lies eight times as far behind the median as the best trial lies before it, which holds although
    almost half of the trials diverged. None: no trial is beyond.
    """
    values = [trial.metric for trial in summary.ranked()]
    if not values:
        return None
    median = float(np.median(values))
    cutoff = median + 8 * (median - values[0])
    beyond = values[-1] < cutoff if summary.maximize else values[-1] > cutoff
    return cutoff if beyond and median != values[0] else None


def shown(summary: SweepSummary, value: float) -> float:
    """Return the metric as it is drawn: shares in percent, losses as they are."""
    return 100 * value if metric_named(summary.metric).is_share else value


def with_unit(summary: SweepSummary, name: str) -> str:
    """Return a name of the metric with its unit."""
    share = metric_named(summary.metric).is_share
    return f"{name} ({'%' if share else summary.judged_by.loss_unit})"


def best_so_far(summary: SweepSummary) -> list[tuple[int, float]]:
    """Return each trial that was the best so far, and the last one: its number, the best as drawn."""
    steps: list[tuple[int, float]] = []
    best: Trial | None = None
    sign = 1 if summary.maximize else -1
    for trial in summary.trials:
        better = trial.judged and (best is None or sign * trial.metric > sign * best.metric)
        if better:
            best = trial
        if best and (better or trial is summary.trials[-1]):
            steps.append((trial.number, shown(summary, best.metric)))
    return steps


def across(scale: Scale, trial: Trial) -> Any:
    """Return where a trial stands along a slice; trials of one category beside each other."""
    value = trial.values[scale.name]
    if scale.categories is None:
        return value
    return scale.categories.index(format_value(value)) + _jitter(trial)


def _jitter(trial: Trial) -> float:
    """Return an offset from -0.25 to 0.25 that neighbors do not share: multiples of the golden ratio."""
    return 0.5 * (((trial.number * 0.618034) % 1) - 0.5)


# Drawing


def history_chart(summary: SweepSummary) -> Chart:
    """Draw the trials that can be judged, and the best so far."""
    ranked = summary.ranked()
    drawn = thinned(ranked, _DOTS)
    early = [t for t in summary.trials if t.state == "ended early" and math.isfinite(t.metric)]
    early = early[:: math.ceil(len(early) / _DOTS) or 1]
    figure = new_figure(360)
    _dots(figure, summary, drawn, module_style(1).transparent(0.55), 8)
    _dots(figure, summary, early, GRAY, 7, "x")
    steps = [(number + 1, value) for number, value in best_so_far(summary)]
    hover = "best so far: %{y:.4f}<extra></extra>"
    add_line(figure, steps, _BEST, 2.5, {"shape": "hv"}, hovertemplate=hover)
    figure.update_xaxes(title_text="Trial", tickformat="d", showgrid=False)
    if len(summary.trials) < 10:
        figure.update_xaxes(dtick=1)
    caption = "Each dot is a finished trial; the line is the best so far."
    if early:
        caption += " Crosses ended early, at the metric of their last epoch."
    caption += _thinned_note(drawn, ranked) + _limit(figure, summary)
    return Chart("history", "History", caption, figure)


def _dots(
    figure: go.Figure,
    summary: SweepSummary,
    trials: Sequence[Trial],
    color: str,
    size: float,
    symbol: str = "circle",
    scale: Scale | None = None,
) -> None:
    """Draw trials at their values of a parameter, or at their numbers."""
    dots = [
        (across(scale, trial) if scale else trial.number + 1, shown(summary, trial.metric))
        for trial in trials
    ]
    hover = [_hover(summary, trial) for trial in trials]
    form = "%{text}<extra></extra>"
    add_markers(figure, dots, color, size, symbol, text=hover, hovertemplate=form)


def _thinned_note(drawn: Sequence[Trial], ranked: Sequence[Trial]) -> str:
    if len(drawn) == len(ranked):
        return ""
    return f" {len(drawn):,} of {len(ranked):,} trials are drawn, the best among them."


def _parallel_chart(summary: SweepSummary, importance: dict[str, float] | None) -> Chart:
    figure = new_figure(420)
    axes, ranked = scales(summary, importance), summary.ranked()
    drawn = thinned(ranked, _LINES)
    place = {trial.name: i for i, trial in enumerate(ranked)}
    ends = [*(share for share, *_ in _BANDS[1:]), 0.0]
    for (share, name, color, width), until in zip(_BANDS, ends, strict=True):
        first, end = max(until * len(ranked), 1), share * len(ranked)
        if inside := [t for t in drawn if first <= place[t.name] < end]:
            _lines(figure, summary, axes, inside, name, color, width)
    _lines(figure, summary, axes, ranked[:1], "the best", _BEST, 3.5)
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
        line = {"color": "#808894", "width": 1.5}
        figure.add_shape(type="line", x0=i, x1=i, y0=0, y1=1, line=line)
        for y, mark in axis.ticks():
            figure.add_annotation(
                x=i, y=y, text=text(mark, width=12, lines=1), showarrow=False, xanchor="right",
                xshift=-6, font={"size": 11}, bgcolor="rgba(0,0,0,0)",
            )  # fmt: skip
    caption = (
        "Each line is a finished trial. Orange: the best. Blue: the best tenth, and paler the better "
        "half. Gray: the worse half."
    )
    caption += _thinned_note(drawn, ranked)
    if len(axes) <= len(summary.parameters):
        caption += f" The {len(axes) - 1} most important of {len(summary.parameters)} parameters."
    return Chart("parallel", "Parallel coordinates", caption, figure)


def scales(summary: SweepSummary, importance: dict[str, float] | None) -> list[Scale]:
    """Return the axes of the parallel coordinates: the parameters, and the metric, better above."""
    found = [_scale(summary, name) for name in drawn_parameters(summary, importance)]
    values = [trial.metric for trial in summary.ranked()]
    cutoff = outlier_cutoff(summary)
    if cutoff is not None:
        values = [max(v, cutoff) if summary.maximize else min(v, cutoff) for v in values]
    low, high = shown(summary, min(values)), shown(summary, max(values))
    name = with_unit(summary, column_name(summary.metric).removeprefix("validation "))
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
        seen = {format_value(v) for v in values}
        names = list(dict.fromkeys(format_value(c) for c in choices))
        return Scale(name, [n for n in names if n in seen] + sorted(seen - set(names)))
    low, high = min(numbers), max(numbers)
    return Scale(name, None, low, high, log=low > 0 and high / low > 20)


def _lines(
    figure: go.Figure,
    summary: SweepSummary,
    axes: Sequence[Scale],
    trials: Sequence[Trial],
    name: str,
    color: str,
    width: float,
) -> None:
    points: list[tuple[float | None, float | None]] = []
    hover: list[str | None] = []
    *parameters, metric = axes
    for trial in trials:
        # So that trials of one category do not hide each other.
        shift = 0.06 * _jitter(trial)
        places = [
            axis.place(trial.values[axis.name]) + (shift if axis.categories else 0.0)
            for axis in parameters
        ]
        # None separates the lines of two trials.
        points += [*enumerate([*places, metric.place(shown(summary, trial.metric))]), (None, None)]
        hover += [*[_hover(summary, trial)] * len(axes), None]
    form = "%{text}<extra></extra>"
    add_line(figure, points, color, width, name=name, text=hover, hovertemplate=form)


def _importance_chart(importance: dict[str, float]) -> Chart:
    names = sorted(importance, key=lambda name: importance[name])[-_PARAMETERS:]
    shares = {name: 100 * importance[name] for name in names}
    figure = new_figure(110 + 44 * len(shares))
    figure.add_bar(
        x=list(shares.values()),
        y=list(range(len(shares))),
        orientation="h",
        marker={"color": _RUN},
        text=[f"{share:.0f} %" for share in shares.values()],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    most = max(shares.values())
    figure.update_xaxes(title_text="Share of the variance (%)", range=[0, 1.18 * most or 1])
    figure.update_yaxes(
        tickvals=list(range(len(shares))),
        ticktext=[text(name, width=18, lines=3) for name in shares],
        showgrid=False,
    )
    caption = (
        "How much of the metric's variance over the search space each parameter alone explains: fANOVA "
        "(Hutter, Hoos and Leyton-Brown, ICML 2014) on the finished trials."
    )
    return Chart("importance", "Importance of the parameters", caption, figure)


def _slice_chart(summary: SweepSummary, name: str) -> Chart:
    scale, ranked = _scale(summary, name), summary.ranked()
    figure = new_figure(320)
    others = thinned(ranked, _DOTS)[1:]
    _dots(figure, summary, others, module_style(1).transparent(0.5), 8, scale=scale)
    _dots(figure, summary, ranked[:1], _BEST, 15, "star", scale)
    caption = "Orange: the best trial."
    figure.update_xaxes(title_text=text(name, lines=3), showgrid=False)
    if scale.categories:
        for i, category in enumerate(scale.categories):
            these = [t for t in ranked if format_value(t.values[name]) == category]
            inside = [shown(summary, t.metric) for t in these]
            median = float(np.median(inside))
            hover = f"median of {len(inside)}: %{{y:.4f}}<extra></extra>"
            bar = [(i - 0.3, median), (i + 0.3, median)]
            add_line(figure, bar, "#808894", 2.5, hovertemplate=hover)
        caption += " Bars: the median of each value."
        figure.update_xaxes(
            tickvals=list(range(len(scale.categories))),
            ticktext=[text(c, width=14, lines=2) for c in scale.categories],
            range=[-0.5, len(scale.categories) - 0.5],
        )
    elif scale.log:
        figure.update_xaxes(
            type="log", exponentformat="e", dtick=1 if scale.high > 100 * scale.low else None
        )
    number = list(summary.parameters).index(name)
    return Chart(f"slice-{number}", name, caption + _limit(figure, summary), figure)


def _limit(figure: go.Figure, summary: SweepSummary) -> str:
    """Set the axis of the metric, without outliers; return a note on them."""
    figure.update_yaxes(title_text=with_unit(summary, column_title(summary.metric)))
    share = metric_named(summary.metric).is_share
    if share:
        figure.update_yaxes(rangemode="nonnegative")
    cutoff = outlier_cutoff(summary)
    if cutoff is None:
        return ""
    values = [trial.metric for trial in summary.ranked()]
    inside = [v for v in values if (v >= cutoff if summary.maximize else v <= cutoff)]
    low, high = shown(summary, min(inside)), shown(summary, max(inside))
    margin = 0.06 * (high - low) or 0.01
    note = f"{len(values) - len(inside):,} outliers are not shown."
    figure.update_yaxes(range=[max(low - margin, 0) if share else low - margin, high + margin])
    # Image files have no caption.
    figure.update_layout(meta=note)
    return f" {note}"


def _hover(summary: SweepSummary, trial: Trial) -> str:
    values = [f"{cut(k, 30)}: {cut(format_value(v), 30)}" for k, v in trial.values.items()]
    title = with_unit(summary, column_title(summary.metric))
    metric = f"{title}: {shown(summary, trial.metric):.4f}"
    lines = [trial.name, *values[:_PARAMETERS], metric]
    return "<br>".join(html.escape(line).replace("%{", "%&#123;") for line in lines)
