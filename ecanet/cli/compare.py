"""``ecanet compare``, and ``ecanet detect compare``."""

from __future__ import annotations

import os
import sys
from typing import Any

from ecanet.cli.options import SettingsParser, StudyCommand, pick
from ecanet.cli.output import say, show
from ecanet.cli.progress import live_progress
from ecanet.config import ClassificationSettings, StudySettings


def run(
    arguments: list[str], prog: str = "ecanet compare", cls: type[Any] = ClassificationSettings
) -> int:
    """Compare attention modules; print the path of the report."""
    parser = SettingsParser(
        prog,
        "Train a network with each attention module over several seeds, and report which modules help, "
        "with what certainty, and what they cost.",
        StudyCommand,
        StudySettings,
        cls,
        positional="data",
        skip={"seed"},
    )
    flags = parser.parse(arguments)
    command = pick(StudyCommand, flags)

    from ecanet.experiments.compare import compare

    summary = compare(
        command.out,
        pick(cls, flags, attention=None, seed=0),
        pick(StudySettings, flags),
        storage=command.database,
        name=command.study,
        jobs=command.jobs,
        trust_plugins=flags.trust_plugins,
        progress=sys.stderr.isatty(),
        watch=live_progress if sys.stderr.isatty() else None,
    )
    for failure in summary.failed:
        say(f"failed: {failure['attention']} seed {failure['seed']}: {failure['error']}")
    show(os.path.join(command.out, "report", "index.html"))
    return 1 if summary.failed else 0
