"""What runs answered for each test image, as a part of a comparison's report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecanet.experiments.analysis.predictions import (
    Answers,
    ClassRow,
    Disagreement,
    class_table,
    confusions,
    disagreements,
    pairs,
    reliabilities,
)
from ecanet.experiments.report.answer_charts import (
    class_chart,
    confusion_charts,
    reliability_charts,
)
from ecanet.experiments.report.style import Chart, cut, printable
from ecanet.metrics import BINS

# Classes of the page's table each way; all are in per_class.csv.
CHANGED = 20
_PAIRS = 10
# Images of the gallery each way: of one module, and of all together.
_IMAGES, _ALL_IMAGES, _FEWEST = 24, 48, 4
# Modules whose images are shown.
_MODULES = 12

Thumbnails = Callable[[Iterable[str]], Mapping[str, str]]
"""From names of test images to the addresses of their thumbnails, of those that can be read."""


@dataclass
class GalleryItem:
    """An image of the gallery."""

    name: str
    label: str
    source: str
    """Address of its thumbnail."""
    own: str
    """What the module answered, and in how many seeds."""
    base: str


@dataclass
class Gallery:
    """Images on which a module and the baseline differ."""

    module: str
    place: int
    """Of the module in the study."""
    gained: int
    """Images that it gets right in more seeds than the baseline."""
    lost: int
    gains: list[GalleryItem]
    losses: list[GalleryItem]


@dataclass
class PredictionReport:
    """Charts, tables and texts on the answers of a study's runs."""

    charts: list[Chart]
    tables: dict[str, list[dict[str, Any]]]
    modules: list[str]
    """Those with answers."""
    rows: list[ClassRow]
    """Classes of the page's table."""
    classes: int
    """That have test images."""
    matrices: list[str]
    """Names of the charts of confusion matrices; empty where they would be too large or too many."""
    pairs: dict[str, list[tuple[str, str, float, float]]]
    """By module: the most frequent confusions."""
    galleries: list[Gallery]
    without_images: bool
    """Whether no image of the gallery can be read any more."""


def prediction_report(
    answers: Answers, attention: Sequence[str], thumbnails: Thumbnails | None
) -> PredictionReport:
    """Compute, draw and write down what a study's report has on its answers.

    Args:
        attention: the study's modules, the baseline first.
    """
    baseline = attention[0]
    places = {module: i for i, module in enumerate(attention) if module in answers.predicted}
    others = {module: i for module, i in places.items() if module != baseline}
    rows, matrices, bins = (
        class_table(answers, baseline),
        confusions(answers),
        reliabilities(answers),
    )
    matrices = {module: matrices[module] for module in places}
    differing = {module: disagreements(answers, module, baseline) for module in others}
    shown = most_changed(rows)
    drawn = reliability_charts({m: bins[m] for m in places}, places)
    if any(row.differences for row in shown):
        drawn.append(class_chart(shown, others, baseline))
    matrix_charts = confusion_charts(matrices, answers.classes, places)
    galleries, without_images = _galleries(differing, others, thumbnails)
    return PredictionReport(
        charts=drawn + matrix_charts,
        tables={
            "per_class": _class_rows(rows),
            "confusion": _confusion_rows(matrices, answers.classes),
            "reliability": _bin_rows(bins),
            "disagreements": _disagreement_rows(differing),
        },
        modules=list(places),
        rows=shown,
        classes=len(rows),
        matrices=[chart.name for chart in matrix_charts],
        pairs={m: pairs(table, answers.classes, _PAIRS) for m, table in matrices.items()},
        galleries=galleries,
        without_images=without_images,
    )


