import dataclasses
import math
import typing
from typing import Any

import pytest

from ecanet import config
from ecanet.cli import options
from ecanet.cli.detect import predict
from ecanet.errors import UserError
from ecanet.typed import field_types

_CLASSES = [
    cls for cls in vars(config).values() if dataclasses.is_dataclass(cls) and isinstance(cls, type)
] + [options.StudyCommand, predict._Command]


def _made(cls: type[Any]) -> Any:
    needed = {"trainer": "mine.py:train"} if cls is config.TrainerSettings else {}
    return cls(**needed)


def _numbers() -> list[Any]:
    """All settings that are a number or some: the class, the name, and whether it is a list."""
    found = []
    for cls in _CLASSES:
        for name, hint in field_types(cls).items():
            options = [hint, *typing.get_args(hint)]
            # That of the validation split is the data's to check, which may need none.
            if name != "validation" and (int in options or float in options):
                several = any(typing.get_origin(option) is list for option in options)
                found.append(pytest.param(cls, name, several, id=f"{cls.__name__}.{name}"))
    return found


@pytest.mark.parametrize("cls", _CLASSES)
def test_the_defaults_are_in_their_ranges(cls: type[Any]) -> None:
    config.check_ranges(_made(cls))


@pytest.mark.parametrize(("cls", "name", "several"), _numbers())
def test_no_setting_takes_numbers_out_of_range(cls: type[Any], name: str, several: bool) -> None:
    for value in (math.nan, math.inf, -math.inf, 10**30, -1, -0.5):
        if name in ("lr", "weight_decay", "clip_grad", "timeout") and value == 10**30:
            continue  # a number like another
        with pytest.raises(
            UserError,
            match=rf"^--{name.replace('_', '-')} \S+: give a (whole )?number (from|above)",
        ):
            config.check_ranges(
                dataclasses.replace(_made(cls), **{name: [value] if several else value})
            )


def test_a_setting_within_another_is_named_in_full() -> None:
    line = r"--optimizer\.momentum 1\.0: give a number from 0 to below 1"
    with pytest.raises(UserError, match=line):
        config.ClassificationSettings(optimizer=config.Optimizer(momentum=1.0))


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(UserError, match="--model is empty"):
        config.DetectionSettings(model="")
    with pytest.raises(UserError, match="--attention is empty"):
        config.StudySettings(attention=["none", ""])


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (config.MAY_CHANGE, "device devices workers save_every rollbacks loggers project corrupt"),
        (
            config.FIXED,
            "model attention kernel_sizes replace_attention detector norm width data validation select "
            "metric in_chans test group_by columns channels",
        ),
        (
            config.SHARED,
            "data storage image_size eval_size in_chans window crop_share validation corrupt split "
            "eval_split limit keep_empty ignore_exif device devices workers save_every rollbacks threads "
            "precision channels_last compile loggers project plugin metric test group_by columns",
        ),
        (
            config.NOT_IN_RECIPES,
            "device workers save_every rollbacks loggers project seed",
        ),
    ],
)
def test_which_settings_are_in_which_set(found: frozenset[str], wanted: str) -> None:
    assert found == set(wanted.split())
    tasks = (config.ClassificationSettings, config.DetectionSettings)
    assert found <= {field.name for cls in tasks for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("cls", [config.ClassificationSettings, config.EvaluateSettings])
@pytest.mark.parametrize("window", [[], [1.0], [0, 1, 2], [5, 5], [400, -1000]])
def test_a_window_is_two_numbers_in_order(cls: type[Any], window: list[float]) -> None:
    with pytest.raises(UserError, match=r"^--window \[.*give the values of black and of white"):
        cls(window=window)
    assert cls(window=[-1000, 400]).window == [-1000, 400]


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (config.ClassificationSettings, {"epochs": 0}),
        (config.DetectionSettings, {"batch_size": 0}),
        (config.StudySettings, {"seeds": 0}),
        (config.SweepSettings, {"trials": 0}),
        (config.EvaluateSettings, {"eval_size": 0}),
    ],
)
def test_a_library_caller_gets_the_commands_checks(cls: type[Any], values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(
        UserError, match=f"^--{name.replace('_', '-')} 0: give a whole number from 1 to "
    ):
        cls(**values)
