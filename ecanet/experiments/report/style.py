"""What all reports draw with: colours, layouts, and the way into a page or a file.

A module has one colour and one symbol everywhere. The eight colours keep a contrast of 3 to 1 on the
page's white and on its dark ground, and stay apart (CIELAB distance of 12 or more) for the three
kinds of colour blindness as Machado, Oliveira and Fernandes (2009) simulate them.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The baseline's is grey.
_COLOURS = ["#757d88", "#5870df", "#f06d12", "#0f8f6c", "#279be3", "#a156b0", "#a35b55", "#7e6919"]
# As plotly, matplotlib and text name them. Nine beside eight colours: 72 modules differ.
_SYMBOLS = (
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
GREY = "rgba(128,136,148,0.45)"


@dataclass
class Look:
    """How a module is drawn."""

    colour: str
    symbol: str
    marker: str
    mark: str
    """The symbol as a character."""

    def transparent(self, opacity: float) -> str:
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity})"


@dataclass
class Chart:
    """One interactive picture of the page."""

    name: str
    title: str
    caption: str
    html: str
    """A ``<div>`` and the script that fills it; plotly's own script is not in it."""


def look(index: int) -> Look:
    """Return how the module at ``index`` of the study is drawn."""
    return Look(_COLOURS[index % len(_COLOURS)], *_SYMBOLS[index % len(_SYMBOLS)])


# For the page


def layout(figure: go.Figure, height: int) -> None:
    """Give a chart of the page the looks that all have."""
    # Text and grid take their colours from the page's style sheet, which follows light and dark.
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
    figure.update_xaxes(title={"font": {"size": 13}, "standoff": 10})
    figure.update_yaxes(title={"font": {"size": 13}, "standoff": 12})
    figure.update_xaxes(automargin=True, gridcolor="#e3e6ea", zeroline=False)
    figure.update_yaxes(automargin=True, gridcolor="#e3e6ea", zeroline=False)


def page_html(figure: go.Figure, name: str) -> str:
    """Return a chart as a ``<div>`` and the script that fills it."""
    from plotly.io import to_html

    return to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        div_id=f"chart-{name}",
        config={
            "responsive": True,
            "displaylogo": False,
            "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
            "toImageButtonOptions": {"filename": name, "scale": 2},
        },
    )


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


# For files


@contextmanager
def file_style() -> Iterator[None]:
    """Draw with matplotlib as all files of a report are drawn."""
    import matplotlib

    with matplotlib.rc_context():
        # A matplotlibrc in the current folder could have text drawn by a program that it names.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                # A name may hold any character: "$" is no formula.
                "text.parse_math": False,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": "#e3e6ea",
                "axes.axisbelow": True,
                "font.size": 10,
            }
        )
        yield


def file_figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of this size in inches, and its axes side by side."""
    # matplotlib.pyplot keeps global state and may want a screen: neither is needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file of 160 dots an inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=160, facecolor="white")
    return content.getvalue()


def cut(name: str, width: int = 24) -> str:
    """Return a name that is not longer than ``width``."""
    return name if len(name) <= width else name[: width - 1] + "…"
