"""Figures of each class and the confusion matrix of an evaluation, as text and as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecanet.experiments.report.answer_charts import confusion_image
from ecanet.experiments.report.style import cut, printable
from ecanet.files import no_formula, write_atomic, write_json, write_rows
from ecanet.metrics import Array, per_class
from ecanet.predictions import Predictions, write_predictions

_MOST_PRINTED, _WORST = 30, 10


def class_rows(table: Array, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return name, images, accuracy, precision and F1 of each class that there are images of.

    The precision of a class that was never predicted is None.
    """
    found = per_class(table)
    return [
        {
            "class": name,
            "images": int(found["images"][i]),
            "accuracy": float(found["recall"][i]),
            "precision": float(found["precision"][i]) if table[:, i].any() else None,
            "f1": float(found["f1"][i]),
        }
        for i, name in enumerate(classes)
        if found["images"][i]
    ]


def class_table(rows: Sequence[dict[str, Any]], where: str) -> str:
    """Return the rows as a table of text: all of them, or of many the ones of the lowest accuracy.

    Args:
        where: says in the line after a shortened table where all are.
    """
    chosen = list(rows)
    if len(rows) > _MOST_PRINTED:
        chosen = sorted(rows, key=lambda row: row["accuracy"])[:_WORST]
    # A name of any length, or with line ends, stays one cell.
    names = [cut(printable(row["class"]), 40) for row in chosen]
    width = max(map(len, ["class", *names]))
    lines = [f"{'class':{width}}  images  accuracy  precision      F1"]
    for name, row in zip(names, chosen, strict=True):
        cells = [
            f"{row['images']:6}",
            *(_percent(row[key], w) for key, w in (("accuracy", 8), ("precision", 9), ("f1", 6))),
        ]
        lines.append("  ".join([f"{name:{width}}", *cells]))
    if len(chosen) < len(rows):
        lines.append(f"the {len(chosen)} classes of lowest accuracy of {len(rows)}; {where}")
    return "\n".join(lines)


def _percent(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{100 * value:.1f} %':>{width}}"


def write_evaluation(
    out: Path, metrics: dict[str, Any], found: Predictions, table: Array, rows: list[dict[str, Any]]
) -> None:
    """Write metrics.json, per_class.csv, confusion.csv, confusion.png and predictions.parquet into ``out``.

    Classes that have no image and were never predicted are left out of the matrix.
    """
    out.mkdir(parents=True, exist_ok=True)
    used = np.flatnonzero(table.sum(0) + table.sum(1))
    names, part = [found.classes[i] for i in used], table[np.ix_(used, used)]
    write_predictions(out / "predictions.parquet", found)
    write_rows(out / "per_class.csv", [row | {"class": no_formula(row["class"])} for row in rows])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class \\ predicted", *map(no_formula, names)])
    writer.writerows([no_formula(n), *line] for n, line in zip(names, part.tolist(), strict=True))
    write_atomic(out / "confusion.csv", text.getvalue())
    write_atomic(out / "confusion.png", confusion_image(part, names))
    write_json(out / "metrics.json", metrics)
