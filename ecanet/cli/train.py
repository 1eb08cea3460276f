"""``ecanet train``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ecanet.cli.compare import say
from ecanet.cli.options import SettingsParser, pick
from ecanet.config import TrainSettings
from ecanet.errors import UserError

# The flags of the 2020 scripts and of torchvision's and timm's, where they mean the same.
SHORT = {
    "-m": "model", "-a": "model", "--arch": "model", "-b": "batch_size", "-j": "workers",
    "--ksize": "kernel_sizes", "--lr": "optimizer.lr", "--momentum": "optimizer.momentum",
    "--wd": "optimizer.weight_decay", "--weight-decay": "optimizer.weight_decay",
}  # fmt: skip


@dataclass
class _Command:
    """What to train on, and where the run goes."""

    data: str | None = None
    """Folder with train/ and val/, and in each a folder per class; may stand without its flag."""
    out: str = "run"
    """Folder of the run. The same command again goes on where it stopped."""
    resume: bool = False
    """Go on only: refuse to begin a new run."""
    accept_changes: bool = False
    """Go on although settings differ from those the run began with."""


def run(arguments: list[str]) -> int:
    """Train a classifier; print the path of its best weights."""
    parser = SettingsParser(
        "ecanet train",
        "Train a CNN with attention on a folder of images. Spelled as in the 2020 scripts work too: "
        "-a -m -b -j --lr --momentum --wd --ksize.",
        _Command,
        TrainSettings,
        positional="data",
        short=SHORT,
    )
    flags = parser.parse(arguments)
    command = pick(_Command, flags)
    if command.data is None:
        raise UserError("which images? ecanet train DATA, a folder with train/ and val/ in it")

    from pathlib import Path

    from ecanet.training.classification import train_classifier

    out = Path(command.out)
    if command.resume and not (out / "settings.json").exists():
        raise UserError(f"{out} holds no run to go on with: leave --resume out to begin one")
    train_classifier(
        Path(command.data),
        out,
        pick(TrainSettings, flags),
        accept_changes=command.accept_changes,
        progress=sys.stderr.isatty(),
        say=say,
    )
    print(out / "best.safetensors")
    return 0
