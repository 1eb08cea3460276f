"""The report of a study: one page that opens offline, and the same numbers as CSV, JSON and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ecanet.experiments.analysis.compare import PRECISIONS, Metric, StudySummary
from ecanet.experiments.analysis.notices import notices
from ecanet.experiments.analysis.statistics import (
    LEVEL,
    ModuleStatistics,
    StudyStatistics,
    coverage_note,
    format_p,
    has_diverged,
    no_interval,
    points,
    study_statistics,
)
from ecanet.experiments.report.page import (
    csv_text,
    elsewhere,
    flat,
    json_text,
    minus,
    page_templates,
    write_files,
)
from ecanet.record import Cost, DetectionFinal, Speed

UNITS = {
    "train and inference speeds": "images per second",
    "macs": "multiply-adds of one image's forward pass",
    "train_peak_bytes": "bytes",
    "train_seconds, seconds": "seconds",
    "epoch": "counted from 0",
}


def write_report(summary: StudySummary, out: str | Path) -> Path:
    """Write the report of a study, finished or not, into the folder ``out``.

    Writes index.html, results.csv (a row a module), runs.csv (a row a run), epochs.csv (a row an
    epoch), report.json (everything) and PNG files, each atomically, the page last.

    Returns:
        The path of index.html.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full; the old files, if any, are intact.
    """
    from ecanet.experiments.report.compare_charts import pictures

    out = Path(out)
    statistics = study_statistics(summary)
    rows = result_rows(summary, statistics)
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    files: dict[str, str | bytes] = {
        "results.csv": csv_text(rows),
        "runs.csv": csv_text(_run_rows(summary)),
        "epochs.csv": csv_text(_epoch_rows(summary)),
        "report.json": json_text(_everything(summary, statistics, rows, written)),
        **pictures(summary, statistics),
    }
    files["index.html"] = _page(summary, statistics, rows, written, sorted(files))
    write_files(out, files)
    return out / "index.html"


# Numbers


def result_rows(summary: StudySummary, statistics: StudyStatistics) -> list[dict[str, Any]]:
    """Return what is known of each module as one flat row: accuracy, comparison, cost.

    Accuracies are fractions of 1, speeds images a second, memory bytes; unknown values are None.
    """
    costs = {cost.attention: cost for cost in summary.costs}
    base = costs.get(statistics.baseline)
    failed = [run["attention"] for run in summary.failed]
    return [
        {
            **_score_row(module, statistics.metric),
            "failed_runs": failed.count(module.attention),
            **_cost_row(costs.get(module.attention), base),
        }
        for module in statistics.modules
    ]


def _score_row(module: ModuleStatistics, metric: Metric) -> dict[str, Any]:
    c = module.comparison
    low, high = module.interval or (None, None)
    difference_low, difference_high = (c.interval if c else None) or (None, None)
    return {
        "attention": module.attention,
        "finding": c.finding if c else "baseline",
        "verdict": c.verdict if c else "",
        "runs": len(module.accuracies),
        f"{metric.column}_mean": module.mean,
        f"{metric.column}_sd": module.sd,
        f"{metric.column}_low": low,
        f"{metric.column}_high": high,
        "paired_seeds": len(c.seeds) if c else None,
        "difference_mean": c.mean if c else None,
        "difference_low": difference_low,
        "difference_high": difference_high,
        "p": c.p if c else None,
        "p_corrected": c.p_corrected if c else None,
        "smallest_p_corrected": c.smallest_p if c else None,
        "diverged_runs": len(module.diverged),
        f"runs_without_{metric.short}": len(module.without_accuracy),
    }


def _cost_row(cost: Cost | None, base: Cost | None) -> dict[str, Any]:
    def speed(name: str) -> dict[str, Any]:
        found: Speed | None = getattr(cost, name) if cost else None
        other: Speed | None = getattr(base, name) if base else None
        return {
            f"{name}_images_per_second": found.median if found else None,
            f"{name}_images_per_second_low": found.low if found else None,
            f"{name}_images_per_second_high": found.high if found else None,
            f"{name}_ratio": found.median / other.median if found and other else None,
        }

    return {
        "parameters": cost.parameters if cost else None,
        "attention_parameters": cost.attention_parameters if cost else None,
        "parameters_over_baseline": cost.parameters - base.parameters if cost and base else None,
        "macs": cost.macs if cost else None,
        "macs_over_baseline": cost.macs - base.macs if cost and base else None,
        **speed("train"),
        **speed("inference"),
        "train_peak_bytes": cost.train_peak_bytes if cost else None,
        "train_peak_ratio": cost.train_peak_bytes / base.train_peak_bytes
        if cost and base and cost.train_peak_bytes and base.train_peak_bytes
        else None,
        "batch_size": cost.batch_size if cost else None,
        "device": cost.device if cost else None,
        "precision": cost.precision if cost else None,
    }


def _run_rows(summary: StudySummary) -> list[dict[str, Any]]:
    known = (_flat_row(record.final) for record in summary.records if record.final)
    blank = dict.fromkeys(next(known, (summary.metric.column, "epoch", "train_seconds")), None)
    finished = [
        {
            "attention": record.attention,
            "seed": record.seed,
            "state": "finished",
            **(_flat_row(record.final) if record.final else blank),
            "diverged": has_diverged(record),
            "error": None,
        }
        for record in summary.records
    ]
    failed = [
        {**run, "state": "failed", **blank, "diverged": None, "error": run["error"]}
        for run in summary.failed
    ]
    missing = [
        {"attention": a, "seed": s, "state": "unfinished", **blank, "diverged": None, "error": None}
        for a, s in unfinished(summary)
    ]
    return finished + failed + missing


def _epoch_rows(summary: StudySummary) -> list[dict[str, Any]]:
    return [
        {"attention": record.attention, "seed": record.seed, **_flat_row(epoch)}
        for record in summary.records
        for epoch in record.epochs
    ]


def _flat_row(metrics: Any) -> dict[str, Any]:
    """Return the fields of an epoch's or a run's metrics; COCO's figures a column each."""
    row = asdict(metrics)
    return {**row.pop("figures", {}), **row}


