"""The report of a sweep: one page that opens offline, the same numbers as files, the winning recipe."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from ecanet.experiments.analysis.statistics import mean_interval, no_interval
from ecanet.experiments.analysis.sweep import (
    Confirmed,
    SweepSummary,
    Trial,
    short,
    spread_text,
    told,
)
from ecanet.experiments.report.page import (
    csv_text,
    elsewhere,
    flat,
    json_text,
    page_templates,
    write_files,
)
from ecanet.experiments.report.sweep_charts import fence, scales

UNITS = {
    "accuracies": "fractions of 1",
    "losses": "nats",
    "train_seconds": "seconds",
    "importance": "share of the variance of the metric, fractions of 1",
}
# Trials in the page's table; runs.csv has all of them. Trials that importance is reckoned from.
_ROWS, _FITTED = 100, 500


def write_report(summary: SweepSummary, out: str | Path) -> Path:
    """Write the report of a sweep, finished or not, into the folder ``out``.

    Writes index.html, runs.csv (a row a trial, or a run that confirms), epochs.csv
    (the metric after each epoch of a trial), confirmed.csv (a row for each settings that were trained
    again), report.json (everything), best.yaml (the winner, as a recipe
    for ``ecanet train`` and ``ecanet compare``) and PNG files, each atomically, the page last.

    Returns:
        The path of index.html.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full; the old files, if any, are intact.
    """
    from ecanet.experiments.report.sweep_charts import pictures

    out = Path(out)
    weights = importance(summary)
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    files: dict[str, str | bytes] = {
        "runs.csv": csv_text(_run_rows(summary)),
        "epochs.csv": csv_text(_epoch_rows(summary)),
        "confirmed.csv": csv_text(_confirmed_rows(summary)),
        "report.json": json_text(_everything(summary, weights, written)),
        **pictures(summary, weights),
    }
    winner = summary.winner()
    if winner is not None:
        files["best.yaml"] = best_recipe(summary, winner, out / "best.yaml")
    files["index.html"] = _page(summary, weights, written, sorted(files), files.get("best.yaml"))
    write_files(out, files)
    return out / "index.html"


def importance(summary: SweepSummary) -> dict[str, float] | None:
    """Return each parameter's share of the metric's variance over the searched space; None from too few.

    fANOVA: Hutter, Hoos and Leyton-Brown, An Efficient Approach for Assessing Hyperparameter
    Importance, ICML 2014, as Optuna has it. Metrics beyond :func:`fence` count as lying on it: one
    diverged trial would explain everything. At most 500 trials are used, at even distances.
    """
    judged = [trial for trial in summary.trials if trial.judged]
    used = judged[:: math.ceil(len(judged) / _FITTED) or 1]
    edge = fence(summary)
    clip = (max if summary.maximize else min) if edge is not None else None
    values = [clip(t.metric, edge) if clip else t.metric for t in used]  # type: ignore[type-var]
    varied = {
        name: distribution
        for name, distribution in summary.distributions.items()
        if len({repr(t.params[name]) for t in used}) > 1
    }
    if len(used) < 4 or not varied or np.ptp(np.array(values, dtype=float)) == 0:
        return None
    study = optuna.create_study(direction="maximize" if summary.maximize else "minimize")
    study.add_trials(
        [
            optuna.create_trial(
                params={name: t.params[name] for name in varied},
                distributions=varied,
                value=float(value),  # type: ignore[arg-type]
            )
            for t, value in zip(used, values, strict=True)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    return {name: float(found.get(name, 0.0)) for name in summary.parameters}


def best_recipe(summary: SweepSummary, winner: str, path: Path) -> str:
    """Return the winner's settings as a recipe, with a header of what it is and how it is used."""
    import yaml

    trial = next(t for t in summary.trials if t.name == winner)
    standing, module = summary.standing(), summary.recipes[winner]["attention"][0]
    lines = [
        f"The best settings of the sweep of {summary.title}: {told(trial.values)}",
        f"Command:  ecanet train --recipe {path}",
        f"Compare:  ecanet compare --recipe {path} --attention none,{module}",
        f"Trial {trial.name}: {summary.told_metrics(trial)} on the validation split.",
    ]
    if standing:
        lines.append(
            f"Over {len(standing[0].records)} fresh seeds: test accuracy "
            f"{spread_text(standing[0].finals('test_accuracy'))}."
        )
    header = "\n".join("# " + line.replace("\n", " ") for line in lines)
    return f"{header}\n{yaml.safe_dump(summary.recipes[winner], sort_keys=False)}"


# Numbers


