from pathlib import Path

import pytest

from ecanet.cli.options import SettingsParser, pick, recipes
from ecanet.config import RunSettings, StudySettings


def parse(*arguments: str) -> tuple[StudySettings, RunSettings]:
    flags = SettingsParser("test", "", StudySettings, RunSettings).parse(arguments)
    return pick(StudySettings, flags), pick(RunSettings, flags)


def test_without_flags_the_defaults_of_the_dataclasses() -> None:
    assert parse() == (StudySettings(), RunSettings())


def test_lists_switches_and_hyphens() -> None:
    study, run = parse(
        "--attention", "none,eca:kernel_size=9", "--skip-corrupt", "--batch-size=32",
        "--optimizer.weight-decay", "0", "--schedule.milestones", "[3, 5]", "--loggers=wandb",
    )  # fmt: skip
    assert study.attention == ["none", "eca:kernel_size=9"]
    assert run.skip_corrupt is True
    assert run.batch_size == 32
    assert run.optimizer.weight_decay == 0
    assert run.schedule.milestones == [3, 5]
    assert run.loggers == ["wandb"]
    assert parse("--channels_last", "false")[1].channels_last is False


@pytest.mark.parametrize("name", recipes())
def test_every_packaged_recipe_is_valid(name: str) -> None:
    study, run = parse("--recipe", name)
    assert study.attention[0] == "none", "the baseline stands first"
    assert recipes()[name]
    text = Path(__file__).parents[2].joinpath(f"ecanet/recipes/{name}.yaml").read_text()
    assert f"--recipe {name}" in text, "its header holds the command"
    assert parse("--recipe", name, "--epochs", "1")[1].epochs == 1 != run.epochs


def test_a_recipe_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 7\noptimizer:\n  name: adamw\n  lr: 0.001\n")
    _, run = parse("--recipe", str(path))
    assert (run.epochs, run.optimizer.name, run.optimizer.lr) == (7, "adamw", 0.001)
    assert run.optimizer.weight_decay == 5e-4
