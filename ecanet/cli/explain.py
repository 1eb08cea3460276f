"""``ecanet explain``."""

from __future__ import annotations

from dataclasses import dataclass

from ecanet.cli.options import SettingsParser, pick
from ecanet.cli.output import result, show, wants_json
from ecanet.config import ExplainSettings
from ecanet.errors import UserError
from ecanet.inputs import RUNS, check_weights


@dataclass
class _Command:
    """The networks to explain, and where the page is written."""

    source: str | None = None
    """Folder of a study, of which the best run of each module is shown next to the baseline's; folder of a
    run; or file of weights."""
    out: str | None = None
    """Folder for the page. By default the report's folder of a study, or explain/ in the folder of a run."""


def parser() -> SettingsParser:
    """Return the command's parser."""
    return SettingsParser(
        "ecanet explain",
        "Show what the attention modules of trained networks do: their gates by layer and class, how much "
        "the gates depend on the image, and where the networks look.",
        _Command,
        ExplainSettings,
        positional="source",
    )


def run(arguments: list[str]) -> int:
    """Show what attention does to which image, and where networks look; print the page's path."""
    flags = parser().parse(arguments)
    command, settings = pick(_Command, flags), pick(ExplainSettings, flags)
    if command.source is None:
        raise UserError("which networks? ecanet explain STUDY|RUN|FILE --images DIR")

    check_weights(command.source, RUNS)
    from ecanet.experiments.explain import explain
    from ecanet.files import read_json

    page = explain(command.source, settings, command.out)
    show(page)
    if wants_json():
        result({"page": page} | (read_json(page.with_suffix(".json")) or {}))
    return 0
