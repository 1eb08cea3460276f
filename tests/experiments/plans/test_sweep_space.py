"""Every distribution of W&B's format, against its definition in W&B's documentation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from scipy import stats

from ecanet.errors import UserError
from ecanet.experiments.plans.sweep_space import KINDS, Parameter, on_grid, parameter

DRAWS = 400


def read(**config: Any) -> Parameter:
    return parameter("x", "optimizer.lr", config, lambda value: value)


def drawn(**config: Any) -> list[Any]:
    """Values of a random sweep."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = read(**config)
    return [found.suggest(study.ask()) for _ in range(DRAWS)]


def uniform(low: float, high: float) -> Any:
    return stats.uniform(low, high - low).cdf


def log_uniform(low: float, high: float) -> Any:
    return stats.loguniform(low, high).cdf


# The distribution, and the cumulative distribution function of what it is to draw.
CONTINUOUS = [
    ({"min": 0.5, "max": 2.5}, uniform(0.5, 2.5)),
    ({"min": 1, "max": 3, "distribution": "uniform"}, uniform(1, 3)),
    ({"min": -3, "max": 1, "distribution": "log_uniform"}, log_uniform(math.exp(-3), math.e)),
    ({"min": 0.01, "max": 10, "distribution": "log_uniform_values"}, log_uniform(0.01, 10)),
    # 1 / x is log-uniform from e to e^4, so that x is from e^-4 to 1 / e.
    (
        {"min": 1, "max": 4, "distribution": "inv_log_uniform"},
        log_uniform(math.exp(-4), math.exp(-1)),
    ),
    ({"min": 0.1, "max": 5, "distribution": "inv_log_uniform_values"}, log_uniform(0.1, 5)),
    ({"distribution": "normal"}, stats.norm(0, 1).cdf),
    ({"distribution": "normal", "mu": 2, "sigma": 0.5}, stats.norm(2, 0.5).cdf),
    ({"distribution": "log_normal", "mu": 1, "sigma": 0.3}, stats.lognorm(0.3, scale=math.e).cdf),
    ({"distribution": "beta", "a": 2, "b": 5}, stats.beta(2, 5).cdf),
    ({"distribution": "beta"}, uniform(0, 1)),
]


@pytest.mark.parametrize(("config", "cdf"), CONTINUOUS)
def test_values_are_drawn_as_defined(config: dict[str, Any], cdf: Any) -> None:
    assert stats.kstest(drawn(**config), cdf).pvalue > 0.01


QUANTISED = [
    ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}, uniform(0, 1)),
    ({"distribution": "q_uniform", "min": 1, "max": 9}, uniform(1, 9)),
    ({"distribution": "q_log_uniform", "min": 0, "max": 4, "q": 2}, log_uniform(1, math.exp(4))),
    (
        {"distribution": "q_log_uniform_values", "min": 16, "max": 256, "q": 16},
        log_uniform(16, 256),
    ),
    ({"distribution": "q_normal", "mu": 10, "sigma": 3, "q": 2}, stats.norm(10, 3).cdf),
    (
        {"distribution": "q_log_normal", "mu": 2, "sigma": 0.5},
        stats.lognorm(0.5, scale=math.exp(2)).cdf,
    ),
    ({"distribution": "q_beta", "a": 2, "b": 2, "q": 0.1}, stats.beta(2, 2).cdf),
]


@pytest.mark.parametrize(("config", "base"), QUANTISED)
def test_quantised_values_are_round_x_over_q_times_q(config: dict[str, Any], base: Any) -> None:
    values, q = drawn(**config), config.get("q", 1.0)
    assert all(isinstance(v, int) == isinstance(q, int) for v in values)
    steps = np.round(np.array(values) / q)
    assert np.allclose(steps * q, values, atol=1e-9)
    # Each step has the mass of what rounds to it.
    for step, count in zip(*np.unique(steps, return_counts=True), strict=True):
        share = base((step + 0.5) * q) - base((step - 0.5) * q)
        assert abs(count / DRAWS - share) < 4.5 * math.sqrt(share * (1 - share) / DRAWS) + 1e-9


def test_whole_numbers_and_lists() -> None:
    values = drawn(min=2, max=5)
    assert set(values) == {2, 3, 4, 5}
    assert all(type(v) is int for v in values)
    assert set(drawn(values=[1, "a", None])) == {1, "a", None}
    assert drawn(value=7) == [7] * DRAWS
    assert set(map(tuple, drawn(values=[[3, 5], [7]]))) == {(3, 5), (7,)}


def test_probabilities() -> None:
    values = drawn(values=["a", "b", "c"], probabilities=[0.7, 0.3, 0.0])
    assert abs(values.count("a") / DRAWS - 0.7) < 0.1
    assert values.count("c") == 0
    named = drawn(values=["a", "b"], probabilities=[0.1, 0.9], distribution="categorical")
    assert named.count("b") > named.count("a")


def test_every_kind_is_tried_above() -> None:
    tried = {config.get("distribution", "") for config, _ in CONTINUOUS + QUANTISED}
    listed = {"constant", "categorical", "categorical_w_probabilities", "int_uniform"}
    assert set(KINDS) <= tried | listed


def test_grids() -> None:
    assert on_grid(read(values=[3, 1, 2])).bounds == [3, 1, 2]
    assert on_grid(read(min=1, max=4)).bounds == [1, 2, 3, 4]
    # W&B's grid over q_uniform leaves max out.
    steps = on_grid(read(distribution="q_uniform", min=0, max=0.4, q=0.1))
    assert steps.bounds == [0, 0.1, 0.2, 0.3]
    for config in ({"min": 0.1, "max": 1.0}, {"distribution": "normal"}):
        with pytest.raises(UserError, match="method grid needs values"):
            on_grid(read(**config))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"distribution": "log_unifrom_values", "min": 1, "max": 2}, "log_uniform_values"),
        ({"min": 2, "max": 1}, "min 2 is not below max 1"),
        ({"min": 1, "max": 1}, "min 1 is not below max 1"),
        ({"min": 1}, "needs max"),
        ({"min": 0.5, "max": 2, "distribution": "int_uniform"}, "whole numbers"),
        ({"min": 0, "max": 2, "distribution": "log_uniform_values"}, "above 0"),
        ({"min": 1, "max": 1e9, "distribution": "log_uniform"}, "log_uniform_values?"),
        ({"min": "low", "max": 2.0}, "min must be a number"),
        ({"values": []}, "a list of at least one"),
        ({"values": 3}, "a list of at least one"),
        ({"values": [1, 1]}, "twice"),
        ({"values": [1, 2], "probabilities": [1.0]}, "a probability for each of its 2"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "add up to 1"),
        ({"distribution": "normal", "sigma": 0}, "sigma 0 must be above 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": -1}, "q -1 must be above 0"),
        ({"distribution": "normal", "mean": 0}, "takes no mean"),
        ({"q": 3}, "give value, values, min and max"),
    ],
)
def test_what_cannot_be_is_one_line(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        read(**config)
    assert says in str(error.value)
    assert str(error.value).startswith("parameter x: ")
    assert "\n" not in str(error.value)
