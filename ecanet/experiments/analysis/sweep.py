"""What the report of a sweep is made of: a study, finished or not, reduced to plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from ecanet.experiments.analysis.compare import record_of
from ecanet.experiments.study.queue import CANCELLED, readable
from ecanet.record import Record

if TYPE_CHECKING:
    from ecanet.experiments.plans.sweep import SweepPlan
    from ecanet.experiments.study.study import Study

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "ended early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "under way",
    TrialState.WAITING: "waiting",
}


@dataclass
class Trial:
    """One trial of a sweep. Metrics are those of the validation split; unknown ones are NaN."""

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
    """What is optimised: of the last epoch that was reached, if the trial ended early."""
    val_loss: float = math.nan
    val_accuracy: float = math.nan
    epochs: int = 0
    """Epochs that were trained."""
    train_seconds: float = math.nan
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
        found = [getattr(self.records[seed].final, metric) for seed in sorted(self.records)]
        return [value for value in found if math.isfinite(value)]


@dataclass
class SweepSummary:
    """A sweep as :func:`ecanet.experiments.report.sweep.write_report` reads it; lists may be empty."""

    title: str
    method: str
    metric: str
    """``val_loss`` or ``val_accuracy``."""
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

    def ranked(self) -> list[Trial]:
        """Return the trials that can be judged, the best first."""
        judged = [trial for trial in self.trials if trial.judged]
        return sorted(judged, key=lambda trial: trial.metric, reverse=self.maximize)

    def standing(self) -> list[Confirmed]:
        """Return the confirmed settings that have a number, the best first, by the validation split."""
        means = {
            c.trial: fmean(values) for c in self.confirmed if (values := c.finals(self.metric))
        }
        judged = [c for c in self.confirmed if c.trial in means]
        return sorted(judged, key=lambda c: means[c.trial], reverse=self.maximize)

    def winner(self) -> str | None:
        """Return the trial whose settings have won: by the runs that confirm, if there are any."""
        standing = self.standing()
        if standing:
            return standing[0].trial
        ranked = self.ranked()
        return ranked[0].name if ranked else None

    def answer(self) -> list[str]:
        """Return in sentences what has come out."""
        ranked = self.ranked()
        if not ranked:
            return ["No trial has ended with a result yet: there is nothing to choose from."]
        best, standing = ranked[0], self.standing()
        count = f"{len(ranked)} finished trials" if len(ranked) > 1 else "one finished trial"
        lines = [
            f"Best of {count}: {told(best.values)}, with {self.told_metrics(best)} on the "
            "validation split."
        ]
        if not standing:
            return [
                *lines,
                f"That is one run, of seed {self.seed}, and the best of many is lucky as a rule: "
                "--confirm 3 trains the best settings again over fresh seeds, and tests them.",
            ]
        first = standing[0]
        over = f"{len(first.records)} fresh seed{'s' if len(first.records) > 1 else ''}"
        among = f"best of {len(standing)} settings" if len(standing) > 1 else "settings"
        lines.append(
            f"Confirmed over {over}, {among}: {told(first.values)}, with a validation accuracy of "
            f"{spread_text(first.finals('val_accuracy'))} and a test accuracy of "
            f"{spread_text(first.finals('test_accuracy'))}."
        )
        return lines

    def told_metrics(self, trial: Trial) -> str:
        """Return a trial's validation metrics, what is optimised first."""
        loss, accuracy = f"loss {trial.val_loss:.4f}", f"accuracy {100 * trial.val_accuracy:.2f} %"
        return f"{accuracy} and {loss}" if self.maximize else f"{loss} and {accuracy}"


def told(values: dict[str, Any]) -> str:
    """Return a setting in words: ``att eca, optimizer adam``."""
    return ", ".join(f"{name} {short(value)}" for name, value in values.items())


