"""train, evaluate and predict from Python: the same runs as by the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.photographs import draw_photographs

import ecanet
from ecanet.errors import UserError

SMALL = {"model": "resnet20", "image_size": 32, "epochs": 1, "batch_size": 16, "device": "cpu"}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which weights"):
        ecanet.predict(tmp_path)
    with pytest.raises(UserError, match="there is no image in the folder"):
        ecanet.predict(tmp_path, weights="run")
    with pytest.raises(UserError, match="which images"):
        ecanet.predict([], weights="run")
    both = "none of the 2 could be read; the first: there is no image .*a.png"
    with pytest.raises(UserError, match=both):
        ecanet.predict([tmp_path / "a.png", tmp_path / "b.png"], weights="run")
    with pytest.raises(UserError, match=r"unknown setting weight\. Did you mean weights"):
        ecanet.evaluate(tmp_path, weight="run")
    with pytest.raises(UserError, match="train takes one attention module, got none, eca"):
        ecanet.train("digits", tmp_path / "run", attention=["none", "eca"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_train_then_evaluate_then_predict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd = pytest.importorskip("pandas")
    photos = draw_photographs(tmp_path / "photos")
    run = ecanet.train(photos, tmp_path / "run", attention=["eca"], **SMALL)
    assert run.settings["attention"] == "eca"
    found = ecanet.evaluate(photos, weights=tmp_path / "run", device="cpu")
    assert found.accuracy == found.metrics["accuracy"]
    classes = found.to_frame()
    assert list(classes.columns) == ["class", "images", "accuracy", "precision", "f1"]
    assert classes["images"].sum() == found.metrics["images"]
    assert "top-1" in repr(found)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    answers = ecanet.predict([photos, broken], weights=tmp_path / "run", top=2, device="cpu")
    frame = answers.to_frame()
    assert isinstance(frame, pd.DataFrame)
    columns = ["image", "class", "probability", "class_2", "probability_2", "fault"]
    assert list(frame.columns) == columns
    assert frame["fault"].notna().sum() == 1
    assert (frame["probability"] >= frame["probability_2"])[:-1].all()
    assert "<table" in answers._repr_html_()
    with pytest.raises(UserError, match="cannot be read as an image"):
        ecanet.predict(broken, weights=tmp_path / "run", device="cpu")
