import json
import math
from pathlib import Path
from typing import Any

import pytest

from ecanet.record import Record, read_record


def record(loss: float = 0.5) -> Record:
    epoch = {"epoch": 0, "train_loss": loss, "val_accuracy": 0.75, "lr": 0.1, "seconds": 2.0}
    final = {"test_accuracy": 0.7, "test_loss": loss, "epoch": 0, "train_seconds": 2.0}
    return Record({"attention": "eca", "seed": 3}, {"device": "x"}, [epoch], final)


def test_record_survives_json() -> None:
    again = Record.from_dict(json.loads(json.dumps(record().to_dict(), allow_nan=False)))
    assert again == record()


def test_diverged_run_is_kept_as_null_and_comes_back_as_nan() -> None:
    text = json.dumps(record(loss=math.nan).to_dict(), allow_nan=False)
    again = Record.from_dict(json.loads(text))
    assert math.isnan(again.epochs[0]["train_loss"])
    assert math.isnan(again.final["test_loss"])
    assert again.final["test_accuracy"] == 0.7


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"attention": "eca"}},
        {"settings": {"attention": 1, "seed": 0}},
        {"epochs": [{"train_loss": 1.0}]},
        {"epochs": [{"epoch": 0, "train_loss": "low"}]},
        {"final": None},
        {"final": {"epoch": None, "train_seconds": 1.0}},
        {"final": {"epoch": 0}},
        {"environment": "here"},
        {"best": {"epoch": 0}},
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        Record.from_dict(record().to_dict() | change)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"epochs": [{}]}', "\xff", "[" * 100_000]
)
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text, encoding="latin1")
    assert read_record(tmp_path / "record.json") is None
    assert read_record(tmp_path / "nowhere.json") is None
    (tmp_path / "record.json").write_text(json.dumps(record().to_dict()))
    assert read_record(tmp_path / "record.json") == record()