def _run_rows(summary: SweepSummary) -> list[dict[str, Any]]:
    """A row a trial, in order, then a row for each run that confirms; unknown values are empty."""
    blank = dict.fromkeys(summary.parameters)
    rows = [
        {
            "run": t.name,
            "state": t.state,
            "confirms": None,
            "seed": t.values.get("seed", summary.seed),
            **(blank | t.values),
            "val_loss": _known(t.val_loss),
            "val_accuracy": _known(t.val_accuracy),
            "test_accuracy": None,
            "test_loss": None,
            "epochs": t.epochs,
            "train_seconds": _known(t.train_seconds),
            "error": t.error,
        }
        for t in summary.trials
    ]
    for c in summary.confirmed:
        for seed, record in c.records.items():
            final = record.final
            assert final is not None
            rows.append(
                {
                    "run": f"{c.trial}-seed{seed}",
                    "state": "finished",
                    "confirms": c.trial,
                    "seed": seed,
                    **(blank | c.values),
                    "val_loss": _known(final.val_loss),
                    "val_accuracy": _known(final.val_accuracy),
                    "test_accuracy": _known(final.test_accuracy),
                    "test_loss": _known(final.test_loss),
                    "epochs": len(record.epochs),
                    "train_seconds": final.train_seconds,
                    "error": None,
                }
            )
    return rows


def _epoch_rows(summary: SweepSummary) -> list[dict[str, Any]]:
    return [
        {"run": trial.name, "epoch": epoch, summary.metric: _known(value)}
        for trial in summary.trials
        for epoch, value in enumerate(trial.curve)
    ]


def _confirmed_rows(summary: SweepSummary) -> list[dict[str, Any]]:
    """A row for each confirmed settings, the best first."""
    rows = []
    for c in [*summary.standing(), *(c for c in summary.confirmed if not c.finals(summary.metric))]:
        row: dict[str, Any] = {"trial": c.trial, **c.values, "runs": len(c.records)}
        for metric in ("val_loss", "val_accuracy", "test_accuracy", "test_loss"):
            values = c.finals(metric)
            row[f"{metric}_mean"] = float(np.mean(values)) if values else None
            row[f"{metric}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        low, high = mean_interval(c.finals("test_accuracy")) or (None, None)
        rows.append({**row, "test_accuracy_low": low, "test_accuracy_high": high})
    return rows


def _everything(
    summary: SweepSummary, weights: dict[str, float] | None, written: str
) -> dict[str, Any]:
    return {
        "title": summary.title,
        "written": written,
        "answer": summary.answer(),
        "units": UNITS,
        "method": summary.method,
        "metric": summary.metric,
        "goal": "maximize" if summary.maximize else "minimize",
        "winner": summary.winner(),
        "importance": weights,
        "confirmed": _confirmed_rows(summary),
        "trials": [
            {k: v for k, v in asdict(trial).items() if k != "params"} for trial in summary.trials
        ],
        "runs": [record.to_dict() for c in summary.confirmed for record in c.records.values()],
        "skipped_images": summary.skipped_images,
        "sweep": summary.sweep,
        "attention": summary.attention,
        "seed": summary.seed,
        "settings": summary.settings,
        "environment": summary.environment,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


# The page


def _page(
    summary: SweepSummary,
    weights: dict[str, float] | None,
    written: str,
    files: list[str],
    recipe: str | bytes | None,
) -> str:
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from ecanet.experiments.report.sweep_charts import charts

    drawn = {chart.name: chart for chart in charts(summary, weights)}
    for chart in drawn.values():
        chart.html = Markup(chart.html)
    ranked = summary.ranked()
    states = [trial.state for trial in summary.trials]
    environment = page_templates()
    environment.filters.update(short=short, spread=spread_text, told=told)
    return environment.get_template("sweep.html.j2").render(
        summary=summary,
        charts=drawn,
        axes=len(scales(summary, weights)) if ranked else 0,
        slices=[name for name in drawn if name.startswith("slice-")],
        answer=summary.answer(),
        finished=states.count("finished"),
        early=states.count("ended early"),
        open_runs=[s for s in ("waiting", "under way", "not run") if s in states],
        count=states.count,
        failures=_failures(summary),
        blank=[t.name for t in summary.trials if t.state == "finished" and not t.judged],
        standing=summary.standing(),
        confirm_failures=[
            f"{c.trial}, seed {seed}: {error}"
            for c in summary.confirmed
            for seed, error in c.failed.items()
        ],
        interval=lambda c: mean_interval(c.finals("test_accuracy")),
        no_interval=no_interval,
        mean_loss=_mean_loss,
        best_values=_trial_values(summary),
        ranked=ranked[:_ROWS],
        all_ranked=len(ranked),
        recipe=recipe,
        sweep=flat(summary.sweep),
        settings=flat(summary.settings),
        environment=flat(summary.environment),
        elsewhere=elsewhere(summary.environments),
        device=summary.environment.get("device"),
        written=written,
        files=files,
        plotly=Markup(get_plotlyjs()),
    )


def _failures(summary: SweepSummary) -> list[tuple[str, list[str]]]:
    """Return the errors of failed trials, each with the trials it befell, the most frequent first."""
    found: dict[str, list[str]] = {}
    for trial in summary.trials:
        if trial.state == "failed":
            found.setdefault(trial.error or "no reason is known", []).append(trial.name)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _mean_loss(found: Confirmed) -> str:
    values = found.finals("val_loss")
    if not values:
        return "—"
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _trial_values(summary: SweepSummary) -> dict[str, Trial]:
    chosen = {c.trial for c in summary.confirmed}
    return {t.name: t for t in summary.trials if t.name in chosen}
