"""What the charts of all reports share: colors, symbols and layouts.

A module has one color and one symbol everywhere. The eight colors keep a contrast of 3 to 1 on the
page's white and dark backgrounds, and stay apart (CIELAB distance of 12 or more) for the three kinds of
color blindness as Machado, Oliveira and Fernandes (2009) simulate them.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

# The baseline is gray.
_COLORS = ["#757d88", "#5870df", "#f06d12", "#0f8f6c", "#279be3", "#a156b0", "#a35b55", "#7e6919"]
# In plotly, matplotlib and text. Nine symbols and eight colors: 72 modules differ.
SYMBOLS = (
    ("circle", "o", "●"),
    ("square", "s", "■"),
    ("triangle-up", "^", "▲"),
    ("diamond", "D", "◆"),
    ("triangle-down", "v", "▼"),
    ("cross", "P", "✚"),
    ("x", "X", "✖"),
    ("star", "*", "★"),
    ("triangle-left", "<", "◀"),
)
# Of the characters that turn text around.
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
GRAY = "rgba(128,136,148,0.45)"


@dataclass
class Style:
    """How a module is drawn."""

    color: str
    symbol: str
    marker: str
    mark: str
    """The symbol as a character."""

    def transparent(self, opacity: float) -> str:
        red, green, blue = (int(self.color[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity})"


@dataclass
class Chart:
    """A chart of a report: of the page, and of image files."""

    name: str
    title: str
    caption: str
    figure: go.Figure


def module_style(index: int) -> Style:
    """Return how the module at ``index`` of the study is drawn."""
    return Style(_COLORS[index % len(_COLORS)], *SYMBOLS[index % len(SYMBOLS)])


def new_figure(height: int) -> go.Figure:
    """Return an empty figure with the layout of all charts; plotly is imported where a figure is drawn."""
    import plotly.graph_objects as go

    figure = go.Figure()
    # Text and grid take their colors from the page's style sheet, which follows light and dark mode.
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 12, "r": 16, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        # On a transparent page plotly would give the buttons a dark box, over the points behind it.
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#9aa4af", "activecolor": "#1f2328"},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13},
        showlegend=False,
        hovermode="closest",
        # Dragging scrolls the page on a touch screen; the buttons zoom.
        dragmode=False,
    )
    axis = {"automargin": True, "gridcolor": "#e3e6ea", "zeroline": False}
    figure.update_xaxes(title={"font": {"size": 13}, "standoff": 10}, **axis)
    figure.update_yaxes(title={"font": {"size": 13}, "standoff": 12}, **axis)
    return figure


def add_markers(
    figure: go.Figure,
    points: Iterable[tuple[Any, Any]],
    color: str,
    size: float,
    symbol: str = "circle",
    **trace: Any,
) -> None:
    """Draw points as markers; further arguments are plotly's, of a scatter trace."""
    x, y = list(zip(*points, strict=True)) or ((), ())
    marker = {"color": color, "size": size, "symbol": symbol}
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, **trace)


def add_line(
    figure: go.Figure,
    points: Iterable[tuple[Any, Any]],
    color: str,
    width: float,
    line: dict[str, Any] | None = None,
    **trace: Any,
) -> None:
    """Draw a line through points; ``line`` is its style and further arguments are plotly's."""
    x, y = list(zip(*points, strict=True)) or ((), ())
    line = {"color": color, "width": width, **(line or {})}
    hover = {} if "hovertemplate" in trace else {"hoverinfo": "skip"}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, **hover, **trace)


def name_rows(figure: go.Figure, names: Sequence[str], lines: int) -> None:
    """Name the rows of a figure, from above, in up to ``lines`` lines each."""
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[text(printable(name), width=18, lines=lines) for name in names],
        range=[len(names) - 0.4, -0.6],
        # Invisible ticks keep the names off the plot.
        ticks="outside",
        ticklen=8,
        tickcolor="rgba(0,0,0,0)",
    )


def error_bar(
    value: float, ends: tuple[float, float], color: str, thickness: float, width: float = 0
) -> dict[str, Any]:
    """Return plotly's error bar of ``value``."""
    low, high = ends
    reach = {"array": [max(high - value, 0)], "arrayminus": [max(value - low, 0)]}
    look = {"color": color, "thickness": thickness, "width": width}
    return {"type": "data", "symmetric": False, **reach, **look}


def text(name: str, width: int = 40, lines: int = 2) -> str:
    """Return a name for plotly, which reads a little HTML: escaped, broken, cut where too long."""
    broken = [""]
    for part in re.split(r"(?<=[:,])", name):
        if len(broken[-1] + part) > width:
            broken.append("")
        broken[-1] += part
    broken = [cut(line, width) for line in broken if line]
    if len(broken) > lines:
        broken = [*broken[: lines - 1], broken[lines - 1][: width - 1] + "…"]
    # plotly would fill in %{...} of a hover text.
    return "<br>".join(html.escape(line).replace("%{", "%&#123;") for line in broken)


def cut(name: str, width: int = 24) -> str:
    """Return a name that is not longer than ``width``."""
    return name if len(name) <= width else name[: width - 1] + "…"


def printable(name: str) -> str:
    """Return a name from elsewhere without characters that control a terminal or the direction of text."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in _DIRECTIONS
        else c
        for c in name
    )
