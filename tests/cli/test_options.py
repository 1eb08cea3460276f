from collections.abc import Set
from dataclasses import fields
from pathlib import Path

import pytest

import ecanet
from ecanet.cli.options import SettingsParser, StudyCommand, pick
from ecanet.cli.sweep import _Command as SweepCommand
from ecanet.cli.train import TrainCommand
from ecanet.config import (
    ClassificationSettings,
    DetectionSettings,
    StudySettings,
    SweepSettings,
    TrainingSettings,
)
from ecanet.errors import UserError
from ecanet.recipe_file import recipes


def parse(*arguments: str) -> tuple[StudySettings, ClassificationSettings]:
    parser = SettingsParser("test", "", StudySettings, ClassificationSettings, skip={"seed"})
    flags = parser.parse(arguments)
    settings = pick(ClassificationSettings, flags, attention=None, seed=0)
    return pick(StudySettings, flags), settings


def test_without_flags_the_defaults_of_the_dataclasses() -> None:
    assert parse() == (StudySettings(), ClassificationSettings())


def test_lists_switches_and_hyphens() -> None:
    study, run = parse(
        "--attention", "none,eca:kernel_size=9", "--replace-attention", "--batch-size=32",
        "--optimizer.weight-decay", "0", "--schedule.milestones", "[3, 5]", "--loggers=wandb",
    )  # fmt: skip
    assert study.attention == ["none", "eca:kernel_size=9"]
    assert run.replace_attention is True
    assert run.batch_size == 32
    assert run.optimizer.weight_decay == 0
    assert run.schedule.milestones == [3, 5]
    assert run.loggers == ["wandb"]
    assert parse("--channels_last", "false")[1].channels_last is False


@pytest.mark.parametrize("cls", [ClassificationSettings, DetectionSettings])
def test_train_compare_and_sweep_take_the_same_flags(cls: type[TrainingSettings]) -> None:
    def flags(*settings: type, skip: Set[str] = frozenset()) -> set[str]:
        return set(SettingsParser("test", "", *settings, skip=skip).flags)

    trains = flags(TrainCommand, cls) - {"resume", "accept_changes"}
    studies = {"database", "study", "jobs"}
    # A comparison has the seed of each run.
    compares = flags(StudyCommand, StudySettings, cls, skip={"seed"})
    assert compares - studies == trains - {"seed"} | {
        *("seeds", "first_seed", "keep_weights", "detect", "max_seeds", "confidence", "pairing")
    }
    sweeps = flags(SweepCommand, SweepSettings, cls)
    own = {field.name for field in fields(SweepSettings)} | {"file"}
    assert sweeps - studies == trains | own


