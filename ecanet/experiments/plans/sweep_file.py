"""A sweep as W&B writes it down: read as it is, and checked whole before anything runs.

The format: https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecanet.aliases import METRICS, SETTINGS, attention_spec
from ecanet.config import RunSettings
from ecanet.errors import UserError, did_you_mean
from ecanet.experiments.plans.sweep_space import Parameter, on_grid, parameter
from ecanet.yaml_file import read_yaml

METHODS = ("bayes", "random", "grid")
# Known to W&B and without a meaning here.
_IGNORED = {
    "program": "ecanet trains itself",
    "command": "ecanet trains itself",
    "project": "runs stay on this machine",
    "entity": "runs stay on this machine",
    "controller": "ecanet is the controller",
    "job": "ecanet trains itself",
    "image_uri": "ecanet trains itself",
}
_QUIET = {"name", "description", "kind", "apiVersion"}
_KEYS = {"method", "metric", "parameters", "early_terminate", "run_cap", *_IGNORED, *_QUIET}
# All runs of a study share these: a sweep file may set them, and not sweep them.
SHARED = {
    "data", "image_size", "validation", "skip_corrupt", "device", "precision", "channels_last",
    "compile", "loggers", "project",
}  # fmt: skip
_GROUPS = {"optimizer", "schedule", "augmentation"}


@dataclass
class EarlyTermination:
    """W&B's hyperband: at certain epochs the worse runs are stopped.

    Attributes:
        first: the first epoch after which runs are stopped.
        last: the epochs of a whole run, as far as stopping reckons; None: those of the settings.
        eta: one of ``eta`` runs goes on; stopping happens at ``first * eta ** k`` epochs.
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


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        UserError: it cannot be read, or says something that cannot be run; one line.
    """
    content = read_yaml(path)
    try:
        return parse_sweep(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_sweep(content: Any) -> Sweep:
    """Check what a sweep file says, and return it with W&B's defaults filled in.

    Raises:
        UserError: a key, method, metric, parameter or distribution is unknown, or values do not fit.
    """
    if not isinstance(content, dict):
        raise UserError("a sweep file holds method, metric and parameters")
    content = {str(key): value for key, value in content.items()}
    for key in ("scheduler", "metrics"):
        if key in content:
            raise UserError(f"{key} is for sweeps of method custom, which cannot be run here")
    for key in content:
        if key not in _KEYS:
            raise UserError(f"unknown key {key}.{did_you_mean(key, _KEYS)}")
    notes = [f"{key} is ignored: {why}" for key, why in _IGNORED.items() if key in content]
    method = content.get("method")
    if method not in METHODS:
        raise UserError(
            "method is missing: bayes, random or grid"
            if method is None
            else f"unknown method {method!r}.{did_you_mean(str(method), METHODS)}"
        )
    metric, maximize, target = _metric(content.get("metric"), notes)
    parameters = _parameters(content.get("parameters"))
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


def settings_with(settings: RunSettings, values: Mapping[str, Any]) -> RunSettings:
    """Return ``settings`` with other values, by dotted names; attention and seed are no settings."""
    groups: dict[str, dict[str, Any]] = {}
    changed: dict[str, Any] = {}
    for name, value in values.items():
        group, dot, leaf = name.partition(".")
        if dot:
            groups.setdefault(group, {})[leaf] = value
        elif name not in ("attention", "seed"):
            changed[name] = value
    for group, leaves in groups.items():
        changed[group] = dataclasses.replace(getattr(settings, group), **leaves)
    return dataclasses.replace(settings, **changed)


def setting_types() -> dict[str, Any]:
    """Return everything that a parameter can set: dotted name to type."""
    found: dict[str, Any] = {"attention": str, "seed": int}
    for name, hint in typing.get_type_hints(RunSettings).items():
        if dataclasses.is_dataclass(hint):
            found |= {f"{name}.{leaf}": t for leaf, t in typing.get_type_hints(hint).items()}
        else:
            found[name] = hint
    return found


def setting_of(name: str) -> str:
    """Return the setting that a parameter's name stands for.

    Raises:
        UserError: none, or one that all runs of a study share.
    """
    types_of = setting_types()
    plain = name.replace("-", "_")
    group, _, leaf = plain.rpartition(".")
    candidates = [plain, SETTINGS.get(plain.lower(), ""), f"{plain}.name"]
    if group in _GROUPS and SETTINGS.get(leaf.lower(), "").startswith(f"{group}."):
        candidates.append(SETTINGS[leaf.lower()])
    found = next((c for c in candidates if c in types_of), None)
    if found is None:
        raise UserError(f"unknown parameter {name}.{did_you_mean(name, [*types_of, *SETTINGS])}")
    return found


def _parameters(entries: Any) -> list[Parameter]:
    if not isinstance(entries, dict) or not entries:
        raise UserError("parameters is missing: name at least one, with its values")
    types_of = setting_types()
    found: list[Parameter] = []
    for name, config in _leaves(entries):
        setting = setting_of(name)
        if same := next((p.name for p in found if p.setting == setting), None):
            raise UserError(f"parameters {same} and {name} both set {setting}: leave one out")
        read = parameter(name, setting, config, _typed(name, setting, types_of[setting]))
        if setting in SHARED and read.distribution is not None:
            raise UserError(
                f"parameter {name}: all runs share {setting}; give it one value, here or as "
                f"--{setting}"
            )
        found.append(read)
    return found


def _large_rate(found: Parameter) -> str | None:
    """Return a note where the learning rate gets over 1, as it does when bounds are read as logarithms."""
    if found.setting != "optimizer.lr":
        return None
    least, most = min(found.bounds), max(found.bounds)
    if most <= 1:
        return None
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


def _typed(name: str, setting: str, hint: Any) -> typing.Callable[[Any], Any]:
    """Return what turns a value of a sweep file into one of the setting's type, or refuses it."""

    def typed(value: Any) -> Any:
        if setting == "attention":
            return attention_spec(value)
        options = (
            typing.get_args(hint)
            if typing.get_origin(hint) in (typing.Union, types.UnionType)
            else (hint,)
        )
        for option in options:
            try:
                return _cast(value, option)
            except (TypeError, ValueError, OverflowError):
                continue
        raise UserError(f"parameter {name}: {value!r} is no value of {setting}, {_wanted(options)}")

    return typed


