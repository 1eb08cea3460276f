"""The parameters of a sweep: every distribution of W&B's format as one that Optuna can suggest.

W&B defines a distribution by its inverse, applied to a uniform number, and rounds to ``q`` afterwards.
Where Optuna has the same distribution it is used as it is; elsewhere Optuna suggests the uniform number,
so that its samplers learn on the quantile, and the inverse is scipy's.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ecanet.errors import UserError, did_you_mean, prefixed

# The quantiles 0 and 1 of a normal distribution are infinite; these are six standard deviations out.
_QUANTILE = FloatDistribution(1e-9, 1 - 1e-9)
# Of one parameter: each run keeps them all in the study's database.
MOST_VALUES = 1000
# Whole numbers up to here are floats too, each one.
_MOST_WHOLE = 2**53
_CHOICE = (type(None), bool, int, float, str)


@dataclass
class Parameter:
    """One parameter of a sweep.

    Attributes:
        name: as the sweep file has it, nested names joined by dots.
        setting: what it sets: a dotted name of the settings, ``attention`` or ``seed``.
        kind: the distribution's name in W&B's format.
        distribution: what Optuna suggests from; None for a constant.
        value: turns what Optuna suggested into the parameter's value.
        grid: the values that a grid takes, None where W&B has no grid of the kind.
        bounds: examples of its values, the least and the greatest among them, to be checked.
    """

    name: str
    setting: str
    kind: str
    distribution: BaseDistribution | None
    value: Callable[[Any], Any]
    grid: list[Any] | None
    bounds: list[Any]

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value that Optuna suggests, or that the trial was enqueued with."""
        found = self.distribution
        if found is None:
            return self.bounds[0]
        if isinstance(found, CategoricalDistribution):
            return self.value(trial.suggest_categorical(self.name, found.choices))
        if isinstance(found, IntDistribution):
            return self.value(trial.suggest_int(self.name, found.low, found.high))
        assert isinstance(found, FloatDistribution)
        return self.value(trial.suggest_float(self.name, found.low, found.high, log=found.log))

    def suggested(self, value: Any) -> Any:
        """Return what Optuna would have suggested to give ``value`` of the grid."""
        return choice(value) if isinstance(self.distribution, CategoricalDistribution) else value


def format_values(values: dict[str, Any]) -> str:
    """Return values of parameters as text: ``att eca, optimizer adam``."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in values.items())


def format_value(value: Any) -> str:
    """Return a parameter's value as text: numbers with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def choice(value: Any) -> Any:
    """Return ``value`` as a choice that Optuna can store: what is no scalar as JSON."""
    return value if isinstance(value, _CHOICE) else json.dumps(value)


# A parameter without its names: distribution, value, grid and bounds.
_Found = tuple[BaseDistribution | None, Callable[[Any], Any], list[Any] | None, list[Any]]
# What each distribution takes beside its name; a default where W&B has one.
_NUMBER = object()
_RANGE: dict[str, Any] = {"min": _NUMBER, "max": _NUMBER}
_NORMAL: dict[str, Any] = {"mu": 0.0, "sigma": 1.0}
_QUANTIZABLE = {
    **dict.fromkeys(("uniform", "log_uniform", "log_uniform_values"), _RANGE),
    **dict.fromkeys(("normal", "log_normal"), _NORMAL),
    "beta": {"a": 1.0, "b": 1.0},
}
KINDS: dict[str, dict[str, Any]] = {
    "constant": {"value": _NUMBER},
    "categorical": {"values": _NUMBER},
    "categorical_w_probabilities": {"values": _NUMBER, "probabilities": _NUMBER},
    **dict.fromkeys(("int_uniform", "inv_log_uniform", "inv_log_uniform_values"), _RANGE),
    **_QUANTIZABLE,
    **{f"q_{kind}": {**takes, "q": 1.0} for kind, takes in _QUANTIZABLE.items()},
}


