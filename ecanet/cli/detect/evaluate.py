"""``ecanet detect evaluate``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import result, show
from ecanet.config import EvaluateDetectorSettings
from ecanet.errors import UserError
from ecanet.inputs import check_coco, check_weights

if TYPE_CHECKING:
    from ecanet.detection.evaluation import DetectionMetrics


@dataclass
class _Command:
    """The data, and where the metrics are written."""

    data: str | None = None
    """Folder in COCO's format to evaluate on, or shapes."""
    per_class: bool = False
    """Also print the metrics of each class that has objects."""
    out: str | None = None
    """Folder for metrics.json and the detections in COCO's results format."""


def parser() -> SettingsParser:
    """Return the command's parser."""
    return SettingsParser(
        "ecanet detect evaluate",
        "Evaluate a trained detector on a folder in COCO's format, with COCO's twelve metrics for boxes and "
        "masks.",
        _Command,
        EvaluateDetectorSettings,
        positional="data",
        short={"-b": "batch_size", "-j": "workers"},
    )


def run(arguments: list[str]) -> int:
    """Evaluate a detector; print COCO's twelve metrics for boxes and, if it predicts them, masks."""
    flags = parser().parse(arguments)
    command = pick(_Command, flags)
    if command.data is None:
        raise UserError("which images? ecanet detect evaluate DATA --weights FILE")

    if flags.weights is None:
        raise UserError("which weights? give --weights FILE")
    settings = pick(EvaluateDetectorSettings, flags)
    check_coco(command.data)
    check_weights(flags.weights)
    from ecanet.detection.dataset import data_root
    from ecanet.detection.inference import evaluate_weights
    from ecanet.files import write_json
    from ecanet.training.launch import is_rank_zero

    metrics, evaluator = evaluate_weights(data_root(command.data), settings)
    if is_rank_zero():
        if command.out:
            write_json(Path(command.out) / "metrics.json", asdict(metrics))
            evaluator.write_results(Path(command.out))
        show(text(metrics, command.per_class))
        result(asdict(metrics))
    return 0


def text(metrics: DetectionMetrics, per_class: bool) -> str:
    """Return the metrics as a table in percent, with - for undefined ones."""
    from ecanet.detection.evaluation import KIND_NAMES, METRICS

    def row(name: str, values: dict[str, float]) -> str:
        cells = (f"{100 * v:6.1f}" if v >= 0 else f"{'-':>6}" for v in values.values())
        return f"{name:{width}} {' '.join(cells)}"

    classes = [one for one in metrics.classes if one["objects"]] if per_class else []
    width = max([5, *(len(f"{one['name']} ({one['objects']})") for one in classes)])
    lines = [f"{'':{width}} {' '.join(f'{name:>6}' for name in METRICS)}"]
    lines += [row(KIND_NAMES[kind], values) for kind, values in metrics.metrics.items()]
    for kind in metrics.metrics if classes else ():
        lines += ["", f"{KIND_NAMES[kind]}, class by class (objects)"]
        lines += [row(f"{one['name']} ({one['objects']})", one[kind]) for one in classes]
    return "\n".join(lines)
