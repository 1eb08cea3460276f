"""How often does the interval for other seeds on other images hold the true difference?

    python benchmarks/image_coverage.py [--out results/benchmarks/image-coverage.json]

Studies are drawn from a model that the interval does not assume. An image has a difficulty: most images are
always right, that of the others is normal. A run is right on an image if its module's mean, the difficulty,
what the module makes of this image, the effect of its seed (Student's t with 4 degrees of freedom) and what
the seed makes of this image (t with 3) are above 0 together. Runs of the two modules with one seed share 80 %
of the variance of the seeds' effects where they are paired, and half of what the seed makes of single images.
The true difference is computed, not simulated. Seeds are "alike" where they hardly differ beyond single
images, "apart" where their accuracies differ by several points, and "paired" where they do so together.

A cell counts the studies that get an interval; the others have too few images on which the modules differ
(``ecanet.experiments.analysis.images.FEWEST``), or the same difference with every seed. Cells in which most
studies get none are not judged.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from ecanet.experiments.analysis.images import (
    FEWEST,
    ImageVariance,
    image_variance,
    other_half_width,
)
from ecanet.files import write_atomic
from ecanet.statistics.design import Design
from ecanet.statistics.difference import difference

STUDIES = {100: 10_000, 400: 10_000, 1_000: 10_000, 10_000: 2_000}
"""Of a cell, by its images."""
SEEDS = (3, 5, 10, 20)
DIFFERENCES = {0.6: (0.0, 0.03), 0.9: (0.0, 0.02), 0.99: (0.0, 0.005, -0.02)}
"""In points of accuracy by the baseline's accuracy."""
# What a module makes of an image, and what a seed does, where the difficulty has a deviation of 1.
MODULE, RESIDUAL = 0.5, 0.6

Array = NDArray[np.float64]


class Seeds(NamedTuple):
    spread: float
    shared: float
    """Share of the variance of the seeds' effects that is the same for both modules."""
    same: float
    """Share of the images of which a seed makes the same with both modules."""


SCENARIOS = {
    "alike": Seeds(0.05, 0.0, 0.0),
    "apart": Seeds(0.3, 0.0, 0.0),
    "paired": Seeds(0.3, 0.8, 0.5),
}


def quantiles(df: float, count: int) -> Array:
    """Return equally likely values of Student's t, of variance 1 where it has one."""
    found: Array = stats.t.ppf((np.arange(count) + 0.5) / count, df)
    return found / found.std()


SEED_EFFECTS, RESIDUALS = quantiles(4, 64), RESIDUAL * quantiles(3, 500)


class Cell(NamedTuple):
    accuracy: float
    difference: float
    scenario: str

    @property
    def seeds(self) -> Seeds:
        return SCENARIOS[self.scenario]

    @property
    def uncertain(self) -> float:
        """Share of images that are not always right."""
        return min(1.0, 2.5 * (1 - min(self.accuracy, self.accuracy + self.difference)))

    def seed_effects(self, common: Array, own: Array) -> Array:
        shared = self.seeds.shared
        return self.seeds.spread * (shared**0.5 * common + (1 - shared) ** 0.5 * own)

    def true_accuracy(self, mean: float) -> float:
        """Return the accuracy over all seeds and images of a module with this mean."""
        effects = self.seed_effects(SEED_EFFECTS[:, None], SEED_EFFECTS).ravel()
        spread = (1 + MODULE**2) ** 0.5
        right = [special.ndtr((mean + effects + r) / spread).mean() for r in RESIDUALS]
        return 1 - self.uncertain * (1 - float(np.mean(right)))

    def means(self) -> tuple[float, float]:
        """Return the baseline's mean and the module's."""
        goals = (self.accuracy, self.accuracy + self.difference)
        first, second = (
            optimize.brentq(lambda m, goal=goal: self.true_accuracy(m) - goal, -20, 20, xtol=1e-9)
            for goal in goals
        )
        return first, second


