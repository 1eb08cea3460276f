"""The progress of a training run as an animation: the same pictures with each epoch's weights."""

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

# Pixels of the animation's long side, and of one picture's in it.
_LARGEST, _LARGEST_PICTURE = 1200, 480
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
    """Return a line of text for each epoch, with its AP from the run's ``metrics.csv`` if it is there."""
    rows: dict[int, Mapping[str, str]] = {}
    for file in (run / "metrics.csv", run.parent / "metrics.csv"):
        if file.is_file():
            with open(file, newline="") as lines:
                rows = {int(float(row["epoch"])) + 1: row for row in csv.DictReader(lines)}
            break
    return {epoch: _caption(epoch, rows.get(epoch, {})) for epoch in epochs}


def _caption(epoch: int, row: Mapping[str, str]) -> str:
    figures = [
        f"{name} AP {100 * float(value):.1f}"
        for name in KIND_NAMES.values()
        for key, value in row.items()
        if key.endswith(f"{name}_AP") and value
    ]
    return ", ".join([f"epoch {epoch}", *figures])


def room(pictures: int) -> int:
    """Return the pixels of the long side that each of so many pictures may have."""
    return min(_LARGEST_PICTURE, _LARGEST // _columns(pictures))


def tile(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures side by side, in as many rows as columns or fewer."""
    columns = _columns(len(pictures))
    rows = [pictures[n : n + columns] for n in range(0, len(pictures), columns)]
    wide, heights = max(p.width for p in pictures), [max(p.height for p in row) for row in rows]
    sheet = Image.new("RGB", (columns * wide, sum(heights)), _BACKGROUND)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            left = c * wide + (wide - picture.width) // 2
            sheet.paste(picture, (left, sum(heights[:r]) + (heights[r] - picture.height) // 2))
    return sheet


def _columns(pictures: int) -> int:
    return math.ceil(math.sqrt(pictures))


def write_animation(path: Path, frames: Sequence[Image.Image], captions: Sequence[str]) -> None:
    """Write a GIF that shows each frame under its line of text, over and over, atomically.

    All frames share one palette, without dithering, and one of its entries is left for "as before": what
    does not change from frame to frame takes no room in the file.
    """
    told = [write_caption(*both) for both in zip(frames, captions, strict=True)]
    sample = Image.new("RGB", (told[0].width, told[0].height * min(3, len(told))))
    for n, index in enumerate(sorted({0, len(told) // 2, len(told) - 1})):
        sample.paste(told[index], (0, n * told[0].height))
    palette = sample.quantize(_COLORS, Image.Quantize.MEDIANCUT)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in told]
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
