"""``ecanet train``, and ``ecanet detect train``."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecanet.aliases import SOURCES, attention_spec
from ecanet.cli.compare import check_inputs, show_dry_run
from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import result, say, show
from ecanet.config import ClassificationSettings
from ecanet.errors import UserError


@dataclass
class TrainCommand:
    """The data, and where the run is written."""

    data: str | None = None  # what it may be is described by the settings
    out: str | None = None
    """Folder of the run. Running the same command again resumes it. By default run, or run/ID under a W&B
    agent."""
    resume: bool = False
    """Resume the run in `out`; fail if there is none."""
    dry_run: bool = False
    """Estimate time and memory and exit, without training or writing anything."""
    accept_changes: bool = False
    """Resume even if settings differ from those of the run."""
    attention: str | list[str] | None = None
    """Attention module to use, optionally with arguments: eca:kernel_size=9. By default the one in the
    model's name."""


_DESCRIPTION = (
    "Train an image classifier with an attention module. The flags of the 2020 scripts work, too: "
    "-a -m -b -j --lr --momentum --wd --ksize --att."
)
_DETECTOR = (
    "Train Faster R-CNN, Mask R-CNN or RetinaNet with an attention module in its backbone, on images in "
    "COCO's format: annotations/instances_train*.json and train*/, and the same for val."
)


def parser(prog: str = "ecanet train", cls: type[Any] = ClassificationSettings) -> SettingsParser:
    """Return the parser for training one network with these settings."""
    description = _DESCRIPTION if cls is ClassificationSettings else _DETECTOR
    return SettingsParser(prog, description, TrainCommand, cls, positional="data")


def run(
    arguments: list[str], prog: str = "ecanet train", cls: type[Any] = ClassificationSettings
) -> int:
    """Train a network; print the path of its best weights."""
    images = f"a folder with a folder per class, a table, or {', '.join(SOURCES)}"
    if cls is not ClassificationSettings:
        images = "a folder in COCO's format, or shapes"
    flags = parser(prog, cls).parse(arguments)
    command = pick(TrainCommand, flags)
    if command.data is None:
        raise UserError(f"which images? {prog} DATA, {images}")
    given = command.attention
    modules = [given] if isinstance(given, str) else given or []
    if len(modules) > 1:
        raise UserError(
            f"train takes one attention module, got {', '.join(modules)}: choose by --attention"
        )
    settings = pick(cls, flags, attention=attention_spec(modules[0]) if modules else None)
    check_inputs(cls, command.data, flags)
    if "WANDB_SWEEP_ID" in os.environ and "wandb" not in settings.loggers:
        # A W&B agent waits for its metric.
        settings = dataclasses.replace(settings, loggers=[*settings.loggers, "wandb"])
    out = _folder(command)

    if command.dry_run:
        from ecanet.experiments.dryrun import dry_run_training

        show_dry_run(dry_run_training(settings, out))
        return 0

    from ecanet.metrics import format_metric, metric_named
    from ecanet.training.launch import is_rank_zero
    from ecanet.training.run_folder import kept_weights
    from ecanet.training.train import train

    record = train(settings, out, accept_changes=command.accept_changes)
    if not is_rank_zero():
        return 0
    chosen = settings.best.replace("val_", "test_")
    for column in dict.fromkeys(["test_accuracy", chosen]):
        if column.startswith("test_") and column in record.final:
            value = format_metric(column, record.final[column])
            say(f"test {metric_named(column).title} {value}")
    # Those that the figures are of: with a test split by default the last, not the best.
    weights = kept_weights(out) or out
    show(weights)
    result({"weights": weights, **record.final})
    return 0


def _folder(command: TrainCommand) -> Path:
    """Return the run's folder, which each run of a W&B agent has for itself."""
    run_id = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    out = Path(command.out or (f"run/{run_id}" if run_id else "run"))
    if command.resume and not (out / "settings.json").exists():
        raise UserError(f"{out} holds no run to resume: leave --resume out to start one")
    return out
