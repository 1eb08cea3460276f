"""What the README says is run."""

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_local_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_every_ecanet_command_names_real_flags() -> None:
    from ecanet.cli.options import SettingsParser, StudyCommand
    from ecanet.config import RunSettings, StudySettings

    parser = SettingsParser("test", "", StudyCommand, StudySettings, RunSettings)
    commands = re.findall(r"^ecanet compare (.*)$", README.replace("\\\n", " "), re.MULTILINE)
    assert commands
    for command in commands:
        parser.parse(command.split("#")[0].split())


def test_every_training_command_names_real_flags() -> None:
    from ecanet.cli import evaluate, train
    from ecanet.cli.options import SettingsParser
    from ecanet.config import EvaluateSettings, TrainSettings

    text = README + (ROOT / "docs/training.md").read_text()
    kinds = {
        "train": (train._OnFolder, train._Command, TrainSettings),
        "evaluate": (evaluate._Command, EvaluateSettings),
    }
    for name, settings in kinds.items():
        parser = SettingsParser("test", "", *settings, positional="data", short=train.SHORT)
        commands = re.findall(rf"ecanet {name} (DATA.*)$", text, re.MULTILINE)
        assert commands
        for command in commands:
            parser.parse(re.split(" #|`", command)[0].split())


def test_every_sweep_command_names_real_flags() -> None:
    from ecanet.cli import sweep
    from ecanet.cli.options import SettingsParser
    from ecanet.config import RunSettings, SweepSettings

    recipes = (ROOT / "ecanet/recipes/sweeps").glob("*.yaml")
    text = "\n".join(
        [README, (ROOT / "docs/sweeps.md").read_text(), *(p.read_text() for p in recipes)]
    )
    parser = SettingsParser(
        "test", "", sweep._Command, SweepSettings, RunSettings, positional="file"
    )
    commands = re.findall(r"^(?:# Command:  )?ecanet sweep (.*)$", text, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        parser.parse(re.split(" #|`", command)[0].split())


def test_every_detection_command_names_real_flags() -> None:
    from ecanet.cli.detect import compare as detect_compare
    from ecanet.cli.detect import train as detect_train
    from ecanet.cli.options import SettingsParser, StudyCommand
    from ecanet.config import DetectStudySettings, DetectTrainSettings, StudySettings

    text = README + (ROOT / "docs/detection.md").read_text()
    kinds = {
        "train": (detect_train._Command, DetectTrainSettings),
        "compare": (StudyCommand, StudySettings, DetectStudySettings),
    }
    for name, settings in kinds.items():
        skip = detect_compare._GIVEN - {"attention", "plugin"} if name == "compare" else set()
        parser = SettingsParser(
            "test", "", *settings, positional="data", short=detect_train.SHORT, skip=skip
        )
        commands = re.findall(rf"^ecanet detect {name} (.*)$", text, re.MULTILINE)
        assert commands
        for command in commands:
            parser.parse(command.split(" #")[0].split())


@pytest.mark.slow
def test_the_python_examples_run(tmp_path: Path) -> None:
    code = "\n".join(blocks("python"))
    assert "epochs=8" in code
    assert "seeds=6" in code
    # As they stand, but for the length of the study.
    (tmp_path / "example.py").write_text(
        code.replace("epochs=8", "epochs=1").replace("seeds=6", "seeds=1")
    )
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.splitlines()[-1]) <= 1


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
