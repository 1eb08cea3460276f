"""``ecanet sweep``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ecanet.aliases import attention_spec
from ecanet.cli.options import SettingsParser, StudyCommand, pick, recipe_path
from ecanet.cli.output import say, show
from ecanet.config import RunSettings, SweepSettings
from ecanet.errors import UserError


@dataclass
class _Command(StudyCommand):
    """What to sweep, where the study goes and how it is worked."""

    out: str = "sweep"
    """Folder of the study. The same command again goes on where it stopped."""
    file: str | None = None
    """W&B sweep file, or a name from `ecanet list recipes`; may stand without its flag."""


def run(arguments: list[str]) -> int:
    """Run a sweep; print the path of the report."""
    parser = SettingsParser(
        "ecanet sweep",
        "Try the settings that a W&B sweep file describes, by its method (bayes, random, grid), and "
        "report which are best, how sure that is, and which parameters matter.",
        _Command,
        SweepSettings,
        RunSettings,
        positional="file",
    )
    flags = parser.parse(arguments)
    command = pick(_Command, flags)
    if command.file is None:
        raise UserError("which sweep? ecanet sweep FILE, a W&B sweep file")
    file = recipe_path(command.file)
    settings, chosen = pick(RunSettings, flags), pick(SweepSettings, flags)
    chosen.attention = attention_spec(chosen.attention)

    from pathlib import Path

    from ecanet.experiments.plans.sweep_file import read_sweep

    _check_flags(
        parser.spelled_out(arguments), {p.setting: p.name for p in read_sweep(file).parameters}
    )

    from ecanet.experiments.sweep import sweep

    summary = sweep(
        file,
        command.out,
        settings,
        chosen,
        storage=command.storage,
        name=command.study,
        jobs=command.jobs,
        trust_plugins=parser.trusts_plugins(arguments),
        progress=sys.stderr.isatty(),
        say=say,
    )
    for line in summary.answer():
        say(line)
    show(Path(command.out) / "report" / "index.html")
    return 1 if any(trial.state == "failed" for trial in summary.trials) else 0


def _check_flags(arguments: list[str], parameters: dict[str, str]) -> None:
    """Refuse a flag that says another thing than the sweep file."""
    for argument in arguments:
        name = argument[2:].partition("=")[0]
        if name in parameters:
            raise UserError(
                f"--{name} and the sweep's parameter {parameters[name]} set the same: leave one out"
            )
