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
    """Folder with the split, which has one folder per class; or digits, cifar10, cifar100. The flag is
    optional."""
    json: str | None = None
    """File for the metrics, in addition to printing them."""


def run(arguments: list[str]) -> int:
    """Evaluate weights on a folder of images; print top-1 and top-5."""
    parser = SettingsParser(
        "ecanet evaluate",
        "Measure top-1 and top-5 accuracy of a weight file on a folder of images, prepared as in training.",
        _Command,
        EvaluateSettings,
        positional="data",
    )
    flags = parser.parse(arguments)
    command = pick(_Command, flags)
    if command.data is None:
        raise UserError("which images? ecanet evaluate DATA --weights FILE")

    from ecanet.data.listing import evaluated_split
    from ecanet.files import write_json
    from ecanet.record import without_nan
    from ecanet.training.evaluate import evaluate_classifier
    from ecanet.training.launch import is_rank_zero

    data = Path(command.data)
    metrics = evaluate_classifier(data, pick(EvaluateSettings, flags))
    if not is_rank_zero():
        return 0
    if command.json:
        write_json(command.json, without_nan(metrics))
    show(
        f"top-1 {100 * metrics['accuracy']:.2f} %, top-5 {100 * metrics['top5']:.2f} %, "
        f"loss {metrics['loss']:.4f}, {metrics['images']:.0f} images of "
        f"{evaluated_split(data, flags.split)}, "
        f"{metrics['images_per_second']:.0f} images/s"
    )
    return 0
