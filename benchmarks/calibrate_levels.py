"""Calibrate the levels by which a comparison is judged, and write them to the package.

    python benchmarks/calibrate_levels.py            # minutes on one core

For a chance of error alpha it finds, over normal accuracies whose seeds correlate by 0 to 0.9,

- fixed[n]: the p that is reached with probability alpha by n seeds, looked at once;
- sequential[m]: the factor k of the levels k * shape(n / m), all of which together are reached with
  probability alpha by any number of seeds from 4 on, of a study planned with at most m.

The worst correlation counts. ecanet.statistics.design.py reads the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ecanet.files import write_json
from ecanet.statistics.design import FIRST_LOOK, LEVELS, shape
from ecanet.statistics.difference import FEWEST, difference
from ecanet.statistics.power import normal

ALPHAS = (0.2, 0.1, 0.05, 0.025, 0.01, 0.005, 0.0025, 0.001, 0.0005, 0.00025, 0.0001)
FIXED = (*range(FEWEST, 21), 24, 32, 48, 64)
SEQUENTIAL = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64)
CORRELATIONS = (0.0, 0.15, 0.3, 0.6, 0.9)
BEYOND = 2.0  # times the planned seeds, up to which looks are simulated; less than alpha / 200 lies beyond
CHUNK = 20_000


def smallest(
    generator: np.random.Generator, looks: np.ndarray, weights: np.ndarray, studies: int, rho: float
) -> np.ndarray:
    """Return each study's smallest p / weight over all looks, sorted."""
    found = []
    for _ in range(-(-studies // CHUNK)):
        x, y = normal(generator, CHUNK, int(looks[-1]), rho)
        least = np.full(CHUNK, np.inf)
        for n, weight in zip(looks, weights, strict=True):
            least = np.minimum(least, difference(x[:, :n], y[:, :n]).p_value() / weight)
        found.append(least)
    return np.sort(np.concatenate(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=LEVELS)
    flags = parser.parse_args()
    generator = np.random.default_rng(0)
    table: dict[str, dict[str, list[float]]] = {"fixed": {}, "sequential": {}}

    def calibrate(kind: str, seeds: int, looks: np.ndarray, weights: np.ndarray) -> None:
        # The same work for each, so that long sequences get fewer studies.
        studies = max(int(flags.studies * min(1, 24 / len(looks))), CHUNK)
        # The likeliest worst cases get all of them.
        each = [smallest(generator, looks, weights, studies, rho) for rho in CORRELATIONS]
        ranks = [max(int(alpha * len(each[0])) - 1, 0) for alpha in ALPHAS]
        table[kind][str(seeds)] = [float(min(e[rank] for e in each)) for rank in ranks]
        print(kind, seeds, [f"{k:.3g}" for k in table[kind][str(seeds)]], flush=True)

    for n in FIXED:
        calibrate("fixed", n, np.array([n]), np.ones(1))
    for m in SEQUENTIAL:
        looks = np.arange(FIRST_LOOK, int(BEYOND * m) + 1)
        calibrate("sequential", m, looks, shape(looks / m))
    write_json(flags.out, {"alpha": list(ALPHAS), **table})


if __name__ == "__main__":
    main()
