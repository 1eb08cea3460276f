import dataclasses
import math
import typing
from typing import Any

import pytest

from ecanet import config
from ecanet.cli import options
from ecanet.cli.detect import predict
from ecanet.errors import UserError

_CLASSES = [
    cls for cls in vars(config).values() if dataclasses.is_dataclass(cls) and isinstance(cls, type)
] + [options.StudyCommand, predict._Command]


def _numbers() -> list[Any]:
    """All settings that are a number or some: the class, the name, and whether it is a list."""
    found = []
    for cls in _CLASSES:
        for name, hint in typing.get_type_hints(cls).items():
            options = [hint, *typing.get_args(hint)]
            # That of the validation split is the data's to check, which may need none.
            if name != "validation" and (int in options or float in options):
                several = any(typing.get_origin(option) is list for option in options)
                found.append(pytest.param(cls, name, several, id=f"{cls.__name__}.{name}"))
    return found


@pytest.mark.parametrize("cls", _CLASSES)
def test_the_defaults_are_in_their_ranges(cls: type[Any]) -> None:
    config.check_ranges(cls())


@pytest.mark.parametrize(("cls", "name", "several"), _numbers())
def test_no_setting_takes_what_is_no_number_or_too_large(
    cls: type[Any], name: str, several: bool
) -> None:
    for value in (math.nan, math.inf, -math.inf, 10**30, -1, -0.5):
        settings = dataclasses.replace(cls(), **{name: [value] if several else value})
        if name in ("lr", "weight_decay", "clip_grad", "timeout") and value == 10**30:
            continue  # a number like another
        with pytest.raises(UserError, match=rf"^--{name} \S+: give a (whole )?number (from|above)"):
            config.check_ranges(settings)


def test_a_setting_within_another_is_named_in_full() -> None:
    settings = config.RunSettings(optimizer=config.Optimizer(momentum=1.0))
    with pytest.raises(
        UserError, match=r"--optimizer\.momentum 1\.0: give a number from 0 to below 1"
    ):
        config.check_ranges(settings)
    with pytest.raises(UserError, match="--epochs 0: give a whole number from 1 to 1000000"):
        config.check_ranges(config.RunSettings(epochs=0))


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(UserError, match="--model is empty"):
        config.check_ranges(config.RunSettings(model=""))
    with pytest.raises(UserError, match="--attention is empty"):
        config.check_ranges(config.StudySettings(attention=["none", ""]))
