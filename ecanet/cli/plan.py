"""``ecanet plan``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import console, result, say, show
from ecanet.config import Checked
from ecanet.errors import UserError, counted
from ecanet.inputs import check_study

if TYPE_CHECKING:
    from ecanet.experiments.analysis.plan import PlanRow, Spread


@dataclass
class PlanSettings(Checked):
    """What the estimate is based on."""

    pilot: str | None = None
    """Folder of a study, finished or with two or three seeds so far, from which the spread of the runs and
    their time are estimated."""
    sd: float | None = None
    """Standard deviation of the runs of one module in percentage points, if there is no pilot."""
    correlation: float | None = None
    """Correlation between runs with the same seed, 0 to 0.95. By default the pilot's, otherwise 0."""
    detect: float | None = None
    """Difference to find, in percentage points, or in nats for log loss. By default the pilot's, otherwise
    0.5."""
    power: float = 0.8
    """Probability with which that difference should be found."""
    modules: int | None = None
    """Number of modules besides the baseline. By default as in the pilot, otherwise 1."""
    confidence: float | None = None
    """Probability that all intervals of the study hold at once. By default the pilot's, otherwise 0.95."""
    seconds: float | None = None
    """Seconds that one run takes; by default as in the pilot."""
    jobs: int = 1
    """Number of runs that train at the same time."""
    watts: float | None = None
    """Power in watts that one run draws, to compute the energy."""
    price: float | None = None
    """Price of one hour of a run, in any currency."""
    storage: str | None = None
    """Database of the pilot, postgresql://…, if its folder does not name it."""
    out: str | None = None
    """File for a plot of power over the number of seeds: .png, .svg or .pdf."""


def parser() -> SettingsParser:
    """Return the command's parser."""
    return SettingsParser(
        "ecanet plan",
        "Estimate how many seeds a comparison needs to find a difference, and the hours, energy and price "
        "they take, from a pilot of two or three seeds, a finished study, or a given spread of the runs.",
        PlanSettings,
        positional="pilot",
    )


def run(arguments: list[str]) -> int:
    """Print how many seeds a comparison needs, and what they take."""
    flags = pick(PlanSettings, parser().parse(arguments))
    if (flags.pilot is None) == (flags.sd is None):
        raise UserError("give the folder of a pilot, or --sd with the spread of its runs in points")
    if flags.out and not Path(flags.out).absolute().parent.is_dir():
        raise UserError(f"--out {flags.out}: its folder does not exist")
    if flags.out and Path(flags.out).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {flags.out}: give a name that ends in .png, .svg or .pdf")

    check_study(flags.pilot, flags.storage)

    from ecanet.experiments.analysis.compare import ACCURACY, summarise
    from ecanet.experiments.analysis.plan import Spread, needed, plan_rows, spread_of

    metric, detect, modules, confidence = ACCURACY, flags.detect, flags.modules, flags.confidence
    if flags.pilot is not None:
        from ecanet.experiments.study.cells import has_cells
        from ecanet.experiments.study.location import locate
        from ecanet.experiments.study.study import load_study

        if has_cells(flags.pilot):
            raise UserError(
                f"{flags.pilot} is a comparison over several networks and data sets: give one of its folders"
            )
        study = load_study(locate(flags.pilot, flags.storage), "read")
        if study.plan().kind != "compare":
            raise UserError(f"{flags.pilot} is a sweep: a comparison is planned from a comparison")
        summary = summarise(study)
        metric, spread = summary.metric, spread_of(summary)
        detect = summary.margin if detect is None else detect / metric.scale
        modules = modules or max(len(summary.attention) - 1, 1)
        if confidence is None and summary.design:
            confidence = summary.design.confidence
    else:
        assert flags.sd is not None
        spread = Spread(flags.sd / metric.scale, 0.0)
        detect = (0.5 if detect is None else detect) / metric.scale
    if flags.correlation is not None:
        spread = replace(spread, correlation=flags.correlation, seeds=None)
    if flags.seconds is not None:
        spread = replace(spread, seconds=flags.seconds)
    modules = modules or 1
    known = f"estimated from {spread.df:.0f} degrees of freedom" if flags.pilot else "as given"
    say(
        f"standard deviation of a module's runs: {metric.amount(spread.sd)} ({known}); correlation between "
        f"runs of one seed: {spread.correlation:.2f}"
    )
    rows = plan_rows(spread, detect, comparisons=modules, confidence=confidence or 0.95)
    console().print(_table(rows, flags, modules, spread))
    fixed, auto = needed(rows, flags.power)
    chance = f"{100 * flags.power:.3g} %"
    if auto is None or auto.auto_seeds is None:
        say(
            f"no number of seeds up to {rows[-1].seeds} finds {metric.amount(detect)} in {chance} of studies"
        )
    else:
        alone = f"; --seeds {fixed.seeds} would do without stopping early" if fixed else ""
        say(
            f"to find {metric.amount(detect)} in {chance} of studies: --seeds auto --max-seeds "
            f"{auto.seeds}, which trains {auto.auto_seeds:.1f} seeds on average{alone}"
        )
    if flags.out:
        from ecanet.experiments.report.plan import draw_power

        draw_power(rows, flags.power, metric.amount(detect), Path(flags.out))
        show(flags.out)
    result(
        {
            "metric": metric.key, "sd": spread.sd, "correlation": spread.correlation, "detect": detect,
            "seeds": fixed.seeds if fixed else None, "max_seeds": auto.seeds if auto else None,
            "rows": [asdict(row) for row in rows],
        }
    )  # fmt: skip
    return 0


def _table(rows: list[PlanRow], flags: PlanSettings, modules: int, spread: Spread) -> object:
    from rich.table import Table

    heads = ["seeds", "power, fixed", "power, auto", "seeds of auto, mean", '"equivalent" if equal']
    hours = None if spread.seconds is None else (modules + 1) * spread.seconds / 3600
    if hours is not None:
        heads += ["hours at most", "hours of auto, mean"]
        heads += ["kWh at most"] * (flags.watts is not None)
        heads += ["price at most"] * (flags.price is not None)
    table = Table(
        *heads, box=None, pad_edge=False, title=f"{counted(modules, 'module')} and the baseline"
    )
    for row in rows:
        cells = [
            str(row.seeds),
            _rounded_down(row.fixed_power),
            "" if row.auto_power is None else _rounded_down(row.auto_power),
            "" if row.auto_seeds is None else f"{row.auto_seeds:.1f}",
            "" if row.equivalent is None else f"{100 * row.equivalent:.0f} %",
        ]
        if hours is not None:
            most = hours * row.seeds
            cells += [f"{most / flags.jobs:.3g}"]
            cells += [
                "" if row.auto_seeds is None else f"{hours * row.auto_seeds / flags.jobs:.3g}"
            ]
            cells += [] if flags.watts is None else [f"{most * flags.watts / 1000:.3g}"]
            cells += [] if flags.price is None else [f"{most * flags.price:.2f}"]
        table.add_row(*cells)
    return table


def _rounded_down(power: float) -> str:
    """Return a power in percent: the wanted one is reached where the table says so."""
    # 100 * 0.29 is 28.999...
    return f"{math.floor(100 * power + 1e-9)} %"
