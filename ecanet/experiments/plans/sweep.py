"""The plan of a sweep: trials whose settings a sampler chooses, and the best of them trained again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from ecanet.config import differences, replaced
from ecanet.errors import UserError, at_least
from ecanet.experiments.plans.compare import with_attention
from ecanet.experiments.plans.sweep_file import EarlyTermination, Sweep, parse_sweep
from ecanet.experiments.plans.sweep_space import format_values
from ecanet.experiments.study.plan import Job, Plan
from ecanet.experiments.study.queue import CANCELLED, Run


@dataclass
class SweepPlan(Plan):
    """Trials of one sweep file, all with one seed, and the runs that confirm the best over other seeds."""

    kind: ClassVar[str] = "sweep"

    sweep: dict[str, Any] = field(default_factory=dict)
    """The sweep file's content, as far as it decides what is run."""
    trials: int = 0
    confirm: int = 0
    """How many of the best settings are trained again."""
    confirm_seeds: int = 3
    confirmed: list[dict[str, Any]] = field(default_factory=list)
    """Those settings: ``trial``, the run they are from, and ``params``, as Optuna has them."""

    def check(self) -> None:
        super().check()
        at_least(0, trials=self.trials, confirm=self.confirm, confirm_seeds=self.confirm_seeds)
        for found in self.confirmed:
            if not (isinstance(found.get("trial"), str) and isinstance(found.get("params"), dict)):
                raise UserError(f"confirmed cannot hold {found!r:.80}")
        self.file  # noqa: B018 reading it checks it

    def most_runs(self) -> int:
        confirmed = max(self.confirm, len(self.confirmed))
        return self.trials + confirmed * self.confirm_seeds

    @cached_property
    def file(self) -> Sweep:
        """The sweep as its file has it."""
        return parse_sweep(self.sweep, type(self.settings))

    def networks(self) -> tuple[list[str], list[str]]:
        swept = {p.setting: list(p.bounds) for p in self.file.parameters}
        attention = swept.get("attention", [self.settings.attention])
        return attention, swept.get("model", [self.settings.model])

    def runs(self) -> list[Run]:
        """All trials in order, then the runs that confirm, seed by seed."""
        sweep, grid = self.file, self.file.method == "grid"
        trials = [
            Run(trial_name(i), {"trial": i}, sweep.grid_point(i) if grid else {})
            for i in range(self.trials)
        ]
        return trials + [
            Run(
                f"{found['trial']}-seed{seed}",
                {"of": found["trial"], "seed": seed},
                found["params"],
            )
            for seed in self.fresh_seeds()
            for found in self.confirmed
        ]

    def fresh_seeds(self) -> list[int]:
        """The seeds of the runs that confirm: none of them the trials' own."""
        swept = [seed for p in self.file.parameters if p.setting == "seed" for seed in p.bounds]
        first = max([self.settings.seed, *swept]) + 1
        return list(range(first, first + self.confirm_seeds))

    def extended(self, wanted: Plan) -> SweepPlan:
        assert isinstance(wanted, SweepPlan)
        changed = differences(self.sweep, wanted.sweep)
        if changed:
            raise UserError(
                f"the study holds another sweep ({'; '.join(changed)}): choose another --out"
            )
        return dataclasses.replace(
            self,
            trials=max(self.trials, wanted.trials),
            confirm=wanted.confirm,
            # Seeds that have been trained stay.
            confirm_seeds=max(wanted.confirm_seeds, self.confirm_seeds if self.confirmed else 0),
            plugin=list(dict.fromkeys([*self.plugin, *wanted.plugin])),
        )

    def title(self, attributes: dict[str, Any], params: dict[str, Any]) -> str:
        swept = [p for p in self.file.swept if p.name in params]
        found = format_values({p.name: p.value(params[p.name]) for p in swept})
        return f"{found}, seed {attributes['seed']}" if "of" in attributes else found

    def job(self, trial: optuna.Trial) -> Job:
        values = {p.name: p.suggest(trial) for p in self.file.parameters}
        return self.job_of(values, trial.user_attrs)

    def job_of(self, values: dict[str, Any], attributes: dict[str, Any]) -> Job:
        """Return what is trained with these values of the sweep's parameters."""
        sweep = self.file
        chosen = {p.setting: values[p.name] for p in sweep.parameters}
        title = format_values({p.name: values[p.name] for p in sweep.swept})
        if "of" in attributes:
            chosen["seed"] = attributes["seed"]
            title += f", seed {attributes['seed']}"
        settings = with_values(self.settings, {**chosen, "plugin": self.plugin})
        settings = with_attention(settings, settings.attention)
        return Job(settings, title, test="of" in attributes)

    def sampler(self, number: int) -> optuna.samplers.BaseSampler | None:
        seed = int(np.random.SeedSequence([self.settings.seed, number]).generate_state(1)[0])
        if self.file.method != "bayes":
            # A grid's trials come with all their parameters: it is not used.
            return optuna.samplers.RandomSampler(seed=seed)
        # It takes running trials for bad ones, so that workers do not all try the same.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def pruner(self) -> optuna.pruners.BasePruner | None:
        early = self.file.early
        if early is None or early.first >= self.epochs():
            return None
        return _TrialsOnly(early, self)

    def epochs(self) -> int:
        """The most epochs of a run."""
        epochs = [p.bounds for p in self.file.parameters if p.setting == "epochs"]
        return max(epochs[0]) if epochs else self.settings.epochs

    def follow_up(self, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return the settings to confirm, once no trial is left to run."""
        ended = {
            t.user_attrs["run"]
            for t in trials
            if "trial" in t.user_attrs and t.user_attrs.get("error") != CANCELLED
        }
        if len(ended) < self.trials and not self.target_reached(trials):
            return {}
        known = [found["trial"] for found in self.confirmed]
        new = [found for found in self.best(trials, self.confirm) if found["trial"] not in known]
        return {"confirmed": self.confirmed + new}

    def best(self, trials: Sequence[FrozenTrial], count: int) -> list[dict[str, Any]]:
        """Return the ``count`` best settings that differ, best first, by the trials' validation metric."""
        finished = _finished(trials)
        finished.sort(key=lambda t: t.value or 0.0, reverse=self.direction == "maximize")
        found: dict[str, dict[str, Any]] = {}
        for t in finished:
            found.setdefault(repr(t.params), {"trial": t.user_attrs["run"], "params": t.params})
        return list(found.values())[:count]

    def target_reached(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether a trial has reached the metric's target, if the file names one."""
        target, sign = self.file.target, 1 if self.direction == "maximize" else -1
        return target is not None and any(
            sign * (trial.value or 0.0) >= sign * target for trial in _finished(trials)
        )


def _finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that have come to their end with a metric that is a number."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and "trial" in t.user_attrs]
    return [t for t in complete if math.isfinite(t.value or 0.0)]


class _TrialsOnly(optuna.pruners.BasePruner):
    """Ends trials early, and never a run that confirms, nor one that has ended anyway."""

    def __init__(self, early: EarlyTermination, plan: SweepPlan) -> None:
        self.epochs = next((p for p in plan.file.swept if p.setting == "epochs"), None)
        self.most = plan.epochs()
        last = max(early.last or self.most, early.first)
        self.pruner: optuna.pruners.BasePruner = (
            optuna.pruners.SuccessiveHalvingPruner(
                early.first, early.eta, min_early_stopping_rate=0
            )
            if early.strict
            else optuna.pruners.HyperbandPruner(early.first, last, early.eta)
        )

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if "of" in trial.user_attrs:
            return False
        epochs = self.epochs.value(trial.params[self.epochs.name]) if self.epochs else self.most
        return (trial.last_step or 0) < epochs and self.pruner.prune(study, trial)


def trial_name(index: int) -> str:
    """Return the name of a trial's folder: ``trial-0007``."""
    return f"trial-{index:04d}"


def with_values(settings: Any, values: dict[str, Any]) -> Any:
    """Return settings with a sweep's values; one of a group that excludes another takes its place."""
    crops = {"augmentation.crop_padding": None, "augmentation.scale": None}
    if crops.keys() & values.keys():
        values = {**crops, **values}
    return replaced(settings, values)
