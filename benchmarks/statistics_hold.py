"""Simulate studies and count how often their statistics are wrong, and what stopping early saves.

    python benchmarks/statistics_hold.py --out results/benchmarks        # about half an hour on one core

Every figure of docs/statistics.md comes from here: false findings, false "equivalent", coverage, runs saved,
power against the paired and the unpaired test, and what `ecanet plan` promises. The simulated runs are judged
by the code that judges real ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ecanet.experiments.analysis.plan import Spread, estimate_spread, needed, plan_rows
from ecanet.files import read_json, write_atomic, write_json
from ecanet.statistics.design import Design
from ecanet.statistics.difference import difference
from ecanet.statistics.power import judge, normal, power

MODULES = (1, 2, 4, 7)
MOST = 20  # seeds

Noise = Callable[[np.random.Generator, Any], np.ndarray]
Array = np.ndarray


def student(g: np.random.Generator, shape: Any) -> Array:
    return g.standard_t(3, shape) / np.sqrt(3)


def laplace(g: np.random.Generator, shape: Any) -> Array:
    return g.laplace(size=shape) / np.sqrt(2)


def outliers(g: np.random.Generator, shape: Any) -> Array:
    """One run in twenty is ten times as far off."""
    return g.standard_normal(shape) * np.where(g.random(shape) < 0.05, 10, 1)


def skewed(g: np.random.Generator, shape: Any) -> Array:
    """Few runs are much worse than most."""
    return 1 - g.exponential(size=shape)


def gauss(g: np.random.Generator, shape: Any) -> Array:
    return g.standard_normal(shape)


# Name: noise, correlation of seeds, step between two accuracies in standard deviations of a run.
CELLS: dict[str, tuple[Noise, float, float]] = {
    "normal": (gauss, 0.0, 0.0),
    "normal, correlated 0.3": (gauss, 0.3, 0.0),
    "normal, correlated 0.6": (gauss, 0.6, 0.0),
    "normal, correlated 0.9": (gauss, 0.9, 0.0),
    "Student's t, 3 df": (student, 0.0, 0.0),
    "Student's t, 3 df, correlated 0.5": (student, 0.5, 0.0),
    "Laplace, correlated 0.3": (laplace, 0.3, 0.0),
    "outliers": (outliers, 0.0, 0.0),
    "outliers, correlated 0.5": (outliers, 0.5, 0.0),
    "skewed, correlated 0.3": (skewed, 0.3, 0.0),
    "discrete, step 1/2 sd": (gauss, 0.3, 0.5),
    "discrete, step 1 sd": (gauss, 0.3, 1.0),
    "discrete, step 2 sd": (gauss, 0.3, 2.0),
}


def draw(
    g: np.random.Generator, cell: str, studies: int, modules: int, effect: float = 0.0
) -> tuple[Array, Array, float]:
    """Return results of the modules, (modules, studies, seeds), of the baseline, and their step."""
    noise, rho, step = CELLS[cell]
    common = np.sqrt(rho) * noise(g, (studies, MOST))
    found = common + np.sqrt(1 - rho) * noise(g, (modules + 1, studies, MOST))
    found[1:] += effect
    if step:
        # A place on the grid of its own for each study.
        shift = g.random((studies, 1))
        found = step * np.round(found / step + shift)
    return found[1:], found[0], step


def false_findings(g: np.random.Generator, studies: int) -> list[dict[str, Any]]:
    """Share of studies without a difference that call any module better or worse at any look."""
    rows = []
    for cell in CELLS:
        for modules in MODULES:
            x, y, step = draw(g, cell, studies, modules)
            designs = {
                "auto, 12 at most, extended to 20": Design(12, True, comparisons=modules),
                "auto, 20 at most": Design(20, True, comparisons=modules),
                "6 seeds, extended to 20": Design(6, False, comparisons=modules),
                "12 seeds, looked at from 3": Design(12, False, comparisons=modules),
            }
            wrong = {name: np.zeros(studies, dtype=bool) for name in designs}
            for n in range(3, MOST + 1):
                for one in x:
                    p = difference(one[:, :n], y[:, :n], resolution=step).p_value()
                    for name, design in designs.items():
                        level = design.level(n)
                        wrong[name] |= p < (level or 0.0)
            shares = {name: float(found.mean()) for name, found in wrong.items()}
            rows.append({"accuracies": cell, "modules": modules, **shares})
            print(rows[-1], flush=True)
    return rows


def false_equivalence(g: np.random.Generator, studies: int) -> list[dict[str, Any]]:
    """Share of studies that call a module equivalent at any look though it differs by the margin."""
    rows = []
    for cell in CELLS:
        for margin in (0.5, 1.0, 2.0):
            x, y, step = draw(g, cell, studies, 1, effect=margin)
            designs = {
                "auto, 12 at most, extended to 20": Design(12, True),
                "6 seeds, extended to 20": Design(6, False),
            }
            shares = {}
            for name, design in designs.items():
                wrong = np.zeros(studies, dtype=bool)
                for n in range(3, MOST + 1):
                    found = difference(x[0][:, :n], y[:, :n], resolution=step)
                    half = design.half_width(found)
                    wrong |= (found.mean - half > -margin) & (found.mean + half < margin)
                shares[name] = float(wrong.mean())
            rows.append({"accuracies": cell, "margin in sd of a run": margin, **shares})
            print(rows[-1], flush=True)
    return rows


def coverage(g: np.random.Generator, studies: int) -> list[dict[str, Any]]:
    """Share of fixed studies whose intervals all hold the true differences, by number of seeds."""
    rows = []
    for cell in CELLS:
        for modules in (1, 2, 7):
            x, y, step = draw(g, cell, studies, modules)
            shares = {}
            for n in range(3, MOST + 1):
                level = Design(n, False, comparisons=modules).level(n)
                assert level is not None
                held = np.ones(studies, dtype=bool)
                for one in x:
                    held &= difference(one[:, :n], y[:, :n], resolution=step).p_value() > level
                shares[str(n)] = float(held.mean())
            rows.append({"accuracies": cell, "modules": modules, **shares})
            print(rows[-1], flush=True)
    return rows


def saved(g: np.random.Generator, studies: int) -> list[dict[str, Any]]:
    """Seeds of the sequential design beside a fixed one of equal power, and coverage where it stops."""
    rows = []
    for rho in (0.0, 0.3, 0.6, 0.9):
        for effect in (0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 2.5):  # in sd of the paired difference
            difference_ = effect * np.sqrt(2 * (1 - rho))
            fixed = []
            for n in range(3, 31):
                x, y = normal(g, studies, n, rho)
                fixed.append(judge(x + difference_, y, difference_, Design(n, False), 1e-9).better)
            for most in (12, 16, 20):
                x, y = normal(g, studies, most, rho)
                found = judge(x + difference_, y, difference_, Design(most, True), 1e-9)
                seeds = None
                if effect and fixed[0] < found.better < min(0.999, max(fixed)):
                    equal = np.interp(found.better, np.maximum.accumulate(fixed), range(3, 31))
                    seeds = float(equal)
                rows.append(
                    {
                        "correlation": rho, "effect in paired sd": effect, "max seeds": most,
                        "power": found.better, "seeds": found.seeds,
                        "fixed seeds of equal power": seeds,
                        "saved": None if seeds is None else 1 - found.seeds / seeds,
                        "covered": found.covered,
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def pairing(g: np.random.Generator, studies: int) -> list[dict[str, Any]]:
    """Power of fixed studies beside the paired t-test's and Welch's, where the better of them has 80 %."""
    rows = []
    for n in (3, 4, 5, 6, 8, 10, 12, 16, 20):
        level = Design(n, False).level(n)
        assert level is not None
        for rho in (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9):
            x, y = normal(g, studies, n, rho)
            for effect in np.arange(0.1, 12, 0.05) * np.sqrt(1 - rho):
                paired = float(np.mean(stats.ttest_rel(x + effect, y, axis=1).pvalue < 0.05))
                welch = stats.ttest_ind(x + effect, y, axis=1, equal_var=False).pvalue
                unpaired = float(np.mean(welch < 0.05))
                if max(paired, unpaired) >= 0.8:
                    break
            own = float(np.mean(difference(x + effect, y).p_value() < level))
            rows.append(
                {
                    "seeds": n, "correlation": rho, "paired": paired, "unpaired": unpaired,
                    "ours": own, "loss": max(paired, unpaired) - own,
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def promises(g: np.random.Generator, pilots: int) -> list[dict[str, Any]]:
    """The true power of studies with the seeds that `ecanet plan` names for 80 %."""
    rows = []
    for rho in (0.0, 0.5):
        for effect in (1.2, 2.0):  # in sd of a run
            true: dict[Design, float] = {}

            def of(
                design: Design, effect: float = effect, rho: float = rho, true: Any = true
            ) -> float:
                if design not in true:
                    true[design] = power(
                        design, effect, correlation=rho, margin=effect, studies=20_000, seed=7
                    ).better
                return true[design]

            for seeds in (0, 3):  # of a pilot of a module and the baseline; 0: the spread is given
                got: dict[str, list[tuple[float, float]]] = {"fixed": [], "auto": []}
                for _ in range(pilots if seeds else 1):
                    spread = Spread(1.0, rho)
                    if seeds:
                        x, y = normal(g, 1, seeds, rho)
                        spread = estimate_spread(
                            {name: dict(enumerate(v[0])) for name, v in (("x", x), ("y", y))}
                        )
                    plan = plan_rows(spread, effect, studies=500 if seeds else 20_000)
                    fixed, auto = (row or plan[-1] for row in needed(plan, 0.8))
                    got["fixed"].append((fixed.fixed_power, of(Design(fixed.seeds, False))))
                    got["auto"].append((auto.auto_power or 0.0, of(Design(auto.seeds, True))))
                rows += [
                    {
                        "correlation": rho, "effect in sd of a run": effect, "pilot seeds": seeds,
                        "design": kind, "promised": float(np.mean([p for p, _ in found])),
                        "power": float(np.mean([true for _, true in found])),
                    }
                    for kind, found in got.items()
                ]  # fmt: skip
                print(rows[-2:], flush=True)
    return rows


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def tables(found: dict[str, Any]) -> str:
    """Return the simulated figures as docs/statistics.md shows them."""
    text = ["\n### False findings\n\nPercent of studies without any difference that call a module better or "
            "worse at any look, the worst of 1, 2, 4 and 7 modules:\n\n"]  # fmt: skip
    designs = [key for key in found["false_findings"][0] if key not in ("accuracies", "modules")]
    text.append(
        markdown(
            ["accuracies", *designs],
            [
                [cell, *(percent(max(r[d] for r in rows)) for d in designs)]
                for cell, rows in by(found["false_findings"], "accuracies").items()
            ],
        )
    )
    text.append(
        '\n### False "equivalent"\n\nPercent of studies that call a module equivalent at any look, though it '
        "differs by exactly the margin, --seeds auto:\n\n"
    )
    margins = sorted({r["margin in sd of a run"] for r in found["false_equivalence"]})
    text.append(
        markdown(
            ["accuracies", *(f"margin of {m:g} sd of a run" for m in margins)],
            [
                [cell, *(percent(r["auto, 12 at most, extended to 20"]) for r in rows)]
                for cell, rows in by(found["false_equivalence"], "accuracies").items()
            ],
        )
    )
    seeds = [str(n) for n in range(3, MOST + 1)]
    text.append(
        "\n### Coverage\n\nPercent of studies of a fixed number of seeds whose 95 % interval holds the "
        "true difference; of 7 modules, all seven intervals:\n\n"
    )
    shown = ["3", "4", "5", "6", "8", "12", "20"]
    text.append(
        markdown(
            ["accuracies", *(f"{n} seeds" for n in shown), "4 to 20 seeds", "7 modules, 4 to 20"],
            [
                [
                    cell,
                    *(percent(rows[0][n]) for n in shown),
                    *(
                        " to ".join(percent(end(row[n] for n in seeds[1:])) for end in (min, max))
                        for row in (rows[0], rows[-1])
                    ),
                ]
                for cell, rows in by(found["coverage"], "accuracies").items()
            ],
        )
    )
    text.append(
        "\n### What stopping saves\n\nSeeds of --seeds auto beside the fixed number of equal power, and "
        "how often the last interval holds the true difference:\n\n"
    )
    text.append(
        markdown(
            ["--max-seeds", "correlation", "effect, paired sd", "power", "seeds, mean",
             "fixed seeds of equal power", "saved", "covered"],
            [
                [
                    str(r["max seeds"]), f"{r['correlation']:g}", f"{r['effect in paired sd']:g}",
                    f"{percent(r['power'])} %", f"{r['seeds']:.1f}",
                    "" if (equal := r["fixed seeds of equal power"]) is None else f"{equal:.1f}",
                    "" if r["saved"] is None else f"{100 * r['saved']:.0f} %", f"{percent(r['covered'])} %",
                ]
                for r in sorted(found["saved"], key=lambda r: (r["max seeds"], r["correlation"]))
                if r["correlation"] in (0.0, 0.6) and r["effect in paired sd"] in (0.0, 1.0, 1.5, 2.0)
            ],
        )
    )  # fmt: skip
    text.append(
        "\n### Power beside the paired and the unpaired test\n\nPoints of power below the better of the "
        "two, where that has 80 %; negative: above it:\n\n"
    )
    correlations = sorted({r["correlation"] for r in found["pairing"]})
    text.append(
        markdown(
            ["seeds", *(f"correlation {rho:g}" for rho in correlations)],
            [
                [str(n), *(f"{100 * r['loss']:.1f}".replace("-", "\N{MINUS SIGN}") for r in rows)]
                for n, rows in by(found["pairing"], "seeds").items()
            ],
        )
    )
    if "promises" in found:
        text.append(
            "\n### What `ecanet plan` promises\n\nPower that it gives for the first number "
            "of seeds to reach 80 %, and the true one of studies with these seeds:\n\n"
        )
        text.append(
            markdown(
                ["planned from", "design", "correlation", "effect, sd of a run", "promised", "power"],
                [
                    [
                        f"a pilot of {pilot} seeds" if (pilot := r["pilot seeds"]) else "the true spread",
                        r["design"], f"{r['correlation']:g}", f"{r['effect in sd of a run']:g}",
                        f"{percent(r['promised'])} %", f"{percent(r['power'])} %",
                    ]
                    for r in found["promises"]
                ],
            )
        )  # fmt: skip
    return "".join(text)


def by(rows: list[dict[str, Any]], key: str) -> dict[Any, list[dict[str, Any]]]:
    """Return rows by the value of a column."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