def draw(
    random: np.random.Generator, cell: Cell, means: tuple[float, float], images: int, seeds: int
) -> tuple[Array, Array]:
    """Return whether baseline and module are right: (S, I) each, by the same images."""
    count = random.binomial(images, cell.uncertain)
    difficulty = random.standard_normal(count)
    common = random.choice(SEED_EFFECTS, seeds)
    noise = random.integers(len(RESIDUALS), size=(2, seeds, count), dtype=np.uint16)
    if cell.seeds.same:
        noise[1] = np.where(random.random((seeds, count)) < cell.seeds.same, noise[0], noise[1])
    found = np.ones((2, seeds, images))
    for module, mean in enumerate(means):
        effects = cell.seed_effects(common, random.choice(SEED_EFFECTS, seeds))
        own = mean + difficulty + MODULE * random.standard_normal(count)
        found[module, :, :count] = own + effects[:, None] + RESIDUALS[noise[module]] > 0
    return found[0], found[1]


def measure(
    cell: Cell, images: int, seeds: int, studies: int, means: tuple[float, float]
) -> dict[str, Any]:
    """Return the coverage of both intervals over so many studies."""
    random = np.random.default_rng([images, seeds, *(round(1e6 * (m + 50)) for m in means)])
    accuracies, parts = np.empty((2, studies, seeds)), []
    for study in range(studies):
        base, module = draw(random, cell, means, images, seeds)
        accuracies[:, study] = base.mean(1), module.mean(1)
        parts.append(image_variance(module - base))
    variance = ImageVariance(*np.array(parts).T)
    found = difference(accuracies[1], accuracies[0], resolution=1 / images)
    half = Design(seeds, sequential=False).half_width(found)
    wide = other_half_width(half, found.standard_error, found.df, variance)
    has_interval = (variance.differing >= FEWEST) & (np.ptp(accuracies, axis=(0, 2)) > 0)
    off = found.mean - (cell.true_accuracy(means[1]) - cell.true_accuracy(means[0]))

    def share(of: Any) -> float | None:
        return float(of[has_interval].mean()) if has_interval.any() else None

    return {
        "accuracy": cell.accuracy,
        "difference": cell.difference,
        "seeds_are": cell.scenario,
        "images": images,
        "seeds": seeds,
        "studies": studies,
        "with_interval": float(has_interval.mean()),
        "coverage": share(np.abs(off) <= wide),
        "too_low": share(off < -wide),
        "mean_width": share(2 * wide),
        "coverage_of_seeds_alone": share(np.abs(off) <= half),
    }


def record_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is written: the summary, and the rows."""
    judged = [row["coverage"] for row in rows if row["with_interval"] >= 0.5]
    return {
        "what": "coverage of 95 % intervals for other seeds on other images",
        "fewest_differing_images": FEWEST,
        "cells": len(rows),
        "judged": len(judged),
        "within_2_points": sum(abs(coverage - 0.95) <= 0.02 for coverage in judged),
        "lowest": min(judged),
        "highest": max(judged),
        "mean": float(np.mean(judged)),
        "rows": rows,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table: coverage, lowest to highest, and of seeds alone, by accuracy and images."""
    lines = ["| accuracy | images | with an interval | coverage | of the interval for seeds |"]
    lines.append("|---|---|---|---|---|")
    for accuracy, images in itertools.product(DIFFERENCES, STUDIES):
        cells = [row for row in rows if (row["accuracy"], row["images"]) == (accuracy, images)]
        judged = [row for row in cells if row["with_interval"] >= 0.5]
        if not cells:
            continue
        there = span([row["with_interval"] for row in cells], 0)
        found = [
            span([row[key] for row in judged], 1) if judged else "—"
            for key in ("coverage", "coverage_of_seeds_alone")
        ]
        lines.append(f"| {accuracy:g} | {images:,} | {there} | {' | '.join(found)} |")
    return "\n".join(lines)


def span(values: list[float], digits: int) -> str:
    low, high = (f"{100 * value:.{digits}f}" for value in (min(values), max(values)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/image-coverage.json"))
    parser.add_argument("--images", type=int, nargs="+", default=list(STUDIES))
    flags = parser.parse_args()
    rows = []
    for accuracy, scenario in itertools.product(DIFFERENCES, SCENARIOS):
        for change in DIFFERENCES[accuracy]:
            cell = Cell(accuracy, change, scenario)
            means = cell.means()
            for images, seeds in itertools.product(flags.images, SEEDS):
                rows.append(measure(cell, images, seeds, STUDIES[images], means))
                print(json.dumps(rows[-1]), flush=True)
    record = record_of(rows)
    write_atomic(flags.out, json.dumps(record, indent=1) + "\n")
    print({key: value for key, value in record.items() if key != "rows"})
    print(table(rows))


if __name__ == "__main__":
    main()
