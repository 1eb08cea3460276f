"""``ecanet plan``, from a given spread and from a pilot."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Refuse, Run
from helpers.synthetic import make_accuracies, make_summary

from ecanet.errors import UserError
from ecanet.experiments.analysis.plan import Spread, needed, plan_rows, smallest_found, spread_of
from ecanet.statistics.design import Design
from ecanet.statistics.power import power


@pytest.mark.slow
def test_a_given_spread_gives_seeds_hours_energy_and_price(run: Run, tmp_path: Path) -> None:
    curve = tmp_path / "power.svg"
    flags = [
        "--sd",
        "0.3",
        "--seconds",
        "3600",
        "--watts",
        "500",
        "--price",
        "2",
        "--out",
        str(curve),
    ]
    code, out, err = run("plan", *flags)
    assert code == 0
    (row,) = (line.split() for line in out.splitlines() if line.split()[:1] == ["8"])
    # Two modules, eight seeds, an hour each, half a kilowatt, two of a currency.
    assert row[-6:-4] == ["16.0", "h"]
    assert row[-2:] == ["8", "32.00"]
    assert "to find 0.50 points in 80 % of studies: --seeds auto --max-seeds" in err
    assert "planned for a true difference of 0.50 points, the smallest that matters" in err
    *table, written = out.splitlines()
    assert written == str(curve)
    assert max(map(len, table)) <= 80
    assert curve.read_text().lstrip().startswith("<?xml")


@pytest.mark.slow
def test_what_no_number_of_seeds_finds_gets_a_next_step(run: Run) -> None:
    code, out, err = run("plan", "--sd", "3", "--seconds", "20")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    seeds = [
        int(line.split()[0]) for line in out.splitlines() if line[0].isdigit() and " %" in line
    ]
    assert seeds == [3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert re.search(r"^3 +.* 2 min", out, re.M), "3 seeds of 2 modules, 20 s each"
    (line,) = (line for line in err.splitlines() if line.startswith("no number of seeds up to 64"))
    assert "more test images or more epochs" in line
    (larger,) = re.findall(r"\(--detect (\S+) is found with --max-seeds 64\)", line)
    design, effect = Design(64), float(larger)
    assert power(design, effect, sd=3.0, margin=effect, studies=4000, seed=5).better > 0.78
    assert power(design, 0.6 * effect, sd=3.0, margin=0.6 * effect, studies=4000).better < 0.8


def test_the_difference_that_is_found_is_the_smallest_round_one() -> None:
    known = Spread(0.02, 0.0)
    found = smallest_found(known, 0.001, 0.8, 16, studies=1000)
    assert found in (0.02, 0.03)
    assert smallest_found(Spread(0.02, 0.0), found, 0.8, 16, studies=1000) > found
    assert smallest_found(Spread(1e6, 0.0), 0.001, 0.8, 16, studies=200) is None


def test_a_plan_needs_a_pilot_or_a_spread(refuse: Refuse, tmp_path: Path) -> None:
    refuse("--sd", "plan")
    refuse("--sd", "plan", "study", "--sd", "1")
    refuse("does not exist", "plan", "--sd", "1", "--out", tmp_path / "no" / "power.png")
    refuse(".png", "plan", "--sd", "1", "--out", "power.docx")
    refuse("--power 1.0", "plan", "--sd", "1", "--power", "1.0")
    refuse("nowhere", "plan", tmp_path / "nowhere")


def test_the_promised_power_is_that_of_the_named_design() -> None:
    rows = plan_rows(Spread(0.004, 0.3), 0.005, seeds=range(4, 13), studies=3000)
    fixed, auto = needed(rows, 0.8)
    for row, design in ((fixed, Design(fixed.seeds, False)), (auto, Design(auto.seeds))):
        true = power(design, 0.005, sd=0.004, correlation=0.3, margin=0.005, studies=6000, seed=9)
        promised = row.auto_power if design.sequential else row.fixed_power
        assert true.better == pytest.approx(promised, abs=0.03)
    assert auto.auto_seeds < fixed.seeds


def test_a_small_pilot_promises_less_than_a_known_spread() -> None:
    known, small = Spread(0.004, 0.3), Spread(0.004, 0.3, df=2)
    of_known, of_small = (plan_rows(s, 0.006, seeds=[8], studies=2000)[0] for s in (known, small))
    assert of_small.fixed_power < of_known.fixed_power - 0.05


def test_a_small_pilot_cannot_promise_that_seeds_correlate() -> None:
    """Its plan is for a mixture of correlations, a given one is taken as it is."""

    def drawn(correlation: float, seeds: int | None) -> np.ndarray:
        return Spread(1.0, correlation, df=4, seeds=seeds).draws(20_000)[1]

    assert set(drawn(0.9, None)) == {0.9}
    assert [np.mean(drawn(c, 3) == 0) > 0.5 for c in (-0.5, 0.0, 0.9)] == [True, True, False]
    assert drawn(0.9, 3).mean() < drawn(0.9, 8).mean() - 0.05 < drawn(0.9, 100).mean()
    assert drawn(0.9, 100).mean() == pytest.approx(0.9, abs=0.02)
    assert drawn(0.0, 1).mean() == pytest.approx(drawn(0.9, 1).mean(), abs=0.02), (
        "one seed shows nothing"
    )


def test_the_spread_of_a_study_is_estimated() -> None:
    accuracies = make_accuracies({"none": 0.0, "se": 0.01, "eca": -0.01}, 400, spread=0.003)
    found = spread_of(make_summary(accuracies, epochs=0))
    # Shared 0.003, own 0.0015.
    assert found.sd == pytest.approx((0.003**2 + 0.0015**2) ** 0.5, rel=0.05)
    assert found.correlation == pytest.approx(0.8, abs=0.03)
    assert found.seconds is not None
    with pytest.raises(UserError, match="two finished runs"):
        spread_of(make_summary({"none": [0.9], "eca": [0.9]}, epochs=0))
    with pytest.raises(UserError, match="no spread"):
        spread_of(make_summary({"none": [0.9] * 4, "eca": [0.9] * 4}, epochs=0))
