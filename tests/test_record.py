import json
import math
from pathlib import Path

import pytest

from ecanet.record import EpochMetrics, FinalMetrics, Record, read_record


def record(loss: float = 0.5) -> Record:
    epoch = EpochMetrics(0, loss, 0.8, 0.6, 0.75, 0.1, 2.0)
    final = FinalMetrics(0.7, loss, 0.75, 0, 2.0)
    return Record("eca", 3, {"epochs": 1}, {"device": "x"}, [epoch], final)


def test_record_survives_json() -> None:
    again = Record.from_dict(json.loads(json.dumps(record().to_dict(), allow_nan=False)))
    assert again == record()


def test_diverged_run_is_kept_as_null_and_comes_back_as_nan() -> None:
    text = json.dumps(record(loss=math.nan).to_dict(), allow_nan=False)
    again = Record.from_dict(json.loads(text))
    assert math.isnan(again.epochs[0].train_loss)
    assert again.final is not None
    assert math.isnan(again.final.test_loss)
    assert again.final.test_accuracy == 0.7


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"epochs": [{}]}', "\xff", "[" * 100_000]
)
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text, encoding="latin1")
    assert read_record(tmp_path / "record.json") is None
    assert read_record(tmp_path / "nowhere.json") is None
    (tmp_path / "record.json").write_text(json.dumps(record().to_dict()))
    assert read_record(tmp_path / "record.json") == record()
