"""``ecanet detect evaluate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import say, show
from ecanet.config import EvaluateDetectorSettings
from ecanet.errors import UserError

if TYPE_CHECKING:
    from ecanet.detection.evaluation import DetectionMetrics


@dataclass
class _Command:
    """What to evaluate on, and where the figures go."""

    data: str | None = None
    """Folder in COCO's layout, or shapes; may stand without its flag."""
    per_class: bool = False
    """Show the figures of each class that has objects too."""
    out: str | None = None
    """Folder for metrics.json and the detections as COCO's own tools read them."""


def run(arguments: list[str]) -> int:
    """Evaluate a detector; print COCO's twelve figures for boxes and, if it has them, masks."""
    parser = SettingsParser(
        "ecanet detect evaluate",
        "Measure COCO's twelve figures of a detector, for boxes and masks, on a folder in COCO's layout.",
        _Command,
        EvaluateDetectorSettings,
        positional="data",
        short={"-b": "batch_size", "-j": "workers"},
    )
    flags = parser.parse(arguments)
    command = pick(_Command, flags)
    if command.data is None:
        raise UserError("which images? ecanet detect evaluate DATA --weights FILE")

    from dataclasses import asdict
    from pathlib import Path

    from ecanet.detection.dataset import data_root
    from ecanet.detection.inference import evaluate_weights
    from ecanet.files import write_json
    from ecanet.training.launch import is_first_process

    metrics, evaluator = evaluate_weights(
        data_root(command.data),
        pick(EvaluateDetectorSettings, flags),
        progress=sys.stderr.isatty(),
        say=say,
    )
    if is_first_process():
        if command.out:
            write_json(Path(command.out) / "metrics.json", asdict(metrics))
            evaluator.write_results(Path(command.out))
        show(text(metrics, command.per_class))
    return 0


def text(metrics: DetectionMetrics, per_class: bool) -> str:
    """Return the figures as a table, in per cent; - stands for what is not defined."""
    from ecanet.detection.evaluation import FIGURES, KIND_NAMES

    def row(name: str, values: list[float]) -> str:
        cells = (f"{100 * value:6.1f}" if value >= 0 else f"{'-':>6}" for value in values)
        return f"{name:{width}} {' '.join(cells)}"

    classes = [one for one in metrics.classes if one["objects"]] if per_class else []
    width = max([5, *(len(f"{one['name']} ({one['objects']})") for one in classes)])
    lines = [f"{'':{width}} {' '.join(f'{name:>6}' for name in FIGURES)}"]
    lines += [
        row(KIND_NAMES[kind], list(figures.values())) for kind, figures in metrics.figures.items()
    ]
    for kind in metrics.figures if classes else ():
        lines += ["", f"{KIND_NAMES[kind]}, class by class (objects)"]
        lines += [
            row(f"{one['name']} ({one['objects']})", list(one[kind].values())) for one in classes
        ]
    return "\n".join(lines)
