"""``ecanet evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import show
from ecanet.config import EvaluateSettings
from ecanet.errors import UserError


@dataclass
class _Command:
    """The data, and where the metrics are written."""

    data: str | None = None
    """Folder with a folder per class in the split, or whatever `ecanet train` takes. The flag is optional."""
    json: str | None = None
    """File for the metrics, in addition to printing them."""
    out: str | None = None
    """Folder for metrics.json, per_class.csv, the confusion matrix as confusion.csv and confusion.png, and
    what was predicted for each image, predictions.parquet."""


def run(arguments: list[str]) -> int:
    """Evaluate weights on a folder of images; print metrics, as a whole and per class."""
    parser = SettingsParser(
        "ecanet evaluate",
        "Measure trained weights on a folder of images, prepared as in training: as a whole and per class.",
        _Command,
        EvaluateSettings,
        positional="data",
    )
    flags = parser.parse(arguments)
    command = pick(_Command, flags)
    if command.data is None:
        raise UserError("which images? ecanet evaluate DATA --weights FILE")

    from ecanet.data.listing import list_evaluated
    from ecanet.experiments.report.classes import class_rows, class_table, write_evaluation
    from ecanet.experiments.study.winner import find_weights
    from ecanet.files import write_json
    from ecanet.metrics import METRICS, confusion_matrix
    from ecanet.record import without_nan
    from ecanet.training.evaluate import divided_as_trained, evaluate_images
    from ecanet.training.launch import is_rank_zero

    settings = pick(EvaluateSettings, flags)
    out = Path(command.out) if command.out else None
    if out and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder")
    settings.weights = find_weights(settings.weights)
    split, images = list_evaluated(command.data, divided_as_trained(settings, command.data))
    metrics, found = evaluate_images(images, settings)
    if not is_rank_zero():
        return 0
    if command.json:
        write_json(command.json, without_nan(metrics))
    show(
        f"top-1 {100 * metrics['accuracy']:.2f} %, top-5 {100 * metrics['top5']:.2f} %, "
        f"loss {metrics['loss']:.4f}, {metrics['images']:.0f} images of {split}, "
        f"{metrics['images_per_second']:.0f} images/s"
    )
    further = ("balanced_accuracy", "macro_f1", "auroc", "calibration_error")
    show(
        ", ".join(f"{METRICS[name].title} {100 * metrics[name]:.2f} %" for name in further).replace(
            "nan %", "-"
        )
    )
    table = confusion_matrix(found.labels, found.predicted, len(found.classes))
    rows = class_rows(table, found.classes)
    show(class_table(rows, "per_class.csv holds all" if out else "--out FOLDER writes all"))
    if out:
        write_evaluation(out, without_nan(metrics), found, table, rows)
    return 0
