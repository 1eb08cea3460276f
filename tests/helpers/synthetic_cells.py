"""Comparisons over several networks and data sets that were never run."""

from __future__ import annotations

from ecanet.experiments.analysis.cells import CellsSummary, CellSummary, summarise_cells
from helpers.synthetic import make_accuracies, make_summary

DATA = ("cifar10", "digits", "photographs-of-fruit")


def make_cells(
    effects: dict[str, dict[str, float]], data: tuple[str, ...] = DATA, seeds: int = 8
) -> CellsSummary:
    """Return a comparison with these effects of modules, by network."""
    cells = []
    for images in data:
        for model, found in effects.items():
            accuracies = make_accuracies(found, seeds, generator_seed=len(cells))
            summary = make_summary(accuracies)
            cells.append(CellSummary(f"{model}-{images}", model, images, summary))
    return summarise_cells(f"{', '.join(effects)} on {', '.join(data)}", cells, [])


GOOD = {"none": 0.0, "se": 0.0, "eca": 0.012}
BAD = {"none": 0.0, "se": 0.0, "eca": -0.012}
