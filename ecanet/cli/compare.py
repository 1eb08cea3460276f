"""``ecanet compare``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ecanet.cli.options import SettingsParser, StudyCommand, pick
from ecanet.cli.output import say, show
from ecanet.config import RunSettings, StudySettings

if TYPE_CHECKING:
    from ecanet.experiments.analysis.compare import StudySummary


def run(arguments: list[str]) -> int:
    """Compare attention modules; print the path of the report."""
    parser = SettingsParser(
        "ecanet compare",
        "Train a CNN with each attention module over several seeds, and report which modules help, "
        "with what certainty, and what they cost.",
        StudyCommand,
        StudySettings,
        RunSettings,
    )
    flags = parser.parse(arguments)
    command = pick(StudyCommand, flags)

    from ecanet.experiments.compare import compare

    summary = compare(
        command.out,
        pick(RunSettings, flags),
        pick(StudySettings, flags),
        storage=command.storage,
        name=command.study,
        jobs=command.jobs,
        trust_plugins=parser.trusts_plugins(arguments),
        progress=sys.stderr.isatty(),
        say=say,
    )
    return finish(summary, command.out)


def finish(summary: StudySummary, out: str) -> int:
    """Name the runs that failed, print the path of the report, and return the exit code."""
    for failure in summary.failed:
        say(f"failed: {failure['attention']} seed {failure['seed']}: {failure['error']}")
    show(os.path.join(out, "report", "index.html"))
    return 1 if summary.failed else 0
