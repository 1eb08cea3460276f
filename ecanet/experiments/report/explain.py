"""The page of an explanation, its files, and what a study's report shows of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ecanet.data.thumbnails import thumbnail
from ecanet.errors import UserError, counted
from ecanet.experiments.report.explain_charts import (
    Pictures,
    class_charts,
    index_chart,
    maps_image,
    rows_of,
    short_name,
)
from ecanet.experiments.report.image import draw
from ecanet.experiments.report.page import csv_text, json_text, minus, now, page_text, write_files
from ecanet.experiments.report.style import Chart, module_style
from ecanet.explain.result import Attention, Explanation, Pair
from ecanet.explain.saliency import BLUR, STEPS
from ecanet.files import read_json
from ecanet.typed import typed

__all__ = ["Heading", "Pictures", "explained_charts", "read_explanation", "write_explanation"]

log = logging.getLogger(__name__)

PAGE, NUMBERS = "explain.html", "explain.json"
_SIDE = 160


@dataclass
class Heading:
    """What a page is of."""

    title: str
    environment: dict[str, Any]
    skipped_images: list[str] = field(default_factory=list)


def write_explanation(
    out: Path,
    heading: Heading,
    found: Explanation,
    rows: Sequence[dict[str, Any]],
    pictures: Sequence[Pictures],
) -> Path:
    """Write explain.html and its files into the folder ``out``, the page last; return its path.

    Args:
        out: the folder.
        heading: what it is of.
        found: the numbers.
        rows: of explain_gates.csv.
        pictures: for each of the pairs.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full.
    """
    written = now()
    charts = _charts(found)
    by_name = {chart.name: chart for chart in charts}
    about = {"title": heading.title, "written": written, "environment": heading.environment}
    files: dict[str, str | bytes] = {
        "explain_layers.csv": csv_text(_layer_rows(found)),
        "explain_gates.csv": csv_text(list(rows)),
        "explain_maps.csv": csv_text(_map_rows(found)),
        NUMBERS: json_text({**about, "explanation": asdict(found)}),
    }
    if "attention-index" in by_name:
        files["explain_index.png"] = draw([by_name["attention-index"]])
    for network in found.attention:
        if drawn := class_charts(network):
            # A file has room for the last three stages side by side.
            files[f"explain_gates_{network.place}.png"] = draw(drawn[-3:])
    for pair, shown in zip(found.pairs, pictures, strict=True):
        files[f"explain_maps_{pair.own.place}.png"] = maps_image(pair, shown)
    files = {name: content for name, content in files.items() if content}
    files[PAGE] = page_text(
        "explain.html.j2",
        heading,
        charts,
        written,
        sorted(files),
        found=found,
        lines=summary_lines(found),
        class_charts={n.run: [c.name for c in class_charts(n)] for n in found.attention},
        galleries=[_gallery(*both) for both in zip(found.pairs, pictures, strict=True)],
        style=module_style,
        short_name=short_name,
        steps=STEPS,
        blur=BLUR,
    )
    write_files(out, files)
    return out / PAGE


def _charts(found: Explanation) -> list[Chart]:
    charts = [index_chart(found.attention)] if found.attention else []
    return charts + [chart for network in found.attention for chart in class_charts(network)]


def read_explanation(report: Path) -> Explanation | None:
    """Return what ``ecanet explain`` has written into the folder of a report; None if nothing, or damaged."""
    there = read_json(report / NUMBERS)
    if there is None or not (report / PAGE).is_file():
        return None
    try:
        return typed(Explanation, there.get("explanation"))
    except UserError as error:
        log.warning("%s is left out of the report: %s", report / NUMBERS, error)
        return None


def explained_charts(found: Explanation) -> list[Chart]:
    """Return the charts that a study's report shows: the index, and the last gates of each network."""
    charts = [index_chart(found.attention)] if found.attention else []
    return charts + [drawn[-1] for network in found.attention if (drawn := class_charts(network))]


def summary_lines(found: Explanation) -> list[str]:
    """Return what the numbers come to, in a sentence or two for each network."""
    lines = [_gate_line(network) for network in found.attention]
    return lines + [line for pair in found.pairs if (line := _map_line(pair))]


def _gate_line(network: Attention) -> str:
    layers = sorted(network.layers, key=lambda layer: layer.index)
    low, high = layers[0], layers[-1]
    mean = sum(layer.index for layer in layers) / len(layers)
    line = (
        f"{network.module} ({network.run}): on average over its {counted(len(layers), 'layer')} the index is "
        f"{mean:.2f}, from {low.index:.2f} in {short_name(low.name)} to {high.index:.2f} in "
        f"{short_name(high.name)}; the factor of a channel has a standard deviation of "
        f"{sum(layer.sd_images for layer in layers) / len(layers):.2g} between images."
    )
    if constant := len(network.constant):
        which = (
            f"{constant} of them hardly depend" if constant > 1 else "One of them hardly depends"
        )
        line += f" {which} on the image (index up to 0.01), and could be constants (ecanet fold)."
    return line


def _map_line(pair: Pair) -> str:
    base = pair.base
    if base is None:
        return ""
    parts = []
    for name in ("insertion", "deletion"):
        found = pair.difference(name)
        if found is not None:
            mean, low, high = found
            parts.append(f"{name} {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
    if not parts:
        return ""
    return minus(
        f"Maps of {pair.own.module} against those of {base.module}, over "
        f"{counted(len(pair.images), 'image')}: {', '.join(parts)}."
    )


def _layer_rows(found: Explanation) -> list[dict[str, Any]]:
    return [
        {"module": network.module, "run": network.run}
        | {name: value for name, value in vars(layer).items() if name != "curves"}
        for network in found.attention
        for layer in network.layers
    ]


def _map_rows(found: Explanation) -> list[dict[str, Any]]:
    return [
        {
            "module": look.module,
            "run": look.run,
            "beside": pair.own.run,
            "image": image,
            "class": pair.classes[i],
            "predicted": look.predicted[i],
            "probability": look.probability[i],
            "insertion": look.insertion[i],
            "deletion": look.deletion[i],
        }
        for pair in found.pairs
        for look in (pair.own, pair.base)
        if look is not None
        for i, image in enumerate(pair.images)
    ]


@dataclass
class _Tile:
    """A picture of an image, and what is known of it."""

    source: str
    title: str


def _gallery(pair: Pair, pictures: Pictures) -> list[list[_Tile]]:
    """Return the pictures of each image."""
    rows = {
        name: [thumbnail(_as_rgb(one), _SIDE) for one in drawn]
        for name, drawn in rows_of(pair, pictures).items()
    }
    return [
        [_Tile(sources[i], name) for name, sources in rows.items()] for i in range(len(pair.images))
    ]


def _as_rgb(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image
