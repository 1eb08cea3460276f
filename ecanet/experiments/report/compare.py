"""The report of a comparison: its tables, its sentences, its page."""

from __future__ import annotations

import math
import operator
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ecanet.errors import percent
from ecanet.experiments.analysis.adequacy import Check, baseline_adequacy, failed
from ecanet.experiments.analysis.compare import (
    ACCURACY,
    BOX_AP,
    PRECISIONS,
    RECIPE,
    Metric,
    StudySummary,
)
from ecanet.experiments.analysis.images import OtherImages, other_images
from ecanet.experiments.analysis.notices import notices
from ecanet.experiments.analysis.recommendation import against, recommend
from ecanet.experiments.analysis.statistics import (
    Comparison,
    ModuleStatistics,
    StudyStatistics,
    has_diverged,
    no_interval,
    study_statistics,
)
from ecanet.experiments.report.answers import Thumbnails, prediction_report
from ecanet.experiments.report.compare_charts import charts
from ecanet.experiments.report.explain import explained_charts, summary_lines
from ecanet.experiments.report.methods import citations, methods, methods_files
from ecanet.experiments.report.page import UNITS, Report, flat, minus, recipe_text
from ecanet.experiments.report.papers import measured, paper_tables, table_files
from ecanet.experiments.report.style import module_style
from ecanet.explain.result import Explanation
from ecanet.metrics import METRICS, format_metric
from ecanet.record import Cost


def write_report(
    summary: StudySummary, out: str | Path, thumbnails: Thumbnails | None = None
) -> Path:
    """Write the report of a comparison, finished or not, into the folder ``out``; see :func:`make_report`.

    Returns:
        The path of index.html.

    Raises:
        UserError: the folder cannot be written.
        OSError: the disk is full; the old files, if any, are intact.
    """
    return make_report(summary, thumbnails).write(Path(out))[-1]


def make_report(
    summary: StudySummary,
    thumbnails: Thumbnails | None = None,
    explained: Explanation | None = None,
    folders: tuple[Path, Path] | None = None,
) -> Report:
    """Make the report of a comparison, finished or not.

    It has index.html, results.csv (a row for each module), runs.csv (each run), epochs.csv (each epoch),
    report.json (everything), recipe.yaml (its settings) and PNG files; and where the runs have kept their
    predictions per_class.csv, confusion.csv, reliability.csv and disagreements.csv.

    Args:
        thumbnails: of the test images, by name.
        explained: what the attention of its best runs does.
        folders: of the study and of its report, which commands on the page name.
    """
    statistics = study_statistics(summary)
    others = other_images(summary.answers, statistics)
    rows = result_rows(summary, statistics, others)
    predictions = None
    if summary.answers:
        predictions = prediction_report(summary.answers, summary.attention, thumbnails)
    paper = paper_tables(
        summary,
        statistics,
        rows,
        pairs=pair_table(statistics),
        metrics=all_metrics(summary),
        precisions=breakdown(summary),
    )
    adequacy = baseline_adequacy(summary)
    recommendation = recommend(summary, statistics, adequacy)
    if folders:
        recommendation = recommendation.at(*folders)
    paragraphs, sources = methods(summary, statistics, others), citations(summary)
    return Report(
        summary,
        template="compare.html.j2",
        context=_context(summary, statistics, rows, adequacy)
        | {"predictions": predictions, "other_images": others, "papers": paper}
        | {"methods": paragraphs, "citations": sources, "recommendation": recommendation}
        | {"study": shlex.quote(str(folders[0])) if folders else "STUDY"}
        | {
            "explained": explained,
            "explained_lines": summary_lines(explained) if explained else [],
        },
        tables={"results": rows, "runs": run_rows(summary), "epochs": epoch_rows(summary)}
        | (predictions.tables if predictions else {}),
        numbers=_numbers(summary, statistics, rows, adequacy)
        | {"recommendation": asdict(recommendation)}
        | {"other_images": {name: asdict(found) for name, found in others.items()}},
        charts=charts(summary, statistics)
        + (predictions.charts if predictions else [])
        + (explained_charts(explained) if explained else []),
        images={
            "points": ["points", "differences"],
            "pareto": ["pareto-training", "pareto-inference"],
            "reliability": ["reliability", "confidence"],
            "classes": ["classes"],
            "confusion": predictions.matrices if predictions else [],
        },
        environments=[record.environment for record in summary.records],
        files={RECIPE: _recipe(summary)} if summary.recipe else {},
        texts=table_files(paper) | {"methods": methods_files(paragraphs, sources)},
    )


