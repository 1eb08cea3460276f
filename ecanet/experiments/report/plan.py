"""The curve of a plan: power over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecanet.errors import UserError
from ecanet.experiments.analysis.plan import PlanRow
from ecanet.experiments.report.image import content_of, own_style
from ecanet.files import write_atomic


def draw_power(rows: Sequence[PlanRow], wanted: float, effect: str, out: Path) -> None:
    """Draw the power of fixed and of sequential designs over their seeds.

    Args:
        rows: the plan.
        wanted: power that is marked, 0..1.
        effect: the difference to find, with its unit.
        out: a file whose name ends in .png, .svg or .pdf.

    Raises:
        UserError: it cannot be written.
    """
    from matplotlib.figure import Figure

    format: Any = out.suffix[1:]
    with own_style():
        figure = Figure((6.4, 4), layout="constrained")
        axes = figure.subplots()
        auto = [row for row in rows if row.auto_power is not None and row.auto_seeds is not None]
        axes.plot(
            [r.seeds for r in rows], [100 * r.fixed_power for r in rows], "o-", label="--seeds N"
        )
        axes.plot(
            [r.auto_seeds or 0.0 for r in auto], [100 * (r.auto_power or 0.0) for r in auto], "s-",
            label="--seeds auto, at its mean number of seeds",
        )  # fmt: skip
        axes.axhline(100 * wanted, color="#808894", linewidth=1, linestyle=":")
        axes.set(
            xlabel="Seeds per module", ylabel="Power (%)", ylim=(0, 102), xscale="log",
            title=f"Probability of finding a difference of {effect}",
        )  # fmt: skip
        axes.set_xticks([r.seeds for r in rows], [str(r.seeds) for r in rows], minor=False)
        axes.minorticks_off()
        axes.legend(frameon=False)
        content = content_of(figure, format)
    try:
        write_atomic(out, content)
    except OSError as error:
        raise UserError(
            f"cannot write {out} ({error.strerror or error}): choose another --out"
        ) from None
