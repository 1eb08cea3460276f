"""Which runs a comparison adds as its results come in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from ecanet.config import ClassificationSettings
from ecanet.errors import UserError
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.study.plan import plan_from_dict
from ecanet.experiments.study.queue import CANCELLED
from ecanet.training.train import task_of


def make_plan(attention: list[str], most: int = 12, **values: Any) -> ComparePlan:
    settings = ClassificationSettings(data="digits", model="resnet20")
    settings = task_of(settings).resolve(settings, task_of(settings).read(settings))
    return ComparePlan(
        settings=settings,
        data_fingerprint="0",
        skipped_images=[],
        plugin=[],
        attention=attention,
        seeds=[0, 1, 2, 3],
        more_seeds=list(range(4, most)),
        planned_seeds=most,
        sequential=True,
        **values,
    )


def trial(attention: str, seed: int, value: float | None, state: Any = None) -> Any:
    record = {} if value is None else {"record": {"final": {"test_accuracy": value}}}
    if state is None:
        state = TrialState.COMPLETE
    names = {"run": f"{attention}-seed{seed}", "attention": attention, "seed": seed}
    return SimpleNamespace(user_attrs={**names, **record}, state=state)


def results(**modules: list[float]) -> list[Any]:
    return [
        trial(name, seed, v) for name, values in modules.items() for seed, v in enumerate(values)
    ]


def wanted(plan: ComparePlan, trials: list[Any]) -> set[tuple[str, int]]:
    runs = plan.more(lambda: trials)
    return {(run.attributes["attention"], run.attributes["seed"]) for run in runs}


BASE = [0.900, 0.904, 0.898, 0.902]


def test_modules_without_an_answer_get_the_next_seed_with_the_baseline() -> None:
    plan = make_plan(["none", "se", "eca"])
    clear = [v + 0.08 + 0.0005 * i for i, v in enumerate(BASE)]
    vague = [0.906, 0.903, 0.907, 0.901]
    assert wanted(plan, results(none=BASE, se=clear, eca=vague)) == {("none", 4), ("eca", 4)}


def test_a_study_with_all_answers_ends() -> None:
    plan = make_plan(["none", "eca"])
    clear = [v + 0.08 + 0.0005 * i for i, v in enumerate(BASE)]
    assert wanted(plan, results(none=BASE, eca=clear)) == set()


def test_a_study_without_a_chance_of_an_answer_ends() -> None:
    noise = np.array([0.02, -0.02, 0.018, -0.018, 0.01, -0.01, 0.0, 0.001])
    plan = make_plan(["none", "eca"], margin=0.0001)
    hopeless = results(none=list(0.9 + noise), eca=list(0.9 - noise[::-1]))
    assert wanted(plan, hopeless) == set()
    # Equivalence within what such noise allows is in reach.
    assert wanted(make_plan(["none", "eca"], margin=0.02), hopeless) == {("none", 8), ("eca", 8)}


def test_the_last_planned_seed_is_the_last() -> None:
    plan = make_plan(["none", "eca"], most=5)
    trials = results(none=[*BASE, 0.901], eca=[0.906, 0.903, 0.907, 0.901, 0.902])
    assert wanted(plan, trials) == set()


def test_runs_in_progress_are_waited_for_if_they_will_probably_do() -> None:
    plan = make_plan(["none", "eca"], margin=0.005)
    near = [v + d for v, d in zip(BASE, [0.006, 0.009, 0.007, 0.009], strict=True)]
    finished = results(none=BASE, eca=near)
    running = [trial(name, 4, None, TrialState.RUNNING) for name in ("none", "eca")]
    assert wanted(plan, finished) == {("none", 4), ("eca", 4)}
    assert wanted(plan, finished + running) == set()
    vague = results(none=BASE, eca=[0.906, 0.897, 0.907, 0.901])
    assert wanted(plan, vague + running) == {("none", 5), ("eca", 5)}


def test_a_pilot_in_progress_is_waited_for_and_failed_runs_are_replaced() -> None:
    plan = make_plan(["none", "eca"])
    running = [trial("none", s, None, TrialState.RUNNING) for s in range(4)]
    assert wanted(plan, running) == set()
    failed = [trial(name, s, None, TrialState.FAIL) for name in ("none", "eca") for s in range(2)]
    there = [trial(name, s, 0.9 + s / 100) for name in ("none", "eca") for s in (2, 3)]
    assert wanted(plan, failed + there) == {("none", 4), ("eca", 4)}


def test_what_always_fails_is_not_tried_for_ever() -> None:
    plan = make_plan(["none", "eca", "se"])
    failed = [trial("eca", s, None, TrialState.FAIL) for s in range(4)]
    vague = results(none=BASE, se=[0.906, 0.897, 0.907, 0.901])
    assert wanted(plan, results(none=BASE) + failed) == set()
    assert wanted(plan, vague + failed) == {("none", 4), ("se", 4)}


def test_a_cancelled_study_adds_nothing_until_it_is_retried() -> None:
    plan = make_plan(["none", "eca"])
    finished = results(none=BASE, eca=[0.906, 0.897, 0.907, 0.901])
    cancelled = trial("eca", 4, None, TrialState.FAIL)
    cancelled.user_attrs["error"] = CANCELLED
    assert wanted(plan, [*finished, cancelled]) == set()
    retried = trial("eca", 4, 0.903)
    assert wanted(plan, [*finished, cancelled, retried]) == {("none", 4)}


def test_a_fixed_study_reads_nothing_and_adds_nothing() -> None:
    plan = make_plan(["none", "eca"], most=4)

    def refuse() -> Any:
        raise AssertionError

    assert plan.more(refuse) == []


def test_a_larger_maximum_extends_the_seeds_but_not_the_design() -> None:
    plan, larger = make_plan(["none", "eca"], most=8), make_plan(["none", "eca"], most=16)
    extended = plan.extended(larger)
    assert extended.more_seeds == list(range(4, 16))
    assert extended.design() == plan.design()
    fixed = make_plan(["none", "eca"], most=4)
    fixed.seeds, fixed.sequential = list(range(10)), False
    forced = plan.extended(fixed)
    assert (forced.seeds, forced.more_seeds) == (list(range(10)), [])
    assert forced.design().sequential
    assert plan_from_dict(forced.to_dict()) == forced


def test_a_pilot_too_small_to_be_judged_takes_the_design_of_its_extension() -> None:
    pilot, wanted_ = make_plan(["none", "eca"]), make_plan(["none", "eca"], most=10)
    pilot.seeds, pilot.more_seeds, pilot.planned_seeds, pilot.sequential = [0, 1], [], 2, False
    assert pilot.extended(wanted_).design() == wanted_.design()
    pilot.seeds, pilot.planned_seeds = [0, 1, 2], 3
    assert pilot.extended(wanted_).design() == pilot.design(), "that look was taken"


def test_values_that_are_not_finite_enter_no_decision() -> None:
    plan = make_plan(["none", "eca"])
    clear = [v + 0.08 + 0.0005 * i for i, v in enumerate(BASE)]
    trials = results(none=[*BASE, 0.9], eca=[*clear, float("inf")])
    assert wanted(plan, trials) == set()


def test_identical_runs_are_equivalent_only_where_their_resolution_is_known() -> None:
    alike = results(none=[0.9] * 4, eca=[0.9] * 4)
    assert wanted(make_plan(["none", "eca"]), alike) == {("none", 4), ("eca", 4)}
    assert wanted(make_plan(["none", "eca"], resolution=1e-4), alike) == set()


@pytest.mark.parametrize("values", [{"confidence": 1.0}, {"margin": 0.0}, {"resolution": -1.0}])
def test_a_plan_from_elsewhere_is_checked(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match="out of range"):
        make_plan(["none", "eca"], **values).check()
