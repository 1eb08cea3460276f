"""The report of a sweep: its tables, its sentences, its page, and the winning recipe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import optuna

from ecanet import metrics
from ecanet.errors import counted
from ecanet.experiments.analysis.compare import column_name
from ecanet.experiments.analysis.statistics import mean_interval, no_interval
from ecanet.experiments.analysis.sweep import Confirmed, SweepSummary, Trial
from ecanet.experiments.plans.sweep_space import format_value, format_values
from ecanet.experiments.report.page import UNITS, Report, flat, recipe_text
from ecanet.experiments.report.sweep_charts import charts, outlier_cutoff, scales
from ecanet.record import Row, without_nan

_ROWS = 100  # trials in the page's table; runs.csv has all of them
_FITTED = 500  # trials from which importance is computed, at most
# ... and at least, for each parameter: ten runs an input are the rule for a first computer experiment
# (Loeppky, Sacks and Welch, Technometrics 51, 2009). In simulated sweeps of three parameters fANOVA put the
# right one first in 4 of 12 with two trials for each, in 10 of 12 with six, and in all 12 with ten.
_TRIALS_PER_PARAMETER = 10


def write_report(summary: SweepSummary, out: str | Path) -> Path:
    """Write the report of a sweep, finished or not, into the folder ``out``; see :func:`make_report`.

    Returns:
        The path of index.html.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full; the old files, if any, are intact.
    """
    return make_report(summary, Path(out)).write(Path(out))[-1]


def make_report(summary: SweepSummary, out: Path) -> Report:
    """Make the report of a sweep, finished or not, for the folder ``out``.

    It has index.html, runs.csv (a row for each trial and confirming run), epochs.csv (the metric after
    each epoch of a trial), confirmed.csv (a row for each confirmed setting), report.json (everything),
    best.yaml (the winner, as a recipe for ``ecanet train`` and ``ecanet compare``) and PNG files.
    """
    weights = importance(summary)
    winner = summary.winner()
    recipe = winner and best_recipe(summary, winner, out / "best.yaml")
    confirmed = confirmed_rows(summary)
    drawn = charts(summary, weights)
    slices = [chart.name for chart in drawn if chart.name.startswith("slice-")]
    return Report(
        summary,
        template="sweep.html.j2",
        context=_context(summary, weights, recipe),
        tables={"runs": run_rows(summary), "epochs": epoch_rows(summary), "confirmed": confirmed},
        numbers=_numbers(summary, weights, confirmed),
        charts=drawn,
        images={"history": ["history"], "importance": ["importance"], "slices": slices[:6]},
        environments=summary.environments,
        files={"best.yaml": recipe} if recipe else {},
    )


def importance(summary: SweepSummary) -> dict[str, float] | None:
    """Return each parameter's share of the metric's variance over the searched space.

    None from fewer trials than :func:`importance_needs`, and where the metric does not vary.

    fANOVA: Hutter, Hoos and Leyton-Brown, An Efficient Approach for Assessing Hyperparameter
    Importance, ICML 2014, as Optuna has it. Metrics beyond :func:`outlier_cutoff` count as equal to
    it: one diverged trial would explain everything. At most 500 trials are used, evenly spaced.
    """
    judged = [trial for trial in summary.trials if trial.judged]
    used = judged[:: math.ceil(len(judged) / _FITTED) or 1]
    cutoff = outlier_cutoff(summary)
    clip: Any = max if summary.maximize else min
    values = [t.metric if cutoff is None else clip(t.metric, cutoff) for t in used]
    varied = {
        name: distribution
        for name, distribution in summary.distributions.items()
        if len({repr(t.params[name]) for t in used}) > 1
    }
    if not varied or len(judged) < importance_needs(summary) or np.ptp(values) == 0:
        return None
    study = optuna.create_study(direction="maximize" if summary.maximize else "minimize")
    for t, value in zip(used, values, strict=True):
        params = {name: t.params[name] for name in varied}
        study.add_trial(optuna.create_trial(params=params, distributions=varied, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    return {name: float(found.get(name, 0.0)) for name in summary.parameters}


def importance_needs(summary: SweepSummary) -> int:
    """Return the number of finished trials from which importance is computed."""
    return _TRIALS_PER_PARAMETER * len(summary.parameters)


def best_recipe(summary: SweepSummary, winner: str, path: Path) -> str:
    """Return the winner's settings as a recipe, with a header of what it is and how it is used."""
    trial = next(t for t in summary.trials if t.name == winner)
    confirmed, metric = summary.ranked_confirmed(), summary.judged_by
    modules = dict.fromkeys(["none", *summary.recipes[winner]["attention"]])
    lines = [
        f"The best settings of the sweep of {summary.title}: {format_values(trial.values)}",
        f"Command:  {metric.program} train --recipe {path}",
        f"Compare:  {metric.program} compare --recipe {path} --attention {','.join(modules)}",
        f"Trial {trial.name}: {format_metrics(summary, trial)} on the {metric.selection}.",
    ]
    if confirmed:
        lines.append(
            f"Over {len(confirmed[0].records)} fresh seeds: {metric.name} "
            f"{format_mean_sd(metric.key, confirmed[0].finals(metric.key))}."
        )
    return recipe_text(lines, summary.recipes[winner])