def parameter(
    name: str, setting: str, config: dict[str, Any], typed: Callable[[Any], Any]
) -> Parameter:
    """Read one entry of a sweep file's ``parameters``.

    Args:
        name: of the parameter.
        setting: what it sets.
        config: its entry: ``value``, ``values``, ``min``, ``max``, ``distribution``, ...
        typed: turns a value into the setting's type, or raises a UserError.

    Raises:
        UserError: the distribution is unknown, or what it needs is missing, of a wrong type or order.
    """
    with prefixed(f"parameter {name}: "):
        kind = _kind(config)
        takes = KINDS[kind]
        if unknown := [key for key in config if key not in {*takes, "distribution"}]:
            raise UserError(f"{kind} takes no {unknown[0]}.{did_you_mean(unknown[0], takes)}")
        if missing := [key for key in takes if takes[key] is _NUMBER and key not in config]:
            raise UserError(f"{kind} needs {' and '.join(missing)}")
        given = {**takes, **config}
        if kind == "constant":
            found: _Found = (None, _same, None, [typed(given["value"])])
        elif "values" in takes:
            found = _categorical(given, typed)
        else:
            found = _distributed(kind, {key: _number(key, given[key]) for key in takes}, typed)
    return Parameter(name, setting, kind, *found)


def _distributed(kind: str, numbers: dict[str, Any], typed: Callable[[Any], Any]) -> _Found:
    _check_numbers(kind, numbers)
    try:
        distribution, value = _numeric(kind, numbers)
        if kind == "int_uniform":
            low, high = numbers["min"], numbers["max"]
            grid = list(range(low, high + 1)) if high - low < MOST_VALUES else None
            bounds = [low, high]
        else:
            low, high = distribution.low, distribution.high
            if distribution is _QUANTILE:
                # What lies further out is rare, and fails alone.
                low, high = 0.01, 0.99
            # The third is a number within that is no round one: whole numbers alone must be able to take it.
            bounds = [value(v) for v in (low, high, low + (high - low) * 0.618034)]
            grid = _steps(numbers) if kind == "q_uniform" else None
        return (
            distribution,
            lambda suggested: typed(value(suggested)),
            [typed(v) for v in grid] if grid else None,
            [typed(v) for v in bounds],
        )
    # Logarithms and steps beyond what a float holds; Optuna's own check is a ValueError.
    except (OverflowError, ZeroDivisionError, ValueError):
        meant = f": did you mean {kind}_values?" if kind.endswith("log_uniform") else ""
        given = ", ".join(f"{key} {number:g}" for key, number in numbers.items())
        why = "takes the logarithms of its bounds, and " if meant else ""
        raise UserError(f"{kind} {why}cannot be drawn from with {given}{meant}") from None


def on_grid(found: Parameter) -> Parameter:
    """Return the parameter as a grid takes it: each of its values.

    Raises:
        UserError: it has no grid.
    """
    if found.distribution is None:
        return found
    if found.grid is None:
        raise UserError(
            f"parameter {found.name}: "
            + (
                f"a grid over it has more than {MOST_VALUES} values: take larger steps, or method random "
                "or bayes"
                if found.kind in ("int_uniform", "q_uniform")
                else "method grid needs values, whole numbers as min and max, or q_uniform, not "
                f"{found.kind}"
            )
        )
    return Parameter(found.name, found.setting, found.kind, *_choices(found.grid))


def _kind(config: dict[str, Any]) -> str:
    """Return the distribution: the one named, or the one that W&B takes for what is given."""
    kind = config.get("distribution")
    if kind is None:
        if "value" in config:
            return "constant"
        if "values" in config:
            return "categorical_w_probabilities" if "probabilities" in config else "categorical"
        if "min" in config or "max" in config:
            whole = all(_is_whole(config[key]) for key in ("min", "max") if key in config)
            return "int_uniform" if whole else "uniform"
        raise UserError("give value, values, min and max, distribution, or parameters")
    if kind not in KINDS:
        raise UserError(f"unknown distribution {kind!r}.{did_you_mean(str(kind), KINDS)}")
    if kind == "categorical" and "probabilities" in config:
        return "categorical_w_probabilities"
    return kind


