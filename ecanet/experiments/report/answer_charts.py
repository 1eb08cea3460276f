"""The charts of what runs answered: accuracy by class, confusion matrices, reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ecanet.experiments.report.image import draw
from ecanet.experiments.report.style import (
    GRAY,
    Chart,
    add_line,
    add_markers,
    error_bar,
    module_style,
    name_rows,
    new_figure,
    printable,
    text,
)
from ecanet.metrics import BINS, Array

if TYPE_CHECKING:
    from ecanet.experiments.analysis.predictions import ClassRow

# Above it a cell of a matrix is a few pixels, and pairs are listed instead.
MOST_CLASSES = 30
# Matrices of so many modules are drawn: each is as large as a chart.
MOST_MATRICES = 6
# Answers of a bin below which its accuracy is chance.
_FEW = 5
# Up to so many classes the cells of a matrix hold a number: on a page, and in an image of its own, which has
# room for so many names.
_NUMBERED, _COUNTED, _NAMED = 12, 20, 60


def class_chart(rows: Sequence[ClassRow], modules: Mapping[str, int], baseline: str) -> Chart:
    """Draw each module's difference from the baseline, a row for each class.

    Args:
        rows: the classes, from above.
        modules: those compared, and their places in the study.
    """
    figure = new_figure(100 + max(24, 14 * len(modules)) * len(rows))
    figure.add_vline(x=0, line={"color": "#808894", "width": 1.5})
    # Modules lie below each other within a row.
    offsets = (np.arange(len(modules)) - (len(modules) - 1) / 2) * min(0.2, 0.7 / len(modules))
    for (module, place), offset in zip(modules.items(), offsets, strict=True):
        style = module_style(place)
        for i, row in enumerate(rows):
            found = row.differences.get(module)
            if found is None:
                continue
            value, reach, note = 100 * found.mean, None, ""
            if found.interval:
                low, high = (100 * end for end in found.interval)
                reach = error_bar(value, (low, high), style.transparent(0.6), 1.5)
                note = f"<br>95 % interval {low:+.1f} to {high:+.1f} points"
            hover = (
                f"{text(module)}, {text(printable(row.name))}: %{{x:+.1f}} points{note}"
                f"<br>{row.images:,} test images<extra></extra>"
            )
            add_markers(
                figure,
                [(value, i + offset)],
                style.color,
                8,
                style.symbol,
                error_x=reach,
                hovertemplate=hover,
                meta=place,
            )
    figure.update_xaxes(title_text="Difference (points)")
    name_rows(figure, [row.name for row in rows], lines=1)
    caption = (
        f"Accuracy on the images of a class minus that of {baseline}, mean over seeds. Bars: 95 % "
        "t-interval over seeds, for each class alone, not corrected for the number of classes."
    )
    return Chart("classes", "Difference from the baseline, by class", caption, figure)


def confusion_charts(
    confusions: Mapping[str, Array], classes: Sequence[str], modules: Mapping[str, int]
) -> list[Chart]:
    """Draw each module's confusion matrix, rows in percent of the class's images.

    Args:
        confusions: by module, images of each class (rows) taken for each class (columns).
        modules: places of the modules in the study.
    """
    if len(classes) > MOST_CLASSES or len(confusions) > MOST_MATRICES:
        return []
    # One scale for all, so that matrices can be compared by eye.
    most = max(map(_most_confused, confusions.values()), default=1.0)
    charts = []
    for module, images in confusions.items():
        figure = new_figure(max(360, 150 + 22 * len(classes)))
        _draw_confusions(figure, images, classes, most, name_width=14)
        if len(classes) <= _NUMBERED:
            figure.update_traces(texttemplate="%{z:.0f}")
        figure.update_layout(meta=text(module, lines=1))
        caption = (
            f"Percent of the images of each class (row) that {module} takes for each class (column), over "
            f"all its runs. Blue: right. Orange: confusions, the darkest {most:.3g} %."
        )
        name, title = f"confusion-{modules[module]}", f"Confusion matrix of {module}"
        charts.append(Chart(name, title, caption, figure))
    return charts


def confusion_image(images: Array, classes: Sequence[str]) -> bytes:
    """Draw one confusion matrix, with the number of images in each cell: the content of a PNG file."""
    side = min(1260, 300 + 30 * len(classes))
    figure = new_figure(side)
    _draw_confusions(figure, images, classes, _most_confused(images), name_width=24)
    if len(classes) <= _COUNTED:
        figure.update_traces(texttemplate="%{customdata}")
    if len(classes) > _NAMED:  # numbers, as matplotlib places them
        for update in (figure.update_xaxes, figure.update_yaxes):
            update(tickvals=None, ticktext=None, tickangle=None)
    figure.update_layout(width=side)
    return draw([Chart("confusion", "Confusion matrix", "", figure)])


def _shares(images: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return 100 * images / images.sum(1, keepdims=True)


def _most_confused(images: Array) -> float:
    """Return the largest share of a class that is taken for another one, in percent; 1 if none is."""
    errors = np.where(np.eye(len(images), dtype=bool), 0, _shares(images))
    return float(np.nan_to_num(errors).max()) or 1.0


def _draw_confusions(
    figure: Any, images: Array, classes: Sequence[str], most: float, *, name_width: int
) -> None:
    names = [text(printable(name), width=name_width, lines=1) for name in classes]
    share, right = _shares(images), np.eye(len(classes), dtype=bool)
    # Right answers and confusions have scales of their own: beside 90 %, 3 % would be invisible.
    for cells, color, top in ((right, "88,112,223", 100.0), (~right, "240,109,18", most)):
        figure.add_heatmap(
            z=np.where(cells, share, np.nan).tolist(),
            zmin=0,
            zmax=top,
            colorscale=[[0, f"rgba({color},0)"], [1, f"rgba({color},0.65)"]],
            showscale=False,
            xgap=1,
            ygap=1,
            customdata=images.tolist(),
            hovertemplate="%{y} taken for %{x}: %{z:.1f} % of its images, "
            "%{customdata:.1f} per run<extra></extra>",
            hoverongaps=False,
        )
    # By number: equal names, once cut, would share a row.
    font = {"size": 12 if len(classes) <= _NUMBERED else 9}
    ticks = {
        "tickvals": list(range(len(classes))),
        "ticktext": names,
        "ticks": "",
        "tickfont": font,
    }
    figure.update_xaxes(title_text="Predicted class", tickangle=-45, showgrid=False, **ticks)
    figure.update_yaxes(
        title_text="True class", range=[len(classes) - 0.5, -0.5], showgrid=False, **ticks
    )


def reliability_charts(
    bins: Mapping[str, Mapping[str, Array]], modules: Mapping[str, int]
) -> list[Chart]:
    """Draw accuracy against confidence, and how many images have which confidence.

    Args:
        bins: by module, of :func:`ecanet.metrics.reliability`, over its runs.
        modules: places of the modules in the study.
    """
    diagram, counts = new_figure(360), new_figure(360)
    add_line(diagram, [(0, 0), (100, 100)], GRAY, 2, {"dash": "dot"})
    for module, found in bins.items():
        style, label = module_style(modules[module]), text(module)
        filled = np.flatnonzero(found["images"] >= _FEW)
        share = 100 * found["images"] / max(found["images"].sum(), 1)
        confidence, accuracy = 100 * found["confidence"][filled], 100 * found["accuracy"][filled]
        line: list[tuple[Any, Any]] = list(zip(confidence.tolist(), accuracy.tolist(), strict=True))
        meta = modules[module]
        add_line(diagram, line, style.transparent(0.8), 1.5, meta=meta)
        add_markers(
            diagram,
            line,
            style.color,
            9,
            style.symbol,
            name=label,
            customdata=share[filled].tolist(),
            hovertemplate=f"{label}: confidence %{{x:.1f}} %, accuracy %{{y:.1f}} %<br>"
            "%{customdata:.1f} % of the predictions<extra></extra>",
            meta=meta,
        )
        middles = (100 * (np.arange(BINS) + 0.5) / BINS).tolist()
        line = list(zip(middles, share.tolist(), strict=True))
        add_line(counts, line, style.color, 2, meta=meta, name=label, hovertemplate="%{y:.1f} %")
        add_markers(
            counts, line[meta % 3 :: 3], style.color, 8, style.symbol, hoverinfo="skip", meta=meta
        )
    for figure in (diagram, counts):
        figure.update_xaxes(title_text="Confidence (%)", range=[-3, 103])
    diagram.update_yaxes(title_text="Accuracy (%)", range=[-3, 103])
    counts.update_yaxes(title_text="Share of predictions (%)", rangemode="tozero")
    counts.update_layout(hovermode="x unified")
    diagram_caption = (
        f"Confidence is the highest probability. Each mark is one of {BINS} bins of equal width, over all "
        f"seeds, with {_FEW} predictions or more. On the dotted line a model is right as often as it is "
        "confident; below it, it is overconfident."
    )
    return [
        Chart("reliability", "Reliability diagram", diagram_caption, diagram),
        Chart(
            "confidence",
            "Distribution of confidence",
            "Share of all predictions in each bin: where it is low, the reliability diagram is uncertain.",
            counts,
        ),
    ]
