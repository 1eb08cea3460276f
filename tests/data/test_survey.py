"""What is said of a folder's images before a run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ecanet.data.decode import Window
from ecanet.data.stream import ImageList
from ecanet.data.survey import look_at


def images(root: Path, arrays: list[np.ndarray], window: Window | None = None) -> ImageList:
    files = []
    for number, array in enumerate(arrays):
        files.append(f"{number}.{'tif' if array.dtype == np.float32 else 'png'}")
        Image.fromarray(array).save(root / files[-1])
    return ImageList(root, files, [0] * len(files), ["all"], window=window)


def random(low: float, high: float, kind: type, channels: int = 1) -> np.ndarray:
    values = np.random.default_rng(0).uniform(low, high, (9, 12, channels)).astype(kind)
    return values if channels > 1 else values[..., 0]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="ecanet")
    return caplog


def warnings(said: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in said.records if record.levelno == logging.WARNING]


def test_photographs_pass_without_a_word(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    look_at(images(tmp_path, [random(0, 255, np.uint8, 3)] * 3))
    assert said.text == ""


def test_the_rule_for_deep_pixels_is_logged(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    deep, shallow = random(0, 65535, np.uint16), random(0, 255, np.uint8, 3)
    look_at(images(tmp_path, [deep, shallow, deep]))
    assert "2 of the 3 images looked at have 16-bit pixels, with values from" in said.text
    assert "0 becomes black and 65535 white" in said.text
    look_at(images(tmp_path, [random(-1000, 400, np.float32)] * 2, (-1000, 400)))
    assert "2 of the 2 images looked at have floating-point pixels" in said.text
    assert "-1000 becomes black and 400 white" in said.text
    assert warnings(said) == []


def test_a_rule_that_leaves_nothing_is_warned_of(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    """Cameras and scanners store 10 or 12 bits in 16."""
    look_at(images(tmp_path, [random(0, 1023, np.uint16)] * 2))
    (line,) = warnings(said)
    assert "the 16-bit pixels lose most of their contrast in 8 bits: --window" in line


@pytest.mark.parametrize("window", [None, (5000.0, 6000.0)])
def test_images_of_one_color_are_warned_of(
    tmp_path: Path, said: pytest.LogCaptureFixture, window: Window | None
) -> None:
    """Whatever the reason: a wrong window, or data that were empty all along."""
    black = random(0, 200, np.uint16) if window else np.full((9, 12, 3), 40, np.uint8)
    look_at(images(tmp_path, [black] * 3, window))
    assert any(
        "each of the 3 images looked at has a single color (first: 0.png)" in w
        for w in warnings(said)
    )
    said.clear()
    look_at(images(tmp_path, [np.zeros((9, 12, 3), np.uint8), random(0, 255, np.uint8, 3)]))
    assert said.text == "", "a single one is no reason to worry"


def test_a_window_without_effect_and_grey_images_are_pointed_out(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    listed = images(tmp_path, [random(0, 255, np.uint8)] * 3, (0, 100))
    look_at(listed)
    assert "--window has no effect: none of the 3 images looked at is grey with more" in said.text
    assert "all of the 3 images looked at are grey: --in-chans 1" in said.text
    said.clear()
    look_at(listed, 3)
    assert "are grey:" not in said.text, "a choice was made"


def test_what_cannot_be_read_is_left_to_others(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    listed = images(tmp_path, [random(-5, 900, np.float32), random(0, 255, np.uint8, 3)])
    (tmp_path / "1.png").write_bytes(b"damaged")
    look_at(listed)
    assert said.text == ""