def most_changed(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """Return all classes where they are few, else those that change most each way, from worst to best."""
    if len(rows) <= 2 * CHANGED:
        return list(rows)

    def change(row: ClassRow) -> float:
        means = [found.mean for found in row.differences.values()]
        return max(means, key=abs, default=0.0)

    order = sorted(rows, key=change)
    return order[:CHANGED] + order[-CHANGED:]


# The gallery


def _galleries(
    differing: Mapping[str, list[Disagreement]],
    places: Mapping[str, int],
    thumbnails: Thumbnails | None,
) -> tuple[list[Gallery], bool]:
    """Return the galleries of the modules, and whether there are images but none can be read."""
    each = max(_FEWEST, min(_IMAGES, _ALL_IMAGES // max(len(differing), 1)))
    sides = {module: _sides(found) for module, found in differing.items()}
    shown = {m: [side[:each] for side in sides[m]] for m in list(sides)[:_MODULES]}
    wanted = {d.image for both in shown.values() for side in both for d in side}
    there = thumbnails(sorted(wanted)) if thumbnails and wanted else {}
    galleries = []
    for module, (gained, lost) in sides.items():
        items = [
            [_item(d, there[d.image]) for d in side if d.image in there]
            for side in shown.get(module, ([], []))
        ]
        galleries.append(Gallery(module, places[module], len(gained), len(lost), *items))
    return galleries, bool(wanted) and not there


def _sides(found: Sequence[Disagreement]) -> tuple[list[Disagreement], list[Disagreement]]:
    """Return the images gained and those lost, the clearest of each first."""
    gained = [d for d in found if d.right > d.baseline_right]
    return gained, [d for d in reversed(found) if d.right < d.baseline_right]


def _item(found: Disagreement, source: str) -> GalleryItem:
    return GalleryItem(
        _name(found.image, 60),
        _name(found.label),
        source,
        _answers(found.answers, found.seeds),
        _answers(found.baseline_answers, found.seeds),
    )


def _answers(found: Mapping[str, int], seeds: int, most: int = 3) -> str:
    """Return ``cat`` for one seed, else ``cat (3 of 5), dog (2)``; the most frequent only."""
    if seeds == 1:
        return _name(next(iter(found)))
    shown = [f"{_name(name)} ({count})" for name, count in list(found.items())[:most]]
    shown[0] = f"{shown[0][:-1]} of {seeds})"
    return ", ".join(shown) + (", …" if len(found) > most else "")


def _name(name: str, width: int = 40) -> str:
    return cut(printable(name), width)


# Files


def _class_rows(rows: Sequence[ClassRow]) -> list[dict[str, Any]]:
    return [
        {
            "class": printable(row.name),
            "images": row.images,
            "attention": module,
            "runs": found.runs,
            "accuracy_mean": found.mean,
            "accuracy_sd": found.sd,
            "difference_mean": (d := row.differences.get(module)) and d.mean,
            "difference_low": d and d.interval and d.interval[0],
            "difference_high": d and d.interval and d.interval[1],
        }
        for row in rows
        for module, found in row.accuracies.items()
    ]


def _confusion_rows(tables: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each cell that is not 0: a thousand classes have a million cells."""
    return [
        {
            "attention": module,
            "class": printable(classes[i]),
            "predicted": printable(classes[j]),
            "images": float(table[i, j]),
        }
        for module, table in tables.items()
        for i, j in zip(*np.nonzero(table), strict=True)
    ]


def _bin_rows(bins: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    def number(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    return [
        {
            "attention": module,
            "confidence_above": i / BINS,
            "confidence_to": (i + 1) / BINS,
            "answers": int(found["images"][i]),
            "confidence_mean": number(found["confidence"][i]),
            "accuracy": number(found["accuracy"][i]),
        }
        for module, found in bins.items()
        for i in range(BINS)
    ]


def _disagreement_rows(differing: Mapping[str, Sequence[Disagreement]]) -> list[dict[str, Any]]:
    return [
        {
            "attention": module,
            "image": printable(found.image),
            "class": printable(found.label),
            "seeds": found.seeds,
            "right": found.right,
            "baseline_right": found.baseline_right,
            "answers": _answers(found.answers, found.seeds, len(found.answers)),
            "baseline_answers": _answers(
                found.baseline_answers, found.seeds, len(found.baseline_answers)
            ),
        }
        for module, list_ in differing.items()
        for found in list_
    ]
