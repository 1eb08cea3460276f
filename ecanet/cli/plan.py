"""``ecanet plan``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import console, result, say, show
from ecanet.config import Checked
from ecanet.errors import UserError, counted, duration
from ecanet.inputs import check_study

if TYPE_CHECKING:
    from ecanet.experiments.analysis.plan import PlanRow, Spread

_SHOWN = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of seeds that are printed, of the more that are computed."""


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
    from ecanet.experiments.analysis.plan import (
        Spread,
        needed,
        plan_rows,
        smallest_found,
        spread_of,
    )

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
    amount, chance = metric.amount(detect), f"{100 * flags.power:.3g} %"
    say(
        f"planned for a true difference of {amount}, the smallest that matters (--detect)"
        + (
            "; the differences that the pilot found play no part, while its report's seeds that \"would "
            'probably decide" go by them'
            if flags.pilot
            else ""
        )
    )
    level = confidence or 0.95
    rows = plan_rows(spread, detect, comparisons=modules, confidence=level)
    fixed, auto = needed(rows, flags.power)
    _print(rows, [row for row in (fixed, auto) if row], flags, modules, spread, amount)
    larger = None
    if auto is not None and auto.auto_seeds is not None:
        alone = f"; --seeds {fixed.seeds} would do without stopping early" if fixed else ""
        say(
            f"to find {amount} in {chance} of studies: --seeds auto --max-seeds "
            f"{auto.seeds}, which trains {auto.auto_seeds:.1f} seeds on average{alone}"
        )
    elif fixed is not None:
        say(
            f"to find {amount} in {chance} of studies: --seeds {fixed.seeds}; --seeds auto, which looks more "
            f"than once, needs more than {rows[-1].seeds}"
        )
    else:
        most = rows[-1].seeds
        larger = smallest_found(
            spread, detect, flags.power, most, comparisons=modules, confidence=level
        )
        next_step = ""
        if larger is not None:
            found = f"--detect {metric.scale * larger:g} is found with --max-seeds {most}"
            next_step = f"plan for a larger difference ({found}), or "
        say(
            f"no number of seeds up to {most} finds {amount} in {chance} of studies: {next_step}make the "
            "runs vary less, by more test images or more epochs, and plan from a new pilot"
        )
    if flags.out:
        from ecanet.experiments.report.plan import draw_power

        draw_power(rows, flags.power, amount, Path(flags.out))
        show(flags.out)
    result(
        {
            "metric": metric.key, "sd": spread.sd, "correlation": spread.correlation, "detect": detect,
            "seeds": fixed.seeds if fixed else None, "max_seeds": auto.seeds if auto else None,
            "larger_detect": larger,
            "rows": [asdict(row) for row in rows],
        }
    )  # fmt: skip
    return 0


def _print(
    rows: Sequence[PlanRow],
    wanted: Sequence[PlanRow],
    flags: PlanSettings,
    modules: int,
    spread: Spread,
    effect: str,
) -> None:
    """Print what the rows say, in 80 columns: some of them, those that are ``wanted`` among them."""
    from rich.table import Table

    heads = ["seeds", "fixed", "auto", "trains", "if equal"]
    legend = [
        f"fixed: studies that find {effect} with --seeds N",
        "auto: the same with --seeds auto --max-seeds N",
        "trains: seeds that auto trains on average",
        'if equal: studies with auto that find "equivalent" where nothing differs',
    ]
    seconds = None if spread.seconds is None else (modules + 1) * spread.seconds
    if seconds is not None:
        heads += ["time", "auto's time"]
        heads += ["kWh"] * (flags.watts is not None)
        heads += ["price"] * (flags.price is not None)
        most_of = ", ".join(["time", *heads[7:]])
        legend.append(f"{most_of}: with all N seeds; auto's time: on average")
    table = Table(*heads, box=None, pad_edge=False)
    shown = [
        row for row in rows if len(rows) <= len(_SHOWN) or row.seeds in _SHOWN or row in wanted
    ]
    for row in shown:
        cells = [
            str(row.seeds),
            _rounded_down(row.fixed_power),
            "" if row.auto_power is None else _rounded_down(row.auto_power),
            "" if row.auto_seeds is None else f"{row.auto_seeds:.1f}",
            "" if row.equivalent is None else f"{100 * row.equivalent:.0f} %",
        ]
        if seconds is not None:
            most = seconds * row.seeds
            cells += [duration(most / flags.jobs)]
            cells += [
                "" if row.auto_seeds is None else duration(seconds * row.auto_seeds / flags.jobs)
            ]
            cells += [] if flags.watts is None else [f"{most / 3600 * flags.watts / 1000:.3g}"]
            cells += [] if flags.price is None else [f"{most / 3600 * flags.price:.2f}"]
        table.add_row(*cells)
    screen = console()
    screen.print(f"{counted(modules, 'module')} and the baseline, seeds of each")
    screen.print(table)
    for line in legend:
        screen.print(line)


def _rounded_down(power: float) -> str:
    """Return a power in percent: the wanted one is reached where the table says so."""
    # 100 * 0.29 is 28.999...
    return f"{math.floor(100 * power + 1e-9)} %"