def _cast(value: Any, hint: Any) -> Any:
    """Return ``value`` as of type ``hint``; YAML reads 1e-4 as text, and W&B's q_ kinds give 64.0."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        match = [v for v in typing.get_args(hint) if str(v) == str(value).lower()]
        return match[0] if match else _refuse(value)
    if origin is list:
        (inner,) = typing.get_args(hint)
        return [_cast(v, inner) for v in value] if isinstance(value, list) else _refuse(value)
    if hint is bool or isinstance(value, bool):
        return value if hint is bool and isinstance(value, bool) else _refuse(value)
    if hint is type(None):
        return None if value is None else _refuse(value)
    if hint is str:
        return value if isinstance(value, str) else _refuse(value)
    number = float(value)
    if hint is int:
        return int(number) if number.is_integer() else _refuse(value)
    return number if math.isfinite(number) else _refuse(value)


def _refuse(value: Any) -> Any:
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


def _metric(metric: Any, notes: list[str]) -> tuple[str, bool, float | None]:
    if metric is None:
        notes.append("no metric is named: val_loss is minimised")
        return "val_loss", False, None
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError("metric needs a name, such as loss")
    takes = ("name", "goal", "target", "impute", "impute_while_running")
    for key in metric:
        if key not in takes:
            raise UserError(f"metric: unknown key {key}.{did_you_mean(str(key), takes)}")
    notes += [f"metric: {key} is ignored" for key in takes[3:] if key in metric]
    name = metric["name"].lower().replace("/", "_").replace("-", "_").replace(" ", "_")
    found = next((known for known, names in METRICS.items() if name in names), None)
    if found is None:
        known = [other for names in METRICS.values() for other in names]
        raise UserError(
            f"no run reports the metric {metric['name']}.{did_you_mean(name, known)} "
            "Sweeps select on the validation split"
        )
    better = "maximize" if found == "val_accuracy" else "minimize"
    goal = metric.get("goal", better)
    if goal not in ("minimize", "maximize"):
        raise UserError(f"metric: goal must be minimize or maximize, got {goal!r}")
    if goal != better:
        notes.append(f"metric: the goal is to {goal} {metric['name']}: is that meant?")
    elif "goal" not in metric and goal == "maximize":
        notes.append(f"metric: {metric['name']} has no goal and is maximised")
    target = metric.get("target")
    number = isinstance(target, (int, float)) and not isinstance(target, bool)
    if target is not None and not (number and math.isfinite(target)):
        raise UserError(f"metric: target must be a number, got {target!r}")
    if found == "val_accuracy" and target is not None and not 0 <= target <= 1:
        raise UserError(f"metric: accuracies are fractions of 1, and target is {target:g}")
    return found, goal == "maximize", target


def _early_termination(config: Any) -> EarlyTermination | None:
    if config is None:
        return None
    takes = ("type", "min_iter", "max_iter", "s", "eta", "strict")
    if not isinstance(config, dict) or config.get("type") != "hyperband":
        raise UserError("early_terminate: type must be hyperband")
    for key in config:
        if key not in takes:
            raise UserError(f"early_terminate: unknown key {key}.{did_you_mean(str(key), takes)}")
    ranges = {"min_iter": (1, 10**6), "max_iter": (1, 10**6), "s": (1, 100), "eta": (2, 10**6)}
    for key, (low, high) in ranges.items():
        value = config.get(key, low)
        whole = isinstance(value, (int, float)) and float(value).is_integer()
        if isinstance(value, bool) or not whole or not low <= value <= high:
            raise UserError(
                f"early_terminate: {key} must be a whole number from {low} to {high}, got {value!r}"
            )
    strict = config.get("strict", False)
    if not isinstance(strict, bool):
        raise UserError(f"early_terminate: strict must be true or false, got {strict!r}")
    eta = int(config.get("eta", 3))
    if "min_iter" in config:
        last = config.get("max_iter")
        first = int(config["min_iter"])
        if last is not None and last < first:
            raise UserError(f"early_terminate: min_iter {first} is above max_iter {last}")
        return EarlyTermination(first, int(last) if last is not None else None, eta, strict)
    if "max_iter" not in config or "s" not in config:
        raise UserError("early_terminate: give min_iter, or max_iter and s")
    last = int(config["max_iter"])
    return EarlyTermination(max(1, last // eta ** int(config["s"])), last, eta, strict)