def short(value: Any) -> str:
    """Return a parameter's value as a line has room for it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spread_text(fractions: Sequence[float]) -> str:
    """Return ``92.31 ± 0.20 %``, without the spread where there is none to tell."""
    if not fractions:
        return "—"
    if len(fractions) == 1:
        return f"{100 * fractions[0]:.2f} %"
    return f"{100 * fmean(fractions):.2f} ± {100 * stdev(fractions):.2f} %"


def summarise(study: Study) -> SweepSummary:
    """Gather what a report needs from the study alone."""
    plan: Any = study.plan()
    # A run that was tried again is told by its last trial.
    last = {trial.user_attrs["run"]: trial for trial in study.read_trials()}
    with readable(study.location):
        trials = [_trial(plan, found) for found in last.values() if "trial" in found.user_attrs]
    trials.sort(key=lambda trial: trial.number)
    environments = {}
    for found in last.values():
        if "record" not in found.user_attrs:
            continue
        environment = {**found.user_attrs["record"]["environment"], "date": None}
        environments[json.dumps(environment, sort_keys=True)] = environment
    summary = SweepSummary(
        title=plan.title(),
        method=plan.file.method,
        metric=plan.metric,
        maximize=plan.direction == "maximize",
        parameters={p.name: p.setting for p in plan.file.swept},
        distributions={p.name: p.distribution for p in plan.file.swept if p.distribution},
        settings=asdict(plan.settings),
        sweep=plan.sweep,
        environment=study.trials.user_attrs["environment"],
        attention=plan.attention,
        seed=plan.seed,
        trials=trials,
        confirmed=[_confirmed(plan, chosen, last) for chosen in plan.confirmed],
        environments=list(environments.values()),
        skipped_images=plan.skipped_images,
    )
    candidates = {c.trial for c in summary.confirmed} | {t.name for t in summary.ranked()[:1]}
    summary.recipes = {t.name: recipe(plan, t.values) for t in trials if t.name in candidates}
    return summary


def recipe(plan: SweepPlan, values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run as a recipe that train and compare take."""
    from ecanet.experiments.plans.sweep import effective_settings

    constants = {p.name: p.bounds[0] for p in plan.file.parameters if p.distribution is None}
    job = plan.job_of({**constants, **values}, {})
    settings = asdict(effective_settings(job.settings))
    # What a machine or a user's account decides is not of the recipe.
    for name in ("device", "precision", "compile", "loggers", "project"):
        settings.pop(name)
    named = {"attention": [job.attention]}
    if plan.plugin:
        named["plugin"] = plan.plugin
    return {"data": settings.pop("data"), "model": settings.pop("model"), **named, **settings}


def _trial(plan: SweepPlan, found: FrozenTrial) -> Trial:
    attributes = found.user_attrs
    values = {
        p.name: p.value(found.params[p.name]) for p in plan.file.swept if p.name in found.params
    }
    curve = [value for _, value in sorted(found.intermediate_values.items())]
    trial = Trial(
        name=attributes["run"],
        number=attributes["trial"],
        state=STATES[found.state],
        params=dict(found.params),
        values=values,
        epochs=len(curve),
        curve=curve,
        error=attributes.get("error"),
    )
    if found.state == TrialState.COMPLETE:
        record = attributes["record"]
        final = record_of({**attributes, "record": {**record, "epochs": []}}).final
        assert final is not None
        trial.val_loss, trial.val_accuracy = final.val_loss, final.val_accuracy
        trial.metric = getattr(final, plan.metric)
        trial.train_seconds = final.train_seconds
        trial.epochs = len(record["epochs"])
    elif found.state == TrialState.PRUNED and curve:
        trial.metric = curve[-1]
        setattr(trial, plan.metric, curve[-1])
    elif trial.error == CANCELLED:
        trial.state, trial.error = "not run", None
    return trial


def _confirmed(plan: SweepPlan, chosen: dict[str, Any], last: dict[str, FrozenTrial]) -> Confirmed:
    values = {p.name: p.value(chosen["params"][p.name]) for p in plan.file.swept}
    found = Confirmed(chosen["trial"], values, planned=plan.confirm_seeds)
    for seed in plan.fresh_seeds():
        trial = last.get(f"{chosen['trial']}-seed{seed}")
        if trial is None:
            continue
        if trial.state == TrialState.COMPLETE:
            found.records[seed] = record_of(trial.user_attrs)
        elif trial.state == TrialState.FAIL:
            found.failed[seed] = trial.user_attrs.get("error", "")
    return found
