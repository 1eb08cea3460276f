"""Files of predictions: CSV and JSON, written as they come, and a page with a thumbnail of each image."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ecanet.files import no_formula, temporary_folder

if TYPE_CHECKING:
    from ecanet.training.predict import Prediction

# A thumbnail takes some 8 KB of the page.
MOST_SHOWN = 500
_MOST_CLASSES, _MOST_FAULTS = 30, 100

Sink = Callable[["Prediction"], None]


@contextmanager
def csv_file(path: Path) -> Iterator[Sink]:
    """Write a CSV with a line per predicted image; the file appears when all are written.

    Columns: image, class, probability, and class_2, probability_2 ... for further classes.
    """
    with _appearing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        begun = False

        def write(found: Prediction) -> None:
            nonlocal begun
            if found.fault is not None:
                return
            if not begun:
                numbers = ["", *(f"_{n}" for n in range(2, len(found.classes) + 1))]
                header = [f"{name}{n}" for n in numbers for name in ("class", "probability")]
                writer.writerow(["image", *header])
                begun = True
            cells = [cell for name, p in found.classes for cell in (no_formula(name), f"{p:.6g}")]
            writer.writerow([no_formula(found.image), *cells])

        yield write


@contextmanager
def html_file(path: Path, about: dict[str, str]) -> Iterator[Sink]:
    """Write a page that opens offline: counts per class, and the first MOST_SHOWN images.

    Args:
        about: facts for the head of the page.
    """
    from ecanet.experiments.report.page import page_templates

    shown: list[dict[str, Any]] = []
    faults: list[str] = []
    counts: Counter[str] = Counter()

    def add(found: Prediction) -> None:
        if found.fault is not None:
            faults.append(found.fault)
            return
        counts[found.classes[0][0]] += 1
        if found.thumbnail is not None:
            shown.append(
                {"image": found.image, "classes": found.classes, "address": found.thumbnail}
            )

    with _appearing(path) as file:
        yield add
        page = page_templates().get_template("predictions.html.j2")
        content = page.render(
            about=about,
            shown=shown,
            images=counts.total(),
            counts=counts.most_common(_MOST_CLASSES),
            classes=len(counts),
            faults=faults[:_MOST_FAULTS],
            fault_count=len(faults),
            written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        )
        file.write(content)


@contextmanager
def _appearing(path: Path) -> Iterator[TextIO]:
    """Open a file for writing that takes its name at the end; after an error there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder:
        # The bytes of a name that is no UTF-8 are written as escapes.
        with open(
            folder / path.name, "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file:
            yield file
        os.replace(folder / path.name, path)