def breakdown(summary: StudySummary) -> dict[str, dict[str, list[tuple[float, float | None]]]]:
    """Return COCO's precisions, of boxes and of masks, of each module of a study of detectors.

    A pair of mean and standard deviation (None of a single run) for each of
    :data:`ecanet.experiments.analysis.compare.PRECISIONS`; empty for a study of classifiers.
    """
    tables: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    for kind in ("box", "mask"):
        for attention in summary.attention:
            found = [
                [record.final.figures[f"{kind}_{name}"] for name in PRECISIONS]
                for record in summary.records
                if record.attention == attention
                and isinstance(record.final, DetectionFinal)
                and f"{kind}_AP" in record.final.figures
            ]
            if found:
                columns = np.array(found).T
                tables.setdefault(kind, {})[attention] = [
                    (float(c.mean()), float(c.std(ddof=1)) if len(c) > 1 else None) for c in columns
                ]
    return tables


def unfinished(summary: StudySummary) -> list[tuple[str, int]]:
    """Return the planned runs that have neither finished nor failed."""
    done = {(record.attention, record.seed) for record in summary.records}
    done |= {(run["attention"], run["seed"]) for run in summary.failed}
    runs = [(a, s) for a in summary.attention for s in summary.seeds]
    return [run for run in runs if run not in done]


def _everything(
    summary: StudySummary, statistics: StudyStatistics, rows: list[dict[str, Any]], written: str
) -> dict[str, Any]:
    return {
        "title": summary.title,
        "written": written,
        "answer": [opening(statistics), *answer(statistics, rows)],
        "notices": notices(summary, statistics),
        "notes": [*statistics.notes, *filter(None, [coverage_note(statistics)])],
        "units": {
            f"{summary.metric.plural}, their differences and intervals": "fractions of 1",
            "losses": summary.metric.loss_unit,
            **UNITS,
        },
        "level": LEVEL,
        "baseline": statistics.baseline,
        "attention": summary.attention,
        "seeds": summary.seeds,
        "results": rows,
        "statistics": [asdict(module) for module in statistics.modules],
        "costs": [cost.to_dict() for cost in summary.costs],
        "runs": [record.to_dict() for record in summary.records],
        "failed": summary.failed,
        "unfinished": [{"attention": a, "seed": s} for a, s in unfinished(summary)],
        "skipped_images": summary.skipped_images,
        "built_in_attention": summary.built_in,
        "majority_share": summary.majority,
        "settings": summary.settings,
        "environment": summary.environment,
    }


