"""Predictions of a run, in Parquet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ecanet.errors import UserError
from ecanet.predictions import Predictions, read_predictions, write_predictions


def _found() -> Predictions:
    scores = np.array([[1.0, 2.0, 0.0], [0.5, -1.0, 70000.0]])
    with np.errstate(over="ignore"):
        rounded = scores.astype(np.float16)
    return Predictions(
        ["test/a/1.jpg", "test/ü/2.jpg"],
        np.array([0, 2], np.int32),
        np.array([1, 2], np.int32),
        rounded,
        ["a", "b", "ü"],
    )


def test_predictions_come_back_as_written(tmp_path: Path) -> None:
    there = _found()
    write_predictions(tmp_path / "p.parquet", there)
    found = read_predictions(tmp_path / "p.parquet")
    assert (found.images, found.classes) == (there.images, there.classes)
    for name in ("labels", "predicted", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(there, name))
        assert getattr(found, name).dtype == getattr(there, name).dtype
    assert found.right.tolist() == [False, True]


def test_groups_of_images_are_kept(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.parquet", replace(_found(), groups=["ä", "patient 2"]))
    assert read_predictions(tmp_path / "p.parquet").groups == ["ä", "patient 2"]
    write_predictions(tmp_path / "p.parquet", _found())
    assert read_predictions(tmp_path / "p.parquet").groups is None


def test_other_programs_read_the_columns(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.parquet", _found())
    table = parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["image", "label", "predicted", "scores"]
    assert table["scores"].type == pa.list_(pa.float16(), 3)
    assert json.loads(table.schema.metadata[b"classes"]) == ["a", "b", "ü"]


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, _found())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="does not hold predictions"):
        read_predictions(path)
    parquet.write_table(pa.table({"image": ["x"]}), path)
    with pytest.raises(UserError, match="does not hold predictions"):
        read_predictions(path)


def test_labels_without_a_class_are_refused(tmp_path: Path) -> None:
    there = _found()
    there.labels[0] = 3
    write_predictions(tmp_path / "p.parquet", there)
    with pytest.raises(UserError, match="a class has no name"):
        read_predictions(tmp_path / "p.parquet")
