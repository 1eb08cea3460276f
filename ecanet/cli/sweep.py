"""``ecanet sweep``, and ``ecanet detect sweep``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ecanet.aliases import attention_spec
from ecanet.cli.compare import check_inputs, show_dry_run, show_report
from ecanet.cli.flags import spelled
from ecanet.cli.options import SettingsParser, StudyCommand, pick
from ecanet.cli.output import say
from ecanet.config import ClassificationSettings, SweepSettings
from ecanet.errors import UserError
from ecanet.recipe_file import recipe_path


@dataclass
class _Command(StudyCommand):
    """What to sweep, where the study is written and how it runs."""

    out: str = "sweep"
    """Folder of the study. Running the same command again resumes it."""
    file: str | None = None
    """W&B sweep file to run, or a name from `ecanet list recipes`."""


def parser(prog: str = "ecanet sweep", cls: type[Any] = ClassificationSettings) -> SettingsParser:
    """Return the parser for a sweep over these settings."""
    return SettingsParser(
        prog,
        "Run the sweep that a W&B sweep file describes, with its method (bayes, random or grid). Report the "
        "best settings, how certain that is, and which parameters matter.",
        _Command,
        SweepSettings,
        cls,
        positional="file",
    )


def run(
    arguments: list[str], prog: str = "ecanet sweep", cls: type[Any] = ClassificationSettings
) -> int:
    """Run a sweep; print the path of the report."""
    taken = parser(prog, cls)
    flags = taken.parse(arguments)
    command = pick(_Command, flags)
    if command.file is None:
        raise UserError(f"which sweep? {prog} FILE, a W&B sweep file")
    file = recipe_path(command.file)
    settings = pick(cls, flags, attention=attention_spec(flags.attention))
    check_inputs(cls, settings.data, flags)

    from ecanet.experiments.plans.sweep_file import read_sweep

    parameters = {p.setting: p.name for p in read_sweep(file, cls).parameters}
    for argument in taken.spelled_out(arguments):
        name = argument[2:].partition("=")[0]
        if name in parameters:
            raise UserError(
                f"{spelled(name)} and the sweep's parameter {parameters[name]} set the same: leave one out"
            )

    if command.dry_run:
        from ecanet.experiments.dryrun import dry_run_sweep

        where: dict[str, Any] = {"storage": command.database, "name": command.study}
        chosen = pick(SweepSettings, flags)
        show_dry_run(dry_run_sweep(file, command.out, settings, chosen, jobs=command.jobs, **where))
        return 0

    from ecanet.experiments.report.sweep import answer
    from ecanet.experiments.sweep import sweep

    summary = sweep(
        file,
        command.out,
        settings,
        pick(SweepSettings, flags),
        storage=command.database,
        name=command.study,
        jobs=command.jobs,
        trust_plugins=flags.trust_plugins,
        progress=False,
    )
    for line in answer(summary):
        say(line)
    show_report(command.out)
    return 1 if any(trial.state == "failed" for trial in summary.trials) else 0
