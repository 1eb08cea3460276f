"""``ecanet export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import say, show
from ecanet.config import ExportSettings
from ecanet.errors import UserError
from ecanet.inputs import RUNS, check_weights, names_file
from ecanet.names import check_names


@dataclass
class _Command:
    """Where the file is written."""

    out: str | None = None
    """File to write. By default the name of the model, file or folder with the extension of the format."""


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
        raise UserError("no model given: ecanet export FILE|RUN|STUDY, or the name of a model")

    is_file = names_file(settings.model)
    if is_file:
        check_weights(settings.model, RUNS)
    else:
        check_names(settings.model, settings.attention, settings.plugin)

    from ecanet.experiments.study.winner import find_weights
    from ecanet.export.run import ENDINGS, export_model

    named = Path(settings.model.replace(":", "_"))
    # A folder such as . or .. has its name only as a whole path.
    name = named.resolve().name if named.is_dir() else named.stem
    out = Path(command.out or name + ENDINGS[settings.format])
    if is_file:
        settings.model = find_weights(settings.model)
    say(export_model(settings, out))
    show(out)
    return 0
