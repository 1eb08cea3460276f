"""A sweep as W&B writes it down: read as it is, and checked whole before anything runs.

The format: https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecanet.aliases import METRICS, SETTINGS, attention_spec
from ecanet.config import SHARED, ClassificationSettings, DetectionSettings, TrainingSettings
from ecanet.errors import UserError, did_you_mean, prefixed
from ecanet.experiments.plans.sweep_space import Parameter, on_grid, parameter
from ecanet.metrics import metric_named
from ecanet.yaml_file import read_yaml

METHODS = ("bayes", "random", "grid")
# Known to W&B and without a meaning here.
_IGNORED = {
    **dict.fromkeys(("program", "command", "job", "image_uri"), "ecanet trains itself"),
    **dict.fromkeys(("project", "entity"), "runs stay on this machine"),
    "controller": "ecanet is the controller",
}
_QUIET = {"name", "description", "kind", "apiVersion"}
_KEYS = {"method", "metric", "parameters", "early_terminate", "run_cap", *_IGNORED, *_QUIET}


@dataclass
class EarlyTermination:
    """W&B's hyperband: at certain epochs the worse runs are stopped.

    Attributes:
        first: the first epoch after which runs are stopped.
        last: the epochs of a whole run, as far as stopping reckons; None: those of the settings.
        eta: one of ``eta`` runs continues; stopping happens at ``first * eta ** k`` epochs.
        strict: every run is judged at each of these epochs. Else runs are dealt to brackets that begin
            later and later, as Hyperband (Li et al., arXiv 1603.06560) has it.
    """

    first: int
    last: int | None
    eta: int
    strict: bool


@dataclass
class Sweep:
    """What a sweep file says.

    Attributes:
        method: bayes, random or grid.
        metric: ``val_loss`` or ``val_accuracy``, of the validation split.
        maximize: whether more is better.
        target: stop once a run has reached this value.
        parameters: what is swept, in the file's order, constants included.
        early: when runs are stopped before their end.
        run_cap: the most runs.
        content: the file's content as far as it decides what is run: plain values.
        notes: what the reader of the file should know, a line each.
    """

    method: str
    metric: str
    maximize: bool
    target: float | None
    parameters: list[Parameter]
    early: EarlyTermination | None
    run_cap: int | None
    content: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def swept(self) -> list[Parameter]:
        """The parameters that take more than one value."""
        return [p for p in self.parameters if p.distribution is not None]

    @property
    def constants(self) -> dict[str, Any]:
        """The settings that the file fixes for all runs."""
        return {p.setting: p.bounds[0] for p in self.parameters if p.distribution is None}

    def grid_size(self) -> int:
        """How many runs a grid has."""
        return math.prod(len(p.bounds) for p in self.swept)

    def grid_point(self, index: int) -> dict[str, Any]:
        """Return what Optuna is to suggest in the ``index``-th run of a grid; the last name moves fastest."""
        point: dict[str, Any] = {}
        for p in reversed(self.swept):
            index, place = divmod(index, len(p.bounds))
            point[p.name] = p.suggested(p.bounds[place])
        return dict(reversed(point.items()))


def read_sweep(
    path: str | Path,
    cls: type[TrainingSettings] = ClassificationSettings,
    best: str | None = None,
) -> Sweep:
    """Read a sweep file over settings of the class ``cls``; ``best`` as in :func:`parse_sweep`.

    Raises:
        UserError: it cannot be read, or says something that cannot be run; one line.
    """
    content = read_yaml(path)
    with prefixed(f"{path}: "):
        return parse_sweep(content, cls, best)


def parse_sweep(
    content: Any,
    cls: type[TrainingSettings] = ClassificationSettings,
    best: str | None = None,
) -> Sweep:
    """Check what a sweep file says, and return it with W&B's defaults filled in.

    Args:
        best: column that is optimized where the file names none; by default that of settings as they are.

    Raises:
        UserError: a key, method, metric, parameter or distribution is unknown, or values do not fit.
    """
    if not isinstance(content, dict):
        raise UserError("a sweep file holds method, metric and parameters")
    content = {str(key): value for key, value in content.items()}
    for key in ("scheduler", "metrics"):
        if key in content:
            raise UserError(f"{key} is for sweeps of method custom, which cannot be run here")
    _check_keys(content, _KEYS)
    notes = [f"{key} is ignored: {why}" for key, why in _IGNORED.items() if key in content]
    method = content.get("method")
    if method is None:
        raise UserError("method is missing: bayes, random or grid")
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}.{did_you_mean(str(method), METHODS)}")
    parameters = _parameters(content.get("parameters"), cls)
    constants = [p.bounds[0] for p in parameters if p.setting == "metric"]
    best = f"val_{constants[0]}" if constants else best
    metric, maximize, target = _metric(content.get("metric"), notes, cls, best)
    if method == "grid":
        parameters = [on_grid(p) for p in parameters]
    if not any(p.distribution is not None for p in parameters):
        raise UserError("parameters holds constants alone: there is nothing to sweep")
    notes += [note for p in parameters if (note := _large_rate(p))]
    cap = content.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise UserError(f"run_cap must be a whole number from 1, got {cap!r}")
    decides = ("method", "metric", "parameters", "early_terminate")
    return Sweep(
        method,
        metric,
        maximize,
        target,
        parameters,
        _early_termination(content.get("early_terminate")),
        cap,
        {key: content[key] for key in decides if content.get(key) is not None},
        notes,
    )


def _check_keys(config: Mapping[Any, Any], known: Collection[str]) -> None:
    for key in config:
        if key not in known:
            raise UserError(f"unknown key {key}.{did_you_mean(str(key), known)}")


def setting_types(cls: type[TrainingSettings]) -> dict[str, Any]:
    """Return everything that a parameter can set: dotted name to type."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= {f"{name}.{leaf}": t for leaf, t in typing.get_type_hints(hint).items()}
        else:
            found[name] = hint
    return found


