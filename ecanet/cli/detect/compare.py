"""``ecanet detect compare``."""

from __future__ import annotations

import sys
from dataclasses import fields

from ecanet.cli.compare import finish
from ecanet.cli.detect.train import SHORT
from ecanet.cli.options import SettingsParser, StudyCommand, pick
from ecanet.cli.output import say
from ecanet.config import DetectStudySettings, StudySettings

# What the study gives each of its runs itself.
_GIVEN = {"attention", "plugin", "seed"}


def run(arguments: list[str]) -> int:
    """Compare attention modules in a detector; print the path of the report."""
    parser = SettingsParser(
        "ecanet detect compare",
        "Train a detector with each attention module over several seeds, and report which modules "
        "help, with what certainty, and what they cost.",
        StudyCommand,
        StudySettings,
        DetectStudySettings,
        positional="data",
        short={flag: name for flag, name in SHORT.items() if name not in _GIVEN},
        skip=_GIVEN - {"attention", "plugin"},
    )
    flags = parser.parse(arguments)
    command = pick(StudyCommand, flags)
    shared = {f.name: flags[f.name] for f in fields(DetectStudySettings) if f.name not in _GIVEN}

    from ecanet.experiments.detect_compare import compare_detectors

    summary = compare_detectors(
        command.out,
        DetectStudySettings(**shared),
        pick(StudySettings, flags),
        storage=command.storage,
        name=command.study,
        jobs=command.jobs,
        trust_plugins=parser.trusts_plugins(arguments),
        progress=sys.stderr.isatty(),
        say=say,
    )
    return finish(summary, command.out)
