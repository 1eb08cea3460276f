"""``ecanet detect train``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import say, show
from ecanet.config import DetectTrainSettings
from ecanet.errors import UserError

SHORT = {
    "-m": "model", "-b": "batch_size", "-j": "workers", "--ksize": "kernel_sizes",
    "--lr": "optimizer.lr", "--momentum": "optimizer.momentum", "--wd": "optimizer.weight_decay",
}  # fmt: skip


@dataclass
class _Command:
    """What to train on, and where the run goes."""

    data: str | None = None
    """Folder in COCO's format, or shapes, which are drawn; may stand without its flag."""
    out: str = "run"
    """Folder of the run. The same command again goes on where it stopped."""
    resume: bool = False
    """Go on only: refuse to begin a new run."""
    accept_changes: bool = False
    """Go on although settings differ from those the run began with."""


def run(arguments: list[str]) -> int:
    """Train a detector; print the path of its best weights."""
    parser = SettingsParser(
        "ecanet detect train",
        "Train Faster R-CNN, Mask R-CNN or RetinaNet with an attention backbone on images with objects "
        "in COCO's format: annotations/instances_train*.json beside train*/, and val alike.",
        _Command,
        DetectTrainSettings,
        positional="data",
        short=SHORT,
    )
    flags = parser.parse(arguments)
    command = pick(_Command, flags)
    if command.data is None:
        raise UserError(
            "which images? ecanet detect train DATA, a folder in COCO's format, or shapes"
        )

    from pathlib import Path

    from ecanet.detection.task import train_detector

    out = Path(command.out)
    if command.resume and not (out / "settings.json").exists():
        raise UserError(f"{out} holds no run to go on with: leave --resume out to begin one")
    train_detector(
        command.data,
        out,
        pick(DetectTrainSettings, flags),
        accept_changes=command.accept_changes,
        progress=sys.stderr.isatty(),
        say=say,
    )
    show(out / "best.safetensors")
    return 0