# Sentences


def answer(summary: SweepSummary) -> list[str]:
    """Return the result in sentences; the first has the best settings."""
    ranked, confirmed = summary.ranked(), summary.ranked_confirmed()
    winner = best_trial(summary)
    if not ranked or not winner:
        return ["No trial has finished with a result yet, so there is nothing to choose from."]
    best, metric = ranked[0], summary.judged_by
    among = f"best of {len(ranked)} finished trials" if len(ranked) > 1 else "only finished trial"
    lines = [
        f"Best settings: {format_values(winner.values)}.",
        f"{best.name} is the {among}, with {format_metrics(summary, best)} on the {metric.selection}.",
    ]
    if not confirmed:
        return [
            *lines,
            f"That is a single run with seed {summary.seed}, and the best of many trials is usually lucky: "
            "--confirm 3 trains the best settings again with fresh seeds and tests them.",
        ]
    first = confirmed[0]
    over = counted(len(first.records), "fresh seed")
    among = f", the best of the {len(confirmed)} settings confirmed," if len(confirmed) > 1 else ""
    results = " and ".join(
        f"a {column_name(column)} of {format_mean_sd(column, first.finals(column))}"
        for column in dict.fromkeys((metric.curve_key, metric.key))
    )
    return [*lines, f"Trained again with {over}, {first.trial}{among} has {results}."]


def best_trial(summary: SweepSummary) -> Trial | None:
    """Return the trial with the best settings; None while no trial has finished with a result."""
    return next((trial for trial in summary.trials if trial.name == summary.winner()), None)


def format_metrics(summary: SweepSummary, trial: Trial) -> str:
    """Return a trial's metrics, what is optimized first: ``loss 0.3120 and accuracy 90.00 %``."""
    columns = sorted(summary.judged_by.columns, key=lambda column: column != summary.metric)
    return " and ".join(_named_metric(trial, column) for column in columns)


def _named_metric(trial: Trial, column: str) -> str:
    name = column_name(column).removeprefix("validation ")
    return f"{name} {format_metric(column, trial.final.get(column))}"


def format_metric(column: str, value: float | None) -> str:
    """Return a metric as text: shares in percent, losses with four decimals."""
    return "—" if value is None else metrics.format_metric(column, value)


def format_mean_sd(column: str, values: Sequence[float]) -> str:
    """Return ``92.31 ± 0.20 %``, without the standard deviation where there is none."""
    if not values:
        return "—"
    if len(values) == 1:
        return format_metric(column, values[0])
    sd = format_metric(column, stdev(values))
    return f"{format_metric(column, fmean(values)).removesuffix(' %')} ± {sd}"


# Tables


def run_rows(summary: SweepSummary) -> list[dict[str, Any]]:
    """A row for each trial, in order, then one for each confirming run; unknown values are empty."""

    def row(
        run: str, values: dict[str, Any], final: Row, epochs: int, **more: Any
    ) -> dict[str, Any]:
        return {
            "run": run,
            "state": "finished",
            "confirms": None,
            "seed": values.get("seed", summary.seed),
            **dict.fromkeys(summary.parameters),
            **values,
            **without_nan({n: final.get(n, math.nan) for n in summary.judged_by.measured}),
            "epochs": epochs,
            "train_seconds": final.get("train_seconds"),
            "error": None,
            **more,
        }

    trials = [
        row(t.name, t.values, t.final, t.epochs, state=t.state, error=t.error)
        for t in summary.trials
    ]
    return trials + [
        row(f"{c.trial}-seed{seed}", c.values, r.final, len(r.epochs), confirms=c.trial, seed=seed)
        for c in summary.confirmed
        for seed, r in c.records.items()
    ]


