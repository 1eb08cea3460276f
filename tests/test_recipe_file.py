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
