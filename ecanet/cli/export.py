"""``ecanet export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import say, show
from ecanet.config import ExportSettings
from ecanet.errors import UserError
from ecanet.inputs import check_weights, names_file
from ecanet.names import check_names


@dataclass
class _Command:
    """Where the file is written."""

    out: str | None = None
    """File to write. By default the model's name with the extension of the format."""


def parser() -> SettingsParser:
    """Return the command's parser."""
    return SettingsParser(
        "ecanet export",
        "Export a classifier or detector to ONNX or torch.export. The file is kept only if its outputs on "
        "real images match the model's.",
        _Command,
        ExportSettings,
        positional="model",
        short={"-m": "model", "--weights": "model"},
    )


def run(arguments: list[str]) -> int:
    """Export a model; print the path of the file."""
    flags = parser().parse(arguments)
    command, settings = pick(_Command, flags), pick(ExportSettings, flags)
    if settings.model is None:
        raise UserError("no model given: ecanet export WEIGHTS, or the name of a model")

    if names_file(settings.model):
        check_weights(settings.model)
    else:
        check_names(settings.model, settings.attention, settings.plugin)

    from ecanet.export.run import ENDINGS, export_model

    name = Path(settings.model.replace(":", "_")).with_suffix(ENDINGS[settings.format]).name
    out = Path(command.out or name)
    say(export_model(settings, out))
    show(out)
    return 0