@pytest.mark.parametrize("value", ["", "true", "on"])
def test_compile_takes_the_values_it_had(value: str) -> None:
    assert parse(f"--compile={value}" if value else "--compile")[1].compile == "on"
    assert parse("--compile", "false")[1].compile == "off"
    assert parse("--compile", "auto")[1].compile == "auto"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--skip-corrupt"], "--skip-corrupt is now --corrupt skip"),
        (["--skip_corrupt=true"], "--skip-corrupt is now --corrupt skip"),
        (["--corrupt", "replace"], "--corrupt replace is now --corrupt skip"),
        (["--recipe", "skip_corrupt: true"], "skip_corrupt is now corrupt: skip"),
        (["--recipe", "skip_corrupt: false"], "skip_corrupt is now corrupt: refuse"),
        (["--recipe", "corrupt: replace"], "expected one of 'refuse', 'skip', got replace"),
    ],
)
def test_old_names_are_refused_with_the_new_one(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    if arguments[0] == "--recipe":
        recipe = tmp_path / "old.yaml"
        recipe.write_text(arguments[1])
        arguments = ["--recipe", str(recipe)]
    with pytest.raises(UserError, match=says):
        parse(*arguments)


def test_the_old_name_of_the_settings_is_refused_with_the_new_one() -> None:
    with pytest.raises(AttributeError, match=r"is now ecanet\.ClassificationSettings"):
        ecanet.RunSettings  # noqa: B018


@pytest.mark.parametrize("flag", ["--storage", "--database"])
def test_storage_is_of_images_or_of_the_study(flag: str) -> None:
    parser = SettingsParser("test", "", StudyCommand, ClassificationSettings)
    address = "postgresql://me@h/x"
    flags = parser.parse([flag, address, "--storage", "stream"])
    assert (flags.database, flags.storage) == (address, "stream")
    assert parser.parse([flag, address]).storage == "auto"


def test_a_recipe_names_no_database(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    parser = SettingsParser("test", "", StudyCommand, ClassificationSettings)
    for line in ("storage: postgresql://h/x", "database: postgresql://h/x", "study: x"):
        recipe.write_text(line)
        with pytest.raises(UserError, match="a recipe cannot say where a study is"):
            parser.parse(["--recipe", str(recipe)])
    recipe.write_text("storage: stream")
    assert parse("--recipe", str(recipe))[1].storage == "stream"


def parse_train(*arguments: str) -> ClassificationSettings:
    parser = SettingsParser("test", "", TrainCommand, ClassificationSettings, positional="data")
    flags = parser.parse(arguments)
    return pick(ClassificationSettings, flags, data=flags.data or "digits")


def test_the_flags_of_the_2020_scripts() -> None:
    settings = parse_train(
        "-a", "eca_resnet50", "-j", "4", "--epochs", "90", "-b", "128", "--lr", "0.2",
        "--momentum=0.8", "--wd", "1e-4", "--ksize", "3557", "--pretrained", "DATA",
        "--project", "ECANet_RC2020",
    )  # fmt: skip
    assert settings.data == "DATA"
    assert (settings.model, settings.workers, settings.epochs) == ("eca_resnet50", 4, 90)
    assert (settings.batch_size, settings.optimizer.lr) == (128, 0.2)
    assert (settings.optimizer.momentum, settings.optimizer.weight_decay) == (0.8, 1e-4)
    assert (settings.kernel_sizes, settings.pretrained) == ("3557", True)
    assert settings.project == "ECANet_RC2020"
    assert parse_train("DATA", "-m", "resnet18").model == "resnet18"
    with pytest.raises(UserError, match="Did you mean --epochs"):
        parse_train("DATA", "--epoch", "3")


def parse_detect(*arguments: str) -> DetectionSettings:
    parser = SettingsParser("test", "", DetectionSettings)
    return pick(DetectionSettings, parser.parse(arguments))


def test_coco_recipes_are_the_schedule_of_2019() -> None:
    for name, rate in (("faster_rcnn", 0.02), ("mask_rcnn", 0.02), ("retinanet", 0.01)):
        settings = parse_detect("--recipe", f"coco/{name}")
        assert (settings.detector, settings.optimizer.lr) == (name, rate)
        assert (settings.batch_size, settings.epochs, settings.frozen_stages) == (16, 12, 1)
        assert (settings.schedule.milestones, settings.schedule.warmup_steps) == ([8, 11], 500)
        assert (settings.min_size, settings.max_size) == ([800], 1333)


def test_a_field_that_two_classes_have_is_the_first_ones() -> None:
    parser = SettingsParser("test", "", StudySettings, DetectionSettings, skip={"seed"})
    assert parser.parse(["--attention", "none,se"]).attention == ["none", "se"]
    with pytest.raises(UserError, match="--seed"):
        parser.parse(["--seed", "3"])


def test_the_flags_of_a_wandb_agent() -> None:
    settings = parse_train(
        "DATA", "--attention=ECA", "--optimizer=Adam", "--batch_size=64", "--learning_rate=0.01",
        "--weight_decay=0.0001", "--pretrained=True", "--schedule=constant",
    )  # fmt: skip
    assert (settings.optimizer.name, settings.optimizer.lr) == ("adam", 0.01)
    assert settings.optimizer.weight_decay == 1e-4
    assert (settings.batch_size, settings.pretrained) == (64, True)
    assert settings.schedule.name == "constant"
    # Nested parameters come as one, written as Python would.
    nested = parse_train("DATA", "--optimizer={'name': 'adam', 'lr': 0.002}")
    assert (nested.optimizer.name, nested.optimizer.lr) == ("adam", 0.002)
    with pytest.raises(UserError, match=r"optimizer\.name.*expected one of 'sgd'"):
        parse_train("DATA", "--optimizer=adma")


def test_imagenet_recipes_are_the_papers() -> None:
    resnet = parse_train("--recipe", "imagenet/eca_resnet50")
    assert (resnet.optimizer.lr, resnet.optimizer.weight_decay) == (0.1, 1e-4)
    assert (resnet.batch_size, resnet.epochs, resnet.kernel_sizes) == (256, 100, "3557")
    assert resnet.schedule.milestones == [30, 60, 90]
    mobilenet = parse_train("--recipe", "imagenet/eca_mobilenet_v2")
    assert (mobilenet.optimizer.lr, mobilenet.optimizer.weight_decay) == (0.045, 4e-5)
    assert (mobilenet.batch_size, mobilenet.epochs) == (96, 400)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipes() if not name.startswith("sweeps/")])
def test_every_packaged_recipe_is_valid(name: str) -> None:
    text = Path(__file__).parents[2].joinpath(f"ecanet/recipes/{name}.yaml").read_text()
    assert f"--recipe {name}" in text, "its header holds the command"
    assert recipes()[name]
    if "detect train" in text:
        read = parse_detect
    elif "ecanet train" in text:
        read = parse_train
    else:
        assert parse("--recipe", name)[0].attention[0] == "none", "the baseline stands first"

        def read(*flags: str) -> ClassificationSettings:
            return parse(*flags)[1]

    assert read("--recipe", name, "--epochs", "1").epochs == 1 != read("--recipe", name).epochs


def test_a_recipe_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 7\noptimizer:\n  name: adamw\n  lr: 0.001\n")
    _, run = parse("--recipe", str(path))
    assert (run.epochs, run.optimizer.name, run.optimizer.lr) == (7, "adamw", 0.001)
    assert run.optimizer.weight_decay == 5e-4