def setting_of(name: str, types_of: Mapping[str, Any]) -> str:
    """Return the setting that a parameter's name stands for.

    Raises:
        UserError: none, or one that all runs of a study share.
    """
    groups = {setting.partition(".")[0] for setting in types_of if "." in setting}
    plain = name.replace("-", "_")
    group, _, leaf = plain.rpartition(".")
    candidates = [plain, SETTINGS.get(plain.lower(), ""), f"{plain}.name"]
    if group in groups and SETTINGS.get(leaf.lower(), "").startswith(f"{group}."):
        candidates.append(SETTINGS[leaf.lower()])
    found = next((c for c in candidates if c in types_of), None)
    if found is None:
        raise UserError(f"unknown parameter {name}.{did_you_mean(name, [*types_of, *SETTINGS])}")
    return found


def _parameters(entries: Any, cls: type[TrainingSettings]) -> list[Parameter]:
    if not isinstance(entries, dict) or not entries:
        raise UserError("parameters is missing: name at least one, with its values")
    types_of = setting_types(cls)
    found: list[Parameter] = []
    for name, config in _leaves(entries):
        setting = setting_of(name, types_of)
        if same := next((p.name for p in found if p.setting == setting), None):
            raise UserError(f"parameters {same} and {name} both set {setting}: leave one out")
        read = parameter(name, setting, config, _typed(setting, types_of[setting]))
        if setting in SHARED and read.distribution is not None:
            raise UserError(
                f"parameter {name}: all runs share {setting}; give it one value, here or as "
                f"--{setting}"
            )
        found.append(read)
    return found


def _large_rate(found: Parameter) -> str | None:
    """Return a note where the learning rate gets over 1, as it does when bounds are read as logarithms."""
    if found.setting != "optimizer.lr" or max(found.bounds) <= 1:
        return None
    least, most = min(found.bounds), max(found.bounds)
    note = f"parameter {found.name}: learning rates go from {least:g} to {most:g}"
    if found.kind.endswith("log_uniform"):
        note += f", as {found.kind} takes the logarithms of its bounds; {found.kind}_values takes the bounds"
    return note