def _recipe(summary: StudySummary) -> str:
    # Programs have to be named by the command as well.
    named = "".join(
        f"--{name} {shlex.quote(summary.recipe[name])} "
        for name in ("trainer", "command", "network")
        if summary.recipe.get(name)
    )
    command = f"{summary.metric.program} compare {named}--recipe {RECIPE} --out FOLDER"
    lines = [f"The comparison of {summary.title}.", f"Command:  {command}"]
    seeds, first = sorted(summary.seeds), summary.recipe["first_seed"]
    if seeds != list(range(first, first + len(seeds))):
        lines.append(f"Its own seeds have gaps: {', '.join(map(str, seeds))}.")
    return recipe_text(lines, summary.recipe)


# Numbers


def result_rows(
    summary: StudySummary,
    statistics: StudyStatistics,
    others: Mapping[str, OtherImages],
) -> list[dict[str, Any]]:
    """Return what is known of each module as one flat row: metric, comparison, cost.

    Shares are fractions of 1, speeds images per second, memory bytes; unknown values are None.
    """
    costs = {cost.attention: cost for cost in summary.costs}
    base = costs.get(statistics.baseline)
    failed = [run["attention"] for run in summary.failed]
    return [
        {
            **_score_row(module, statistics.metric),
            **_images_row(others.get(module.attention)),
            "failed_runs": failed.count(module.attention),
            **_cost_row(costs.get(module.attention), base),
            "training_length": _training_length(summary, module.attention),
        }
        for module in statistics.modules
    ]


def _training_length(summary: StudySummary, arm: str) -> float:
    """Return how long an arm is trained, relative to the baseline."""
    control = summary.controls.get(arm)
    return control.reached if control and control.resource == "time" else 1.0


def _score_row(module: ModuleStatistics, metric: Metric) -> dict[str, Any]:
    c = module.comparison
    low, high = module.interval or (None, None)
    difference_low, difference_high = (c.interval if c else None) or (None, None)
    return {
        "attention": module.attention,
        "finding": c.finding if c else "baseline",
        "verdict": c.verdict if c else "",
        "runs": len(module.accuracies),
        f"{metric.key}_mean": module.mean,
        f"{metric.key}_sd": module.sd,
        f"{metric.key}_low": low,
        f"{metric.key}_high": high,
        "common_seeds": len(c.seeds) if c else None,
        "difference_mean": c.mean if c else None,
        "difference_low": difference_low,
        "difference_high": difference_high,
        "difference_standard_error": c.standard_error if c else None,
        "seed_correlation": c.correlation if c else None,
        "pairing": c.pairing if c else None,
        "seeds_needed": c.seeds_needed if c else None,
        "diverged_runs": len(module.diverged),
        f"runs_without_{metric.short.replace(' ', '_')}": len(module.without_accuracy),
    }


def _images_row(found: OtherImages | None) -> dict[str, Any]:
    low, high = (found.interval if found else None) or (None, None)
    return {"images_low": low, "images_high": high}


def _cost_row(cost: Cost | None, base: Cost | None) -> dict[str, Any]:
    def value(name: str, of: Cost | None = cost) -> Any:
        return operator.attrgetter(name)(of) if of else None

    def ratio(name: str) -> float | None:
        own, other = value(name), value(name, base)
        return own / other if own and other else None

    def speed(name: str) -> dict[str, Any]:
        return {
            f"{name}_images_per_second": value(f"{name}.median"),
            f"{name}_images_per_second_low": value(f"{name}.low"),
            f"{name}_images_per_second_high": value(f"{name}.high"),
            f"{name}_ratio": ratio(f"{name}.median"),
        }

    return {
        "parameters": value("parameters"),
        "attention_parameters": value("attention_parameters"),
        "parameters_over_baseline": cost.parameters - base.parameters if cost and base else None,
        "macs": value("macs"),
        "macs_over_baseline": cost.macs - base.macs if cost and base else None,
        **speed("train"),
        **speed("inference"),
        "train_peak_bytes": value("train_peak_bytes"),
        "train_peak_ratio": ratio("train_peak_bytes"),
        **{name: value(name) for name in ("batch_size", "device", "precision")},
    }