def epoch_rows(summary: SweepSummary) -> list[dict[str, Any]]:
    """A row for each epoch of each trial: the metric after it."""
    return [
        {"run": trial.name, "epoch": epoch, **without_nan({summary.metric: value})}
        for trial in summary.trials
        for epoch, value in enumerate(trial.curve)
    ]


def confirmed_rows(summary: SweepSummary) -> list[dict[str, Any]]:
    """A row for each confirmed setting, the best first."""
    rows, key = [], summary.judged_by.key
    unranked = [c for c in summary.confirmed if not c.finals(summary.metric)]
    for c in [*summary.ranked_confirmed(), *unranked]:
        row: dict[str, Any] = {"trial": c.trial, **c.values, "runs": len(c.records)}
        for column in summary.judged_by.measured:
            values = c.finals(column)
            row[f"{column}_mean"] = float(np.mean(values)) if values else None
            row[f"{column}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        interval = mean_interval(c.finals(key), summary.judged_by.most)
        row[f"{key}_low"], row[f"{key}_high"] = interval or (None, None)
        rows.append(row)
    return rows


def _numbers(
    summary: SweepSummary, weights: dict[str, float] | None, confirmed: list[dict[str, Any]]
) -> dict[str, Any]:
    trials = ({k: v for k, v in asdict(t).items() if k != "params"} for t in summary.trials)
    return {
        "answer": answer(summary),
        "units": {
            summary.judged_by.plural: summary.judged_by.stored_unit,
            "losses": summary.judged_by.loss_unit,
            "importance": "share of the variance of the metric, fractions of 1",
            **UNITS,
        },
        "method": summary.method,
        "metric": summary.metric,
        "goal": "maximize" if summary.maximize else "minimize",
        "winner": summary.winner(),
        "importance": weights,
        "confirmed": confirmed,
        "trials": [trial | trial.pop("final") for trial in trials],
        "runs": [record.to_dict() for c in summary.confirmed for record in c.records.values()],
        "skipped_images": summary.skipped_images,
        "sweep": summary.sweep,
        "attention": summary.attention,
        "seed": summary.seed,
        "settings": summary.settings,
        "environment": summary.environment,
    }


# The page


def _context(
    summary: SweepSummary, weights: dict[str, float] | None, recipe: str | None
) -> dict[str, Any]:
    ranked, metric = summary.ranked(), summary.judged_by
    states = [trial.state for trial in summary.trials]

    def interval_note(c: Confirmed) -> str:
        values = c.finals(metric.key)
        if interval := mean_interval(values, metric.most):
            return f"95 % interval {metric.interval(*interval)}"
        return f"no interval: {no_interval(values, 2)}"

    def in_trial(c: Confirmed) -> list[str]:
        trial = next(trial for trial in summary.trials if trial.name == c.trial)
        first, *others = metric.columns
        named = [_named_metric(trial, column) for column in others]
        return [format_metric(first, trial.final.get(first)), *named]

    return {
        "metric": metric,
        "axes": len(scales(summary, weights)) if ranked else 0,
        "answer": answer(summary),
        "best": best_trial(summary),
        "importance_needs": importance_needs(summary),
        "finished": states.count("finished"),
        "early": states.count("ended early"),
        "open_runs": [s for s in ("waiting", "running", "not run") if s in states],
        "count": states.count,
        "failures": _failures(summary),
        "blank": [t.name for t in summary.trials if t.state == "finished" and not t.judged],
        "confirm_failures": [
            f"{c.trial}, seed {seed}: {error}"
            for c in summary.confirmed
            for seed, error in c.failed.items()
        ],
        "ranked_confirmed": summary.ranked_confirmed(),
        "columns": list(dict.fromkeys((metric.key, *metric.columns))),
        "interval_note": interval_note,
        "in_trial": in_trial,
        "ranked": ranked[:_ROWS],
        "all_ranked": len(ranked),
        "column_name": column_name,
        "format_mean_sd": format_mean_sd,
        "format_metric": format_metric,
        "format_value": format_value,
        "format_values": format_values,
        "recipe": recipe,
        "settings": {
            name: value
            for name, value in flat(summary.settings).items()
            if name not in summary.parameters.values()
        },
        "sweep": flat(summary.sweep),
    }


def _failures(summary: SweepSummary) -> list[tuple[str, list[str]]]:
    """Return the errors of failed trials, each with its trials, the most frequent first."""
    found: dict[str, list[str]] = {}
    for trial in summary.trials:
        if trial.state == "failed":
            found.setdefault(trial.error or "no reason is known", []).append(trial.name)
    return sorted(found.items(), key=lambda item: -len(item[1]))
