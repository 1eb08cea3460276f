import json
import math
import os
import threading
from pathlib import Path

import pytest

from ecanet.record import EpochMetrics, FinalMetrics, Record, write_atomic, write_json


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


def test_a_reader_never_sees_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = {str(i) * 200_000 for i in range(2)}
    write_atomic(path, "0" * 200_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for text in texts:
                write_atomic(path, text)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(path.read_text() in texts for _ in range(200))
    finally:
        stop.set()
        writer.join()
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "a.json", {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_nan_is_refused_in_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Out of range|not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": math.nan})
    assert not (tmp_path / "a.json").exists()
