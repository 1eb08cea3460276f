"""A sweep, finished or not, reduced to plain values for its report."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from ecanet.config import as_recipe
from ecanet.experiments.analysis.compare import ACCURACY, Metric, metric_of, record_of
from ecanet.experiments.plans.sweep import SweepPlan
from ecanet.experiments.study.queue import CANCELLED, readable
from ecanet.record import Record, Row

if TYPE_CHECKING:
    from ecanet.experiments.study.study import Study

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "ended early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass
class Trial:
    """One trial of a sweep."""

    name: str
    number: int
    """Its place among the trials, from 0."""
    state: str
    """One of the values of STATES, or ``not run``: stopped before its turn."""
    params: dict[str, Any]
    """What Optuna suggested, by parameter; empty before the trial has begun."""
    values: dict[str, Any]
    """The parameters' values that follow from it."""
    metric: float = math.nan
    """What is optimized: of the last epoch that was reached, if the trial ended early. NaN: unknown."""
    final: Row = field(default_factory=dict)
    """The final metrics of its record; of a trial that ended early, ``metric`` under its column."""
    epochs: int = 0
    """Epochs that were trained."""
    curve: list[float] = field(default_factory=list)
    """The metric after each epoch."""
    error: str | None = None

    @property
    def judged(self) -> bool:
        """Whether the trial came to its end with a number to judge it by."""
        return self.state == "finished" and math.isfinite(self.metric)


@dataclass
class Confirmed:
    """Settings of a trial that were trained again over other seeds."""

    trial: str
    values: dict[str, Any]
    records: dict[int, Record] = field(default_factory=dict)
    """By seed, those that have finished."""
    planned: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    """Error by seed."""

    def finals(self, metric: str) -> list[float]:
        """Return a final metric of the finished runs, seed by seed, those that are numbers."""
        found = [self.records[seed].final.get(metric, math.nan) for seed in sorted(self.records)]
        return [value for value in found if math.isfinite(value)]


@dataclass
class SweepSummary:
    """A sweep as :func:`ecanet.experiments.report.sweep.write_report` reads it; lists may be empty."""

    title: str
    method: str
    metric: str
    """The column that is optimized: ``val_loss``, for one."""
    maximize: bool
    parameters: dict[str, str]
    """What is swept: name to setting."""
    distributions: dict[str, BaseDistribution]
    """What Optuna suggests from, by parameter."""
    settings: dict[str, Any]
    """The settings that all runs share, as resolved."""
    sweep: dict[str, Any]
    """The sweep file's content."""
    environment: dict[str, Any]
    attention: str
    seed: int
    trials: list[Trial] = field(default_factory=list)
    confirmed: list[Confirmed] = field(default_factory=list)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By trial: the settings to train with, for those that may win."""
    environments: list[dict[str, Any]] = field(default_factory=list)
    """Those of the runs that differ in more than the date."""
    skipped_images: list[str] = field(default_factory=list)
    judged_by: Metric = ACCURACY
    """What the confirming runs are judged by."""

    def ranked(self) -> list[Trial]:
        """Return the trials that can be judged, the best first."""
        judged = [trial for trial in self.trials if trial.judged]
        return sorted(judged, key=lambda trial: trial.metric, reverse=self.maximize)

    def ranked_confirmed(self) -> list[Confirmed]:
        """Return the confirmed settings that can be judged, the best first, by the sweep's metric."""
        means = {c.trial: fmean(v) for c in self.confirmed if (v := c.finals(self.metric))}
        judged = [c for c in self.confirmed if c.trial in means]
        return sorted(judged, key=lambda c: means[c.trial], reverse=self.maximize)

    def winner(self) -> str | None:
        """Return the trial whose settings have won: by the runs that confirm, if there are any."""
        names = [c.trial for c in self.ranked_confirmed()] or [t.name for t in self.ranked()]
        return names[0] if names else None


def summarise(study: Study) -> SweepSummary:
    """Gather what a report needs from the study alone."""
    plan: Any = study.plan()
    # A run that was tried again counts by its last trial.
    last = {trial.user_attrs["run"]: trial for trial in study.read_trials()}
    with readable(study.location):
        trials = [_trial(plan, found) for found in last.values() if "trial" in found.user_attrs]
    trials.sort(key=lambda trial: trial.number)
    environments = {}
    for record in (t.user_attrs["record"] for t in last.values() if "record" in t.user_attrs):
        environment = {**record["environment"], "date": None}
        environments[json.dumps(environment, sort_keys=True)] = environment
    summary = SweepSummary(
        title=plan.settings.title(),
        method=plan.file.method,
        metric=plan.metric,
        maximize=plan.direction == "maximize",
        parameters={p.name: p.setting for p in plan.file.swept},
        distributions={p.name: p.distribution for p in plan.file.swept if p.distribution},
        settings=asdict(plan.settings),
        sweep=plan.sweep,
        environment=study.trials.user_attrs["environment"],
        attention=plan.settings.attention,
        seed=plan.settings.seed,
        trials=trials,
        confirmed=[_confirmed(plan, chosen, last) for chosen in plan.confirmed],
        environments=list(environments.values()),
        skipped_images=plan.skipped_images,
        judged_by=metric_of(plan.settings),
    )
    candidates = {c.trial for c in summary.confirmed} | {t.name for t in summary.ranked()[:1]}
    summary.recipes = {t.name: recipe(plan, t.values) for t in trials if t.name in candidates}
    return summary


def recipe(plan: SweepPlan, values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run as a recipe that train and compare take."""
    constants = {p.name: p.bounds[0] for p in plan.file.parameters if p.distribution is None}
    settings = plan.job_of({**constants, **values}, {}).settings
    return as_recipe(settings, {"attention": [settings.attention]})


def _trial(plan: SweepPlan, found: FrozenTrial) -> Trial:
    attributes, params = found.user_attrs, dict(found.params)
    curve = [value for _, value in sorted(found.intermediate_values.items())]
    trial = Trial(
        name=attributes["run"],
        number=attributes["trial"],
        state=STATES[found.state],
        params=params,
        values={p.name: p.value(params[p.name]) for p in plan.file.swept if p.name in params},
        epochs=len(curve),
        curve=curve,
        error=attributes.get("error"),
    )
    if found.state == TrialState.COMPLETE:
        record = attributes["record"]
        trial.final = record_of({**attributes, "record": {**record, "epochs": []}}).final
        trial.metric = trial.final.get(plan.metric, math.nan)
        trial.epochs = len(record["epochs"])
    elif found.state == TrialState.PRUNED and curve:
        trial.metric = curve[-1]
        trial.final = {plan.metric: curve[-1]}
    elif trial.error == CANCELLED:
        trial.state, trial.error = "not run", None
    return trial


def _confirmed(plan: SweepPlan, chosen: dict[str, Any], last: dict[str, FrozenTrial]) -> Confirmed:
    values = {p.name: p.value(chosen["params"][p.name]) for p in plan.file.swept}
    found = Confirmed(chosen["trial"], values, planned=plan.confirm_seeds)
    for seed in plan.fresh_seeds():
        trial = last.get(f"{chosen['trial']}-seed{seed}")
        if trial and trial.state == TrialState.COMPLETE:
            found.records[seed] = record_of(trial.user_attrs)
        elif trial and trial.state == TrialState.FAIL:
            found.failed[seed] = trial.user_attrs.get("error", "")
    return found