PARTS: dict[str, Callable[[np.random.Generator, int], list[dict[str, Any]]]] = {
    "false_findings": false_findings,
    "false_equivalence": false_equivalence,
    "coverage": coverage,
    "saved": saved,
    "pairing": pairing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=10_000, help="simulated for each cell")
    parser.add_argument("--pilots", type=int, default=60, help="simulated for the plan's promise")
    parser.add_argument("--parts", nargs="*", default=[*PARTS, "promises"])
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--docs", type=Path, help="write the tables into this file, at its marks")
    flags = parser.parse_args()
    file = flags.out / "statistics.json"
    found = (read_json(file) or {}) if file.exists() else {}
    found["studies"], found["pilots"] = flags.studies, flags.pilots
    for name in flags.parts:
        g = np.random.default_rng(sum(map(ord, name)))
        found[name] = (
            promises(g, flags.pilots) if name == "promises" else PARTS[name](g, flags.studies)
        )
        write_json(file, found)
    if flags.docs:
        start, rest = flags.docs.read_text().split("<!-- simulated -->")
        _, end = rest.split("<!-- /simulated -->")
        marked = f"<!-- simulated -->\n{tables(found)}\n<!-- /simulated -->"
        write_atomic(flags.docs, start + marked + end)


if __name__ == "__main__":
    main()
