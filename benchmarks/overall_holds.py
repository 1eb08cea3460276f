"""How often the intervals over several networks and data sets hold the truth: the table of docs/several.md.

Each row simulates comparisons of one module in some cells by the code that judges real ones: the seeds of a
cell stop as its plan has them stop. The values of a module and the baseline are normal with a standard
deviation of 1 and a correlation of 0.3 by seed; differences up to 1 are equivalent.

    python benchmarks/overall_holds.py [STUDIES]
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
from scipy import special

from ecanet.statistics.design import FIRST_LOOK, Design
from ecanet.statistics.difference import difference
from ecanet.statistics.overall import CellDifference, Overall, combine

STUDIES, CORRELATION, MARGIN = 2000, 0.3, 1.0


def simulate(chance: Any, true: Any, design: Design) -> list[CellDifference]:
    """Return the difference that a cell ends with, for each study; ``true`` is a value a study."""
    n, studies = design.seeds, len(true)
    shared = np.sqrt(CORRELATION) * chance.standard_normal((studies, n))
    own = np.sqrt(1 - CORRELATION) * chance.standard_normal((2, studies, n))
    module, baseline = shared + own[0] + true[:, None], shared + own[1]
    left, ended = np.arange(studies), {}
    for seeds in range(FIRST_LOOK if design.sequential else n, n + 1):
        found = difference(module[left, :seeds], baseline[left, :seeds])
        half = design.half_width(found)
        low, high = found.mean - half, found.mean + half
        stop = (low > 0) | (high < 0) | ((low > -MARGIN) & (high < MARGIN))
        stop |= design.futile(found, MARGIN) | (seeds == n)
        students = -special.stdtrit(found.df, design.alpha / 2) * found.standard_error
        wider = np.maximum(half / students, 1)
        for i in np.flatnonzero(stop):
            ended[left[i]] = CellDifference(
                "", found.mean[i], found.standard_error[i], found.df[i], wider[i]
            )
        left = left[~stop]
        if not len(left):
            break
    return [ended[i] for i in range(studies)]


def row(cells: int, effect: float, tau: float, design: Design, studies: int) -> list[str]:
    """Return the shares of studies whose intervals hold, and of wrong and of right findings."""
    chance = np.random.default_rng([cells, design.seeds, int(10 * effect), int(10 * tau)])
    true = effect + tau * chance.standard_normal((cells, studies))
    by_cell = [simulate(chance, own, design) for own in true]
    found: list[Overall] = [
        combine(one, confidence=design.confidence, margin=MARGIN)
        for one in zip(*by_cell, strict=True)
    ]
    means = true.mean(axis=0)
    these = others = wrong = 0
    for one, mean in zip(found, means, strict=True):
        assert one.interval
        these += one.interval[0] <= mean <= one.interval[1]
        others += one.others is not None and one.others[0] <= effect <= one.others[1]
        wrong += (
            (one.finding == "better" and mean <= 0)
            or (one.finding == "worse" and mean >= 0)
            or (one.finding == "equivalent" and abs(mean) >= MARGIN)
        )
    shares = [these / studies, others / studies if cells > 2 else None, wrong / studies]
    return [
        "auto" if design.sequential else str(design.seeds),
        str(cells), f"{effect:g}", f"{tau:g}",
        *("—" if share is None else f"{100 * share:.1f}" for share in shares),
    ]  # fmt: skip


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else STUDIES
    print("| seeds | cells | mean effect | τ | these cells | others like these | wrong findings |")
    print("|---|---|---|---|---|---|---|")
    designs = [Design(4, False), Design(12, False), Design(12)]
    for design, cells, (effect, tau) in itertools.product(
        designs, (2, 3, 6), ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    ):
        print("|", " | ".join(row(cells, effect, tau, design, studies)), "|", flush=True)


if __name__ == "__main__":
    main()