def _categorical(given: dict[str, Any], typed: Callable[[Any], Any]) -> _Found:
    values, shares = given["values"], given.get("probabilities")
    if not isinstance(values, list) or not values:
        raise UserError("values must be a list of at least one")
    if len(values) > MOST_VALUES:
        raise UserError(
            f"it has {len(values)} values, and may have {MOST_VALUES}: give min and max"
        )
    values = [typed(value) for value in values]
    # Distinguished as Optuna does: 1, 1.0 and true are one.
    if len({choice(value) for value in values}) < len(values):
        raise UserError("values names one of them twice")
    if shares is None:
        return _choices(values)
    if not isinstance(shares, list) or len(shares) != len(values):
        raise UserError(f"give a probability for each of its {len(values)} values")
    shares = [_number("probabilities", share) for share in shares]
    if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError("probabilities must be from 0 and add up to 1")
    # The last one with a share takes what rounding leaves.
    ends = list(itertools.accumulate(shares))
    last = max(i for i, share in enumerate(shares) if share)
    return _QUANTILE, lambda u: values[min(bisect.bisect_right(ends, u), last)], None, values


def _choices(values: list[Any]) -> _Found:
    by_choice = {choice(value): value for value in values}
    return CategoricalDistribution(list(by_choice)), by_choice.__getitem__, values, values


def _numeric(
    kind: str, given: dict[str, Any]
) -> tuple[IntDistribution | FloatDistribution, Callable[[Any], Any]]:
    """Return what Optuna suggests, and what makes the value of it."""
    if kind == "int_uniform":
        return IntDistribution(given["min"], given["max"]), _same
    value: Callable[[Any], Any] = _same
    base = kind.removeprefix("q_")
    if base == "uniform":
        distribution = FloatDistribution(given["min"], given["max"])
    elif base in ("log_uniform_values", "inv_log_uniform_values"):
        # log(1/X) is uniform where log(X) is.
        distribution = FloatDistribution(given["min"], given["max"], log=True)
    elif base == "log_uniform":
        distribution = FloatDistribution(math.exp(given["min"]), math.exp(given["max"]), log=True)
    elif base == "inv_log_uniform":
        distribution = FloatDistribution(math.exp(-given["max"]), math.exp(-given["min"]), log=True)
    else:
        from scipy import stats

        frozen = {
            "normal": lambda: stats.norm(given["mu"], given["sigma"]),
            "log_normal": lambda: stats.lognorm(s=given["sigma"], scale=math.exp(given["mu"])),
            "beta": lambda: stats.beta(given["a"], given["b"]),
        }[base]()
        distribution, value = _QUANTILE, lambda u: float(frozen.ppf(u))
    if "q" not in given:
        return distribution, value
    exact, q = value, given["q"]
    return distribution, lambda suggested: _tidy(round(exact(suggested) / q) * q, q)


def _check_numbers(kind: str, given: dict[str, Any]) -> None:
    for key in ("q", "sigma", "a", "b"):
        if key in given and not given[key] > 0:
            raise UserError(f"{key} {given[key]:g} must be above 0")
    if "min" not in given:
        return
    if kind == "int_uniform" and not (_is_whole(given["min"]) and _is_whole(given["max"])):
        raise UserError("int_uniform takes whole numbers as min and max")
    if given["min"] >= given["max"]:
        raise UserError(f"min {given['min']:g} is not below max {given['max']:g}")
    if kind.endswith("_values") and given["min"] <= 0:
        raise UserError(f"min {given['min']:g} has no logarithm: give one above 0")


def _number(key: str, value: Any) -> Any:
    """Return a number; YAML reads 1e-4 as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{key} must be a number, got {value!r}")
    if isinstance(value, int) and abs(value) > _MOST_WHOLE:
        raise UserError(f"{key} {value} is too large")
    return value


def _steps(given: dict[str, Any]) -> list[Any] | None:
    """The values of a grid over q_uniform: from min in steps of q, without max, as W&B has it.

    None: there are more than any grid takes.
    """
    count = (given["max"] - given["min"]) / given["q"] - 1e-9
    if count > MOST_VALUES:
        return None
    return [_tidy(given["min"] + i * given["q"], given["q"]) for i in range(math.ceil(count))]


def _tidy(value: float, q: float) -> Any:
    """Return 0.3 where a sum of floats gives 0.30000000000000004, and whole numbers where q is whole."""
    return int(value) if _is_whole(q) and float(value).is_integer() else float(f"{value:.12g}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _same(value: Any) -> Any:
    return value