def epoch_rows(summary: StudySummary) -> list[dict[str, Any]]:
    """Return the metrics after each epoch of the finished runs, a row for each epoch."""
    return [
        {"attention": record.attention, "seed": record.seed, **epoch}
        for record in summary.records
        for epoch in record.epochs
    ]


def run_rows(summary: StudySummary) -> list[dict[str, Any]]:
    """Return a row for each run: its state, its final metrics, its error."""
    blank = dict.fromkeys((summary.metric.key, "epoch", "train_seconds"))
    rows = [
        {
            "attention": record.attention,
            "seed": record.seed,
            "state": "finished",
            **blank,
            **record.final,
            "diverged": has_diverged(record),
            "error": None,
        }
        for record in summary.records
    ]
    rows += [{**run, "state": "failed", **blank} for run in summary.failed]
    return rows + [
        {"attention": a, "seed": s, "state": "unfinished", **blank} for a, s in summary.unfinished
    ]


def breakdown(summary: StudySummary) -> dict[str, dict[str, list[tuple[float, float | None]]]]:
    """Return COCO's precisions of boxes and masks for each module of a study of detectors.

    A pair of mean and standard deviation (None for a single run) for each of
    :data:`ecanet.experiments.analysis.compare.PRECISIONS`; empty for a study of classifiers.
    """
    tables: dict[str, dict[str, list[tuple[float, float | None]]]] = {}
    for kind in ("box", "mask"):
        for attention in summary.attention:
            found = [
                [record.final.get(f"{kind}_{name}", -1.0) for name in PRECISIONS]
                for record in summary.records
                if record.attention == attention and f"{kind}_AP" in record.final
            ]
            if found:
                columns = np.array(found).T
                tables.setdefault(kind, {})[attention] = [
                    (float(c.mean()), float(c.std(ddof=1)) if len(c) > 1 else None) for c in columns
                ]
    return tables


def all_metrics(summary: StudySummary) -> dict[str, dict[str, tuple[float, float | None] | None]]:
    """Return every metric of each module of a study of classifiers, the chosen one first.

    A pair of mean and standard deviation (None for a single run) for each of
    :data:`ecanet.metrics.METRICS`; None where no run has measured it. Empty if the runs measured one alone.
    """
    found: dict[str, dict[str, tuple[float, float | None] | None]] = {}
    chosen = summary.metric.key.removeprefix("test_")
    for attention in summary.attention:
        runs = [record.final for record in summary.records if record.attention == attention]
        for name in sorted(METRICS, key=lambda name: name != chosen):
            values = [v for run in runs if math.isfinite(v := run.get(f"test_{name}", math.nan))]
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            mean = (float(np.mean(values)), sd) if values else None
            found.setdefault(attention, {})[name] = mean
    measured = {name for row in found.values() for name, mean in row.items() if mean}
    return found if measured - {"accuracy", "loss"} else {}


def _numbers(
    summary: StudySummary,
    statistics: StudyStatistics,
    rows: list[dict[str, Any]],
    adequacy: Sequence[Check],
) -> dict[str, Any]:
    return {
        "answer": [opening(statistics), *answer(statistics, rows)],
        "notices": notices(summary, statistics, adequacy),
        "adequacy": [asdict(check) for check in adequacy],
        "notes": statistics.notes,
        "units": {
            f"{summary.metric.plural}, their differences and intervals": summary.metric.stored_unit,
            "losses": summary.metric.loss_unit,
            "train and inference speeds": "images per second",
            "macs": "multiply-adds of one image's forward pass",
            "train_peak_bytes": "bytes",
            **UNITS,
        },
        "confidence": statistics.design.confidence,
        "smallest_difference_that_matters": summary.margin,
        "planned_seeds": statistics.design.seeds,
        "sequential": statistics.design.sequential,
        "baseline": statistics.baseline,
        "attention": summary.attention,
        "seeds": summary.seeds,
        "results": rows,
        "statistics": [asdict(module) for module in statistics.modules],
        "pairs": [
            {"attention": a, "against": b, **asdict(c)} for (a, b), c in statistics.pairs.items()
        ],
        "costs": [asdict(cost) for cost in summary.costs],
        "runs": [record.to_dict() for record in summary.records],
        "failed": summary.failed,
        "unfinished": [{"attention": a, "seed": s} for a, s in summary.unfinished],
        "skipped_images": summary.skipped_images,
        "built_in_attention": summary.built_in,
        "majority_share": summary.majority,
        "settings": summary.settings,
        "environment": summary.environment,
    }