def _leaves(entries: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Return parameters nested in ``parameters`` under dotted names."""
    found: list[tuple[str, dict[str, Any]]] = []
    for key, config in entries.items():
        name = f"{prefix}{key}"
        if not isinstance(config, dict) or not config:
            raise UserError(f"parameter {name}: give value, values, or min and max")
        if "parameters" in config:
            inner = config["parameters"]
            if len(config) > 1 or not isinstance(inner, dict):
                raise UserError(
                    f"parameter {name}: nested parameters stand alone, a mapping of names"
                )
            found += _leaves(inner, f"{name}.")
        else:
            found.append((name, {str(k): v for k, v in config.items()}))
    return found


def _typed(setting: str, hint: Any) -> typing.Callable[[Any], Any]:
    """Return what turns a value of a sweep file into one of the setting's type, or refuses it."""

    def typed(value: Any) -> Any:
        if setting == "attention":
            return attention_spec(value)
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        options = typing.get_args(hint) if union else (hint,)
        for option in options:
            try:
                return _cast(value, option)
            except (TypeError, ValueError, OverflowError):
                continue
        raise UserError(f"{value!r} is not a value of {setting}, {_wanted(options)}")

    return typed


def _cast(value: Any, hint: Any) -> Any:
    """Return ``value`` as of type ``hint``; YAML reads 1e-4 as text, and W&B's q_ kinds give 64.0."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        for option in options:
            if str(option) == str(value).lower():
                return option
    elif origin is list:
        if isinstance(value, list):
            return [_cast(item, options[0]) for item in value]
    elif hint in (bool, str, types.NoneType):
        if type(value) is hint:
            return value
    elif not isinstance(value, bool):
        number = float(value)
        if hint is int and number.is_integer():
            return int(number)
        if hint is float and math.isfinite(number):
            return number
    raise ValueError(value)


def _wanted(options: typing.Sequence[Any]) -> str:
    kinds = {
        int: "a whole number: give values, whole numbers as min and max, or a q_ distribution",
        float: "a number", bool: "true or false", str: "a text",
    }  # fmt: skip
    for option in options:
        if typing.get_origin(option) is typing.Literal:
            return f"one of {', '.join(map(str, typing.get_args(option)))}"
        if typing.get_origin(option) is list:
            return "a list"
        if option in kinds:
            return kinds[option]
    raise AssertionError(options)


def _metric(
    metric: Any, notes: list[str], cls: type[TrainingSettings], best: str | None
) -> tuple[str, bool, float | None]:
    known = ["box_AP"] if cls is DetectionSettings else [c for c in METRICS if c != "box_AP"]
    if metric is None:
        column = best or cls().best
        maximized = metric_named(column).higher_is_better
        notes.append(f"no metric is named: {column} is {'maximized' if maximized else 'minimized'}")
        return column, maximized, None
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError("metric needs a name, such as loss")
    takes = ("name", "goal", "target", "impute", "impute_while_running")
    with prefixed("metric: "):
        _check_keys(metric, takes)
    notes += [f"metric: {key} is ignored" for key in takes[3:] if key in metric]
    name = metric["name"].lower().replace("/", "_").replace("-", "_").replace(" ", "_")
    found = next((column for column in known if name in METRICS[column]), None)
    if found is None:
        others = [other for column in known for other in METRICS[column]]
        raise UserError(
            f"no run reports the metric {metric['name']}.{did_you_mean(name, others)} "
            "Sweeps select on the validation split"
        )
    what = metric_named(found)
    better = "maximize" if what.higher_is_better else "minimize"
    goal = metric.get("goal", better)
    if goal not in ("minimize", "maximize"):
        raise UserError(f"metric: goal must be minimize or maximize, got {goal!r}")
    if goal != better:
        notes.append(f"metric: the goal is to {goal} {metric['name']}: is that intended?")
    elif "goal" not in metric and goal == "maximize":
        notes.append(f"metric: {metric['name']} has no goal and is maximized")
    target = metric.get("target")
    number = isinstance(target, (int, float)) and not isinstance(target, bool)
    if target is not None and not (number and math.isfinite(target)):
        raise UserError(f"metric: target must be a number, got {target!r}")
    if what.is_share and target is not None and not 0 <= target <= 1:
        raise UserError(f"metric: accuracies and APs are fractions of 1, and target is {target:g}")
    return found, goal == "maximize", target


@prefixed("early_terminate: ")
def _early_termination(config: Any) -> EarlyTermination | None:
    if config is None:
        return None
    if not isinstance(config, dict) or config.get("type") != "hyperband":
        raise UserError("type must be hyperband")
    _check_keys(config, ("type", "min_iter", "max_iter", "s", "eta", "strict"))
    ranges = {"min_iter": (1, 10**6), "max_iter": (1, 10**6), "s": (1, 100), "eta": (2, 10**6)}
    for key, (low, high) in ranges.items():
        value = config.get(key, low)
        whole = isinstance(value, (int, float)) and float(value).is_integer()
        if isinstance(value, bool) or not whole or not low <= value <= high:
            raise UserError(f"{key} must be a whole number from {low} to {high}, got {value!r}")
    strict, eta = config.get("strict", False), int(config.get("eta", 3))
    if not isinstance(strict, bool):
        raise UserError(f"strict must be true or false, got {strict!r}")
    last = int(config["max_iter"]) if "max_iter" in config else None
    if "min_iter" in config:
        first = int(config["min_iter"])
        if last is not None and last < first:
            raise UserError(f"min_iter {first} is above max_iter {last}")
    elif last is None or "s" not in config:
        raise UserError("give min_iter, or max_iter and s")
    else:
        first = max(1, last // eta ** int(config["s"]))
    return EarlyTermination(first, last, eta, strict)
