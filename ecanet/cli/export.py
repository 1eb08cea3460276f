"""``ecanet export``."""

from __future__ import annotations

from dataclasses import dataclass

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import say, show
from ecanet.config import ExportSettings
from ecanet.errors import UserError


@dataclass
class _Command:
    """Where the file goes."""

    out: str | None = None
    """File to write; by default the model's name with the format's ending."""


def run(arguments: list[str]) -> int:
    """Export a model; print the path of the file."""
    parser = SettingsParser(
        "ecanet export",
        "Write a classifier or detector as ONNX or as a program of torch.export. The file is kept only "
        "if it gives on real pictures what the model gives.",
        _Command,
        ExportSettings,
        positional="model",
        short={"-m": "model", "--weights": "model"},
    )
    flags = parser.parse(arguments)
    command, settings = pick(_Command, flags), pick(ExportSettings, flags)
    if settings.model is None:
        raise UserError("which model? ecanet export WEIGHTS, or the name of a model")

    from pathlib import Path

    from ecanet.export.run import ENDINGS, export_model

    name = Path(settings.model.replace(":", "_")).with_suffix(ENDINGS[settings.format]).name
    out = Path(command.out or name)
    say(export_model(settings, out, say))
    show(out)
    return 0
