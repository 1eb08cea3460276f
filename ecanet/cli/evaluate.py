"""``ecanet evaluate``."""

from __future__ import annotations

from dataclasses import dataclass

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import say, show
from ecanet.cli.train import SHORT
from ecanet.config import EvaluateSettings
from ecanet.errors import UserError


@dataclass
class _Command:
    """What to evaluate on, and where the figures go."""

    data: str | None = None
    """Folder that holds the split, a folder per class in it, or digits, cifar10, cifar100; may stand without
    its flag."""
    json: str | None = None
    """File for the figures, beside what is printed."""


def run(arguments: list[str]) -> int:
    """Evaluate weights on a folder of images; print top-1 and top-5."""
    names = ("model", "batch_size", "workers", "kernel_sizes")
    parser = SettingsParser(
        "ecanet evaluate",
        "Measure top-1 and top-5 of a file of weights on a folder of images, prepared as in training.",
        _Command,
        EvaluateSettings,
        positional="data",
        short={flag: name for flag, name in SHORT.items() if name in names},
    )
    flags = parser.parse(arguments)
    command = pick(_Command, flags)
    if command.data is None:
        raise UserError("which images? ecanet evaluate DATA --weights FILE")

    from pathlib import Path

    from ecanet.data.listing import evaluated_split
    from ecanet.files import write_json
    from ecanet.record import without_nan
    from ecanet.training.classification import evaluate_classifier
    from ecanet.training.launch import is_first_process

    data = Path(command.data)
    found = evaluate_classifier(data, pick(EvaluateSettings, flags), say)
    if not is_first_process():
        return 0
    if command.json:
        write_json(command.json, without_nan(found))
    show(
        f"top-1 {100 * found['top1']:.2f} %, top-5 {100 * found['top5']:.2f} %, "
        f"loss {found['loss']:.4f}, {found['images']:.0f} images of "
        f"{evaluated_split(data, flags.split)}, "
        f"{found['images_per_second']:.0f} images/s"
    )
    return 0
