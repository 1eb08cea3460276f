"""Dataclasses from plain values."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from ecanet.config import ClassificationSettings, DetectionSettings
from ecanet.errors import UserError
from ecanet.typed import typed


@pytest.mark.parametrize(
    "made",
    [
        ClassificationSettings(),
        ClassificationSettings(image_size=32, loggers=["wandb"]),
        DetectionSettings(),
    ],
)
def test_what_was_written_down_comes_back(made: ClassificationSettings | DetectionSettings) -> None:
    assert typed(type(made), json.loads(json.dumps(asdict(made)))) == made


def test_what_is_not_there_has_its_default() -> None:
    made = typed(ClassificationSettings, {"epochs": 3})
    assert made == replace(ClassificationSettings(), epochs=3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"epochs": "3"}, "epochs"),
        ({"epochs": 3.0}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"epochs": 2**63}, "epochs"),
        ({"data": 5}, "data"),
        ({"data": "x" * 10_000}, "data"),
        ({"validation": float("nan")}, "validation"),
        ({"select": "first"}, "select"),
        ({"select": ["last"]}, "select"),
        ({"loggers": "wandb"}, "loggers"),
        ({"loggers": ["csv"]}, "loggers"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"optimizer": {"lr": "0.1"}}, "optimizer.lr"),
        ({"optimizer": {"class_path": "os.system"}}, "class_path"),
        ({"nonesuch": 1}, "nonesuch"),
        ([], "ClassificationSettings"),
    ],
)
def test_what_does_not_fit_is_named(values: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        typed(ClassificationSettings, values)
