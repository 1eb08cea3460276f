"""What the README says is run."""

import fnmatch
import re
from pathlib import Path

import pytest

from ecanet.cli import evaluate, sweep, train
from ecanet.cli.options import SettingsParser, StudyCommand
from ecanet.config import (
    ClassificationSettings,
    DetectionSettings,
    EvaluateSettings,
    StudySettings,
    SweepSettings,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("command", "page", "settings", "positional"),
    [
        ("compare", "data", (StudyCommand, StudySettings, ClassificationSettings), "data"),
        ("train", "training", (train.TrainCommand, ClassificationSettings), "data"),
        ("evaluate", "training", (evaluate._Command, EvaluateSettings), "data"),
        ("sweep", "sweeps", (sweep._Command, SweepSettings, ClassificationSettings), "file"),
        ("detect train", "detection", (train.TrainCommand, DetectionSettings), "data"),
        ("detect compare", "detection", (StudyCommand, StudySettings, DetectionSettings), "data"),
    ],
)
def test_every_command_names_real_flags(
    command: str, page: str, settings: tuple[type, ...], positional: str
) -> None:
    skip = {"seed"} if StudySettings in settings else set()
    parser = SettingsParser("test", "", *settings, positional=positional, skip=skip)
    text = README + (ROOT / f"docs/{page}.md").read_text()
    text += "\n".join(file.read_text() for file in (ROOT / "ecanet/recipes").rglob("*.yaml"))
    pattern = rf"^(?:# Command:  )?(?:torchrun .*)?ecanet {command} ([^#\n`]*)"
    found = re.findall(pattern, re.sub(r"\\\n#?", " ", text), re.MULTILINE)
    # Those of the user's own code have other flags: tests/integrations/test_trainer.py runs them.
    found = [arguments for arguments in found if "--trainer" not in arguments]
    assert len(found) >= 2
    for arguments in found:
        parser.parse(arguments.replace("DATA", "digits").split())


def test_every_test_that_the_docs_name_is_there() -> None:
    tests = ROOT / "tests"
    known = {
        name
        for file in tests.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    for page in ("reliability.md", "security.md"):
        named = re.findall(r"`([^`\n]*test_[^`\n]*)`", (ROOT / "docs" / page).read_text())
        assert len(named) > 20
        for text in named:
            file, _, test = text.rpartition("::") if "::" in text else ("", "", text)
            if test.endswith(".py"):
                file, test = test.removeprefix("tests/"), ""
            assert not file or (tests / file).is_file(), text
            assert not test or fnmatch.filter(known, test), text