# Sentences


def opening(statistics: StudyStatistics) -> str:
    """Return the sentence that the answer begins with."""
    found = [module.comparison for module in statistics.modules if module.comparison]
    base = statistics.modules[0] if statistics.modules else None
    if base is None or base.mean is None:
        return "No run of the baseline is finished yet: there is nothing to compare with."
    metric, score = statistics.metric, statistics.metric.text(base.mean, base.sd)
    if metric in (ACCURACY, BOX_AP):
        start = f"The baseline, {base.attention}, reaches {score} {metric.place}."
    else:
        start = f"The {metric.name} of the baseline, {base.attention}, is {score}."
    counts = [
        f"{number} {words}"
        for finding, words in (
            ("better", "better"),
            ("worse", "worse"),
            ("equivalent", "equivalent"),
            ("undecided", "undecided"),
            ("no data", "with nothing to compare"),
        )
        if (number := sum(c.finding == finding for c in found))
    ]
    if not counts:
        return start
    noun = "The other module" if len(found) == 1 else f"The {len(found)} other modules"
    return f"{start} {noun}: {', '.join(counts)}."


def answer(statistics: StudyStatistics, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each module: how it compares with the baseline, and what it costs."""
    return [
        f"{row['attention']}: {row['verdict']}.{_price(row, statistics.baseline)}"
        for row in rows
        if row["finding"] != "baseline"
    ]


def _price(row: dict[str, Any], baseline: str) -> str:
    added = row["parameters_over_baseline"]
    if added is None:
        return ""
    length = row["training_length"]
    longer = f", trained {length:.2f} × as long" if length != 1 else ""
    return (
        f" Its cost relative to {baseline}: {minus(f'{added:+,}')} parameters, "
        f"{row['train_ratio']:.2f} × the training speed, "
        f"{row['inference_ratio']:.2f} × the inference speed{longer}."
    )


# The page


def _context(
    summary: StudySummary,
    statistics: StudyStatistics,
    rows: list[dict[str, Any]],
    adequacy: Sequence[Check],
) -> dict[str, Any]:
    modules = statistics.modules
    seeds = ", ".join(map(str, summary.seeds))
    settings = flat(summary.settings) | {"attention": ", ".join(summary.attention), "seeds": seeds}
    settings.pop("seed", None)
    return {
        "statistics": statistics,
        "modules": list(zip(modules, rows, strict=True)),
        "style": module_style,
        "notices": notices(summary, statistics),
        "adequacy": adequacy,
        "inadequate": failed(adequacy),
        "price": lambda row: _price(row, statistics.baseline),
        "metric": summary.metric,
        "pairs": pair_table(statistics),
        "level": percent(statistics.design.confidence),
        "majority": summary.majority if summary.metric == ACCURACY else None,
        "all_metrics": all_metrics(summary),
        "format_metric": format_metric,
        "breakdown": breakdown(summary),
        "answers": summary.answers,
        "classifiers": statistics.metric.of_classifiers,
        "precisions": PRECISIONS,
        "no_interval": no_interval,
        "finished": len(summary.records),
        "planned": len(summary.planned),
        "planned_of": _by_module(summary.planned),
        "unfinished": _by_module(summary.unfinished),
        "diverged": _by_module((m.attention, s) for m in modules for s in m.diverged),
        "blank": _by_module((m.attention, s) for m in modules for s in m.without_accuracy),
        "measured": measured(summary.costs),
        "settings": settings,
    }


def pair_table(
    statistics: StudyStatistics,
) -> list[tuple[ModuleStatistics, list[Comparison | None]]]:
    """Return the modules beside the baseline, best first, and each against every other, None with itself.

    Empty for fewer than two.
    """
    metric = statistics.metric
    ranked = [m for m in statistics.modules if m.comparison and m.mean is not None]
    ranked.sort(key=lambda m: m.mean or 0.0, reverse=metric.higher_is_better)
    if len(ranked) < 2:
        return []
    return [
        (m, [None if m is o else against(statistics, m.attention, o.attention) for o in ranked])
        for m in ranked
    ]


def _by_module(runs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for attention, seed in runs:
        found.setdefault(attention, []).append(seed)
    return found
