"""``ecanet evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import result, show
from ecanet.config import EvaluateSettings
from ecanet.errors import UserError
from ecanet.inputs import RUNS, check_images, check_weights


@dataclass
class _Command:
    """The data, and where the metrics are written."""

    data: str | None = None
    """Images to evaluate on, in any form that `ecanet train` takes."""
    out: str | None = None
    """Folder for metrics.json, per_class.csv, the confusion matrix (confusion.csv and confusion.png) and the
    prediction for each image (predictions.parquet)."""


def parser() -> SettingsParser:
    """Return the command's parser."""
    return SettingsParser(
        "ecanet evaluate",
        "Evaluate a trained classifier on a folder of images, prepared as in training. Print metrics over "
        "all images and per class.",
        _Command,
        EvaluateSettings,
        positional="data",
    )


def run(arguments: list[str]) -> int:
    """Evaluate weights on a folder of images; print metrics, as a whole and per class."""
    flags = parser().parse(arguments)
    command = pick(_Command, flags)
    if command.data is None:
        raise UserError("which images? ecanet evaluate DATA --weights FILE")

    settings = pick(EvaluateSettings, flags)
    check_images(command.data)
    check_weights(settings.weights, RUNS)
    out = Path(command.out) if command.out else None
    if out and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder")

    from ecanet.experiments.evaluate import evaluate
    from ecanet.experiments.report.classes import class_table, write_evaluation
    from ecanet.record import without_nan
    from ecanet.training.launch import is_rank_zero

    found = evaluate(command.data, settings)
    if not is_rank_zero():
        return 0
    metrics, rows = without_nan(found.metrics), found.class_rows
    result(metrics)
    for line in found.summary():
        show(line)
    show(class_table(rows, "per_class.csv holds all" if out else "--out FOLDER writes all"))
    if out:
        write_evaluation(out, metrics, found.predictions, found.confusion, rows)
    return 0
