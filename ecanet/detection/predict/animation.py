"""The progress of a training run as an animation: the same images with each epoch's weights."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from ecanet.detection.evaluation import KIND_NAMES
from ecanet.detection.predict.drawing import write_caption
from ecanet.errors import UserError
from ecanet.files import write_atomic

# Limits in pixels of the animation's long side, and of each image's in it.
_MAX_SIDE, _MAX_IMAGE_SIDE = 1200, 480
_FRAME_MS, _LAST_FRAME_MS = 700, 3000
_COLORS = 255
_BACKGROUND = (24, 24, 24)


def find_checkpoints(run: Path) -> dict[int, Path]:
    """Return the weight file of each epoch, counted from 1: ``run/epochs/epoch001.safetensors`` ...

    ``run`` may be that folder itself.

    Raises:
        UserError: there is none.
    """
    found: dict[int, Path] = {}
    for folder in (run / "epochs", run):
        for path in folder.glob("*.safetensors"):
            number = re.fullmatch(r"epoch[-_]?(\d+)", path.stem)
            if number:
                found.setdefault(int(number[1]), path)
    if not found:
        raise UserError(
            f"{run} holds no weights of single epochs (epochs/epoch001.safetensors ...): "
            "`ecanet detect train` keeps them with --keep-epochs"
        )
    return dict(sorted(found.items()))


def read_captions(run: Path, epochs: Sequence[int]) -> dict[int, str]:
    """Return a caption for each epoch, with its AP if the run has a ``metrics.csv``."""
    rows: dict[int, Mapping[str, str]] = {}
    for file in (run / "metrics.csv", run.parent / "metrics.csv"):
        if file.is_file():
            with open(file, newline="") as lines:
                rows = {int(float(row["epoch"])) + 1: row for row in csv.DictReader(lines)}
            break
    return {epoch: _caption(epoch, rows.get(epoch, {})) for epoch in epochs}


def _caption(epoch: int, row: Mapping[str, str]) -> str:
    metrics = [
        f"{name} AP {100 * float(value):.1f}"
        for name in KIND_NAMES.values()
        for key, value in row.items()
        if key.endswith(f"{name}_AP") and value
    ]
    return ", ".join([f"epoch {epoch}", *metrics])


def image_side(count: int) -> int:
    """Return the limit in pixels of the long side of each of ``count`` images."""
    return min(_MAX_IMAGE_SIDE, _MAX_SIDE // _columns(count))


def tile(images: Sequence[Image.Image]) -> Image.Image:
    """Return images in a grid with no more rows than columns."""
    columns = _columns(len(images))
    rows = [images[n : n + columns] for n in range(0, len(images), columns)]
    wide, heights = max(p.width for p in images), [max(p.height for p in row) for row in rows]
    sheet = Image.new("RGB", (columns * wide, sum(heights)), _BACKGROUND)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            left = c * wide + (wide - image.width) // 2
            sheet.paste(image, (left, sum(heights[:r]) + (heights[r] - image.height) // 2))
    return sheet


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def write_animation(path: Path, frames: Sequence[Image.Image], captions: Sequence[str]) -> None:
    """Write an endless GIF of the frames under their captions, atomically.

    All frames share one palette, without dithering, and one of its entries is reserved for unchanged
    pixels, which therefore take no space in the file.
    """
    captioned = [write_caption(*both) for both in zip(frames, captions, strict=True)]
    sample = Image.new("RGB", (captioned[0].width, captioned[0].height * min(3, len(captioned))))
    for n, index in enumerate(sorted({0, len(captioned) // 2, len(captioned) - 1})):
        sample.paste(captioned[index], (0, n * captioned[0].height))
    palette = sample.quantize(_COLORS, Image.Quantize.MEDIANCUT)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in captioned]
    content = io.BytesIO()
    indexed[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=[_FRAME_MS] * (len(indexed) - 1) + [_LAST_FRAME_MS],
        loop=0,
        optimize=True,  # unchanged pixels become transparent
    )
    write_atomic(path, content.getbuffer())
