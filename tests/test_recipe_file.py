"""Recipes and settings by name, as Python takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ecanet
from ecanet.config import (
    ClassificationSettings,
    DetectionSettings,
    Optimizer,
    StudySettings,
    TrainerSettings,
)
from ecanet.errors import UserError
from ecanet.recipe_file import recipe, recipes, settings_class, with_settings


@pytest.mark.parametrize("name", [n for n in recipes() if not n.startswith("sweeps/")])
def test_every_recipe_makes_settings(name: str) -> None:
    values = recipe(name)
    study, settings = with_settings(values, StudySettings, settings_class(values))
    detects = name.startswith(("coco/", "smoke/shapes"))
    assert isinstance(settings, DetectionSettings if detects else ClassificationSettings)
    assert study.attention == values.get("attention", StudySettings().attention)
    assert settings.epochs == values.get("epochs", settings.epochs)


def test_changes_take_the_place_of_a_recipes_settings() -> None:
    values = recipe("cifar10/resnet20", epochs=2, lr=0.01, schedule={"name": "step"})
    assert values["epochs"] == 2
    assert values["optimizer"] == {"lr": 0.01, "weight_decay": 5e-4}
    assert values["schedule"] == {"name": "step", "warmup_epochs": 1}
    assert recipe("cifar10/resnet20")["optimizer"]["lr"] == 0.1, "the recipe itself stays"


def test_keywords_are_settings_of_the_first_that_has_them() -> None:
    study, settings = with_settings(
        {"attention": ["none"], "seeds": 2, "data": Path("a"), "lr": 0.5, "optimizer": "AdamW"},
        StudySettings,
        ClassificationSettings(optimizer=Optimizer(weight_decay=0.0)),
    )
    assert (study.attention, study.seeds) == (["none"], 2)
    assert (settings.attention, settings.data) == (None, "a")
    assert settings.optimizer == Optimizer("adamw", lr=0.5, weight_decay=0.0)
    assert settings_class({"trainer": "mine.py:train"}) is TrainerSettings


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"epoch": 3}, "unknown setting epoch. Did you mean epochs"),
        ({"optimizer": {"lrate": 3}}, "unknown setting optimizer.lrate. Did you mean"),
        ({"optimizer": 3}, "optimizer takes settings of its own, as a dict: layer_decay, lr"),
        ({"epochs": {"a": 3}}, "epochs takes a value, and no settings below it"),
        ({"epochs": 0}, "--epochs 0: give a whole number from 1"),
        ({"seed": 3}, "unknown setting seed. Did you mean seeds"),
    ],
)
def test_what_is_no_setting_is_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        with_settings(values, StudySettings, ClassificationSettings, skip={"seed"})
    assert line in str(error.value)


def test_nothing_is_written_for_an_unknown_keyword(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean epochs"):
        ecanet.compare(tmp_path / "study", epoch=3)
    with pytest.raises(UserError, match="Did you mean trials"):
        ecanet.sweep({"method": "random", "parameters": {}}, tmp_path / "study", trial=3)
    assert not (tmp_path / "study").exists()


def test_a_recipes_programs_are_named_by_the_caller_too(tmp_path: Path) -> None:
    file, plugin = tmp_path / "theirs.yaml", str(tmp_path / "theirs.py")
    file.write_text(f"epochs: 2\nplugin: [{plugin}]\n")
    with pytest.raises(UserError, match="a program that would be run"):
        recipe(file)
    assert recipe(file, plugin=[plugin])["plugin"] == [plugin]
    assert recipe(file, trust_plugins=True)["plugin"] == [plugin]
    file.write_text("trainer: theirs.py:train\n")
    with pytest.raises(UserError, match=r"names the trainer 'theirs\.py:train'"):
        recipe(file)
    file.write_text("storage: postgresql://elsewhere/theirs\n")
    with pytest.raises(UserError, match="cannot say where a study is"):
        recipe(file, trust_plugins=True)
    with pytest.raises(
        UserError, match=r"no recipe or file 'smoke/digit'\. Did you mean smoke/digits"
    ):
        recipe("smoke/digit")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lrr": 0.1}, "unknown setting lrr. Did you mean lr"),
        ({"epoch": 3}, "unknown setting epoch. Did you mean epochs"),
        ({"optimizer": {"lrr": 0.1}}, "unknown setting optimizer.lrr. Did you mean optimizer.lr"),
        ({"optimizer.lrr": 0.1}, "unknown setting optimizer.lrr. Did you mean optimizer.lr"),
        ({"optimizer": 3}, "optimizer takes settings of its own, as a dict"),
        ({"epochs": {"a": 3}}, "epochs takes a value, and no settings below it"),
        ({"zzz": 3}, "unknown setting zzz. Known: anchor_size, attention,"),
    ],
)
def test_changes_of_a_recipe_are_settings(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        recipe("smoke/digits", **changes)
    assert str(error.value).startswith(line)


def test_the_file_of_a_misspelled_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 2\noptimizer: {lrr: 0.1}\n")
    with pytest.raises(
        UserError, match=r"mine\.yaml: unknown setting optimizer\.lrr\. Did you mean"
    ):
        recipe(file)


def test_a_sweep_file_and_one_for_another_library_are_read_too(tmp_path: Path) -> None:
    assert recipe("sweeps/reproduction2020")["method"] == "bayes"
    file = tmp_path / "yolo.yaml"
    file.write_text("model: yolo11n.yaml\nplaces: neck\n")
    assert recipe(file, epochs=3) == {"model": "yolo11n.yaml", "places": "neck", "epochs": 3}


@pytest.mark.parametrize("name", [None, 3, b"smoke/digits", ["smoke/digits"]])
def test_a_recipe_is_a_name_or_a_file(name: Any) -> None:
    with pytest.raises(UserError, match="a recipe is given by its name or file"):
        recipe(name)


def test_a_dict_is_no_object_of_settings(tmp_path: Path) -> None:
    values: Any = {"epochs": 1}
    for place in ((values, None), (None, values)):
        with pytest.raises(UserError, match="give names and values as keywords"):
            ecanet.compare(tmp_path / "study", *place)
    assert not (tmp_path / "study").exists()