# Words


def opening(statistics: StudyStatistics) -> str:
    """Return the sentence that the answer begins with."""
    found = [module.comparison for module in statistics.modules if module.comparison]
    base = statistics.modules[0] if statistics.modules else None
    if base is None or base.mean is None:
        return "No run of the baseline is finished yet: there is nothing to compare with."
    start = f"The baseline, {base.attention}, reaches {score_text(base)} {statistics.metric.place}."
    told = [
        f"{number} {words}"
        for finding, words in (
            ("higher", "higher"),
            ("lower", "lower"),
            ("no evidence", "without evidence of a difference"),
            ("too few seeds", "with too few seeds to tell"),
            ("no data", "with nothing to compare"),
        )
        if (number := sum(c.finding == finding for c in found))
    ]
    if not told:
        return start
    noun = "the other module" if len(found) == 1 else f"the {len(found)} other modules"
    return f"{start} Of {noun}: {', '.join(told)}."


def answer(statistics: StudyStatistics, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence a module: how it compares with the baseline, and what it costs."""
    return [
        f"{row['attention']}: {row['verdict']}.{_price(row, statistics.baseline)}"
        for row in rows
        if row["finding"] != "baseline"
    ]


def _price(row: dict[str, Any], baseline: str) -> str:
    added = row["parameters_over_baseline"]
    if added is None:
        return ""
    return (
        f" Its cost against {baseline}: {minus(f'{added:+,}')} parameters, "
        f"{row['train_ratio']:.2f} × the training speed, "
        f"{row['inference_ratio']:.2f} × the inference speed."
    )


def score_text(module: ModuleStatistics) -> str:
    """Return ``92.31 ± 0.20 %``, without the spread where there is none to tell."""
    if module.mean is None:
        return "—"
    if module.sd is None:
        return f"{100 * module.mean:.2f} %"
    return f"{100 * module.mean:.2f} ± {100 * module.sd:.2f} %"


# The page


def _page(
    summary: StudySummary,
    statistics: StudyStatistics,
    rows: list[dict[str, Any]],
    written: str,
    files: list[str],
) -> str:
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from ecanet.experiments.report.compare_charts import charts, look

    environment = page_templates()
    environment.filters.update(points=points, p=format_p)
    drawn = {chart.name: chart for chart in charts(summary, statistics)}
    for chart in drawn.values():
        chart.html = Markup(chart.html)
    return environment.get_template("report.html.j2").render(
        summary=summary,
        statistics=statistics,
        modules=list(zip(statistics.modules, rows, strict=True)),
        looks=[look(i) for i in range(len(rows))],
        opening=opening(statistics),
        notices=notices(summary, statistics),
        price=lambda row: _price(row, statistics.baseline),
        metric=summary.metric,
        score_text=score_text,
        breakdown=breakdown(summary),
        precisions=PRECISIONS,
        no_interval=no_interval,
        coverage=coverage_note(statistics),
        charts=drawn,
        finished=sum(record.final is not None for record in summary.records),
        planned=len(summary.seeds) * len(summary.attention),
        unfinished=_by_module(unfinished(summary)),
        diverged=_by_module((m.attention, s) for m in statistics.modules for s in m.diverged),
        blank=_by_module((m.attention, s) for m in statistics.modules for s in m.without_accuracy),
        measured=_measured(summary.costs),
        settings=flat(summary.settings),
        environment=flat(summary.environment),
        elsewhere=elsewhere(record.environment for record in summary.records),
        device=summary.environment.get("device"),
        written=written,
        files=files,
        plotly=Markup(get_plotlyjs()),
    )


def _by_module(runs: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for attention, seed in runs:
        found.setdefault(attention, []).append(seed)
    return found


def _measured(costs: Sequence[Cost]) -> str:
    """Say how the costs were measured."""
    kinds = {(c.device, c.precision, c.batch_size, c.train.repeats) for c in costs}
    return "; ".join(
        f"{device}, {precision}, batches of {batch} images, {repeats} interleaved repeats"
        for device, precision, batch, repeats in sorted(kinds)
    )
