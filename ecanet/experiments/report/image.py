"""The charts of a report as image files: plotly's own images need a browser, so matplotlib draws its figures.

Only what the charts of reports use is translated: lines, markers, error bars, bars, heat maps, ticks, log
axes.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ecanet.errors import UserError
from ecanet.experiments.report.style import SYMBOLS, Chart, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    # A name may hold any character: "$" does not begin a formula.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "font.size": 10,
    # Text stays text, in fonts that a PDF file has in it as TrueType: journals refuse Type 3.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    # In place of a random number, from which the names of parts are made.
    "svg.hashsalt": "ecanet",
}
_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
_MARKERS = {symbol: marker for symbol, marker, _ in SYMBOLS}
_POINT = 0.75  # of a CSS pixel


Format = Literal["png", "svg", "pdf"]


def draw(charts: Sequence[Chart], format: Format = "png") -> bytes:
    """Draw charts side by side: the content of a file, the same each time; of a PNG with 160 dots an inch."""
    with own_style():
        return content_of(_figure(charts), format)


def figure_of(charts: Sequence[Chart]) -> Figure:
    """Draw charts side by side as a matplotlib figure, which a notebook shows as an image.

    Raises:
        UserError: there is no chart.
    """
    if not charts:
        raise UserError("no run has finished yet: there is nothing to draw")
    with own_style():
        return _figure(charts)


def _figure(charts: Sequence[Chart]) -> Figure:
    # matplotlib.pyplot keeps global state and may want a screen: neither is needed.
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            with own_style():
                return content_of(self, "png", dpi=80)

    width = (charts[0].figure.layout.width or 0) / 90 or {1: 7.0, 2: 5.5}.get(len(charts), 3.6)
    height = max(chart.figure.layout.height for chart in charts) / 90
    figure = Shown(figsize=(width * len(charts), height), layout="constrained")
    axes = figure.subplots(1, len(charts), squeeze=False)[0]
    for ax, chart in zip(axes, charts, strict=True):
        _draw(ax, chart.figure)
    handles, names = figure.axes[0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


@contextmanager
def own_style() -> Iterator[None]:
    """Let matplotlib draw in our style, whatever else is set."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        # A matplotlibrc in the current folder could name a program that draws the text.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def content_of(figure: Any, format: Format, dpi: int = 160) -> bytes:
    """Return the content of a figure's file; ``dpi`` is of a PNG."""
    content = io.BytesIO()
    figure.savefig(
        content, format=format, dpi=dpi, facecolor="white", metadata=_METADATA.get(format)
    )
    return content.getvalue()


def _draw(ax: Any, figure: Any) -> None:
    for shape in figure.layout.shapes:
        ax.axvline(shape.x0, color=_color(shape.line.color), lw=_POINT * shape.line.width)
    for trace in figure.data:
        if trace.type == "heatmap":
            _draw_cells(ax, trace)
        elif trace.type == "bar":
            ax.barh(trace.y, trace.x, color=_color(trace.marker.color))
        elif trace.mode == "lines":
            if trace.fill and trace.line.width:
                ax.fill(trace.x, trace.y, color=_color(trace.fillcolor))
            ax.plot(
                trace.x,
                trace.y,
                ":" if trace.line.dash else "-",
                color=_color(trace.line.color),
                lw=_POINT * trace.line.width,
                label=f" {_text(trace.name)}" if trace.showlegend else None,
                drawstyle="steps-post" if trace.line.shape == "hv" else "default",
            )
        elif trace.x:
            _draw_markers(ax, trace)
    for name, axis in (("x", figure.layout.xaxis), ("y", figure.layout.yaxis)):
        ax.set(**{f"{name}label": _text(axis.title.text), f"{name}scale": axis.type or "linear"})
        drawn = getattr(ax, f"{name}axis")
        if axis.tickvals:
            labels = [_text(label) for label in axis.ticktext]
            drawn.set_ticks(axis.tickvals, labels=labels)
            if axis.tickfont.size:
                ax.tick_params(name, labelsize=_POINT * axis.tickfont.size)
            if axis.tickangle:
                for label in drawn.get_ticklabels():
                    label.set(rotation=-axis.tickangle, ha="right", rotation_mode="anchor")
            elif name == "x" and len(axis.tickvals) > 3:
                ax.tick_params(name, rotation=30)
        elif axis.type == "log":
            # Matplotlib's own labels are formulas.
            drawn.set_major_formatter("{x:g}")
            drawn.set_minor_formatter("")
        else:
            drawn.get_major_locator().set_params(
                nbins=5 if name == "x" else 8, integer=axis.tickformat == "d"
            )
        if axis.range:
            ax.set(**{f"{name}lim": axis.range})
        elif axis.rangemode == "nonnegative":
            ax.set(**{f"{name}lim": (max(0, getattr(ax, f"get_{name}lim")()[0]), None)})
        ax.grid(visible=axis.showgrid is not False, axis=name)
    # A note that the page has in the caption.
    ax.set_title(_text(figure.layout.meta), loc="right", fontsize="small")


def _draw_cells(ax: Any, trace: Any) -> None:
    """Draw a heat map whose colors run between two."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("", [_color(color) for _, color in trace.colorscale])
    values = np.ma.masked_invalid(np.array(trace.z, dtype=float))
    ax.imshow(values, cmap=colors, vmin=trace.zmin, vmax=trace.zmax, aspect="auto")
    if trace.texttemplate:
        shown = trace.customdata if "customdata" in trace.texttemplate else trace.z
        for (row, column), _ in np.ma.ndenumerate(values):
            number = f"{shown[row][column]:.0f}"
            ax.text(column, row, number, ha="center", va="center", fontsize="x-small")


def _draw_markers(ax: Any, trace: Any) -> None:
    color = _color(trace.marker.color)
    marker, size = _MARKERS[trace.marker.symbol or "circle"], _POINT * trace.marker.size
    # A label that starts with an underscore would be left out.
    label = f" {_text(trace.name)}" if trace.name else None
    ax.plot(trace.x, trace.y, marker, color=color, ms=size, mew=0, label=label)
    for name, error in (("xerr", trace.error_x), ("yerr", trace.error_y)):
        if error.array:
            ax.errorbar(
                trace.x,
                trace.y,
                **{name: [error.arrayminus, error.array]},
                fmt="none",
                ecolor=_color(error.color),
                elinewidth=_POINT * error.thickness,
                capsize=_POINT * error.width / 2,
            )


def _text(text: str | None) -> str:
    """Return plotly's text, a little HTML, as it is."""
    return "\n".join(printable(html.unescape(line)) for line in (text or "").split("<br>"))


def _color(color: str) -> Any:
    """Return a CSS color as matplotlib takes it."""
    if not color.startswith("rgba"):
        return color
    *rgb, alpha = map(float, re.findall(r"[\d.]+", color))
    return (*(value / 255 for value in rgb), alpha)
