"""Detections drawn on images: masks, boxes and names, legible on any background."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion
from torch import Tensor

Color = tuple[int, int, int]
ColorBy = Literal["class", "object"]
_Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom."""

MASK_OPACITY = 0.45
# Smaller images are enlarged to this long side before anything is drawn, to make room for names.
_SMALLEST = 256
_SMALLEST_FONT = 12
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def draw_detections(
    image: Tensor,
    detections: Mapping[str, Tensor],
    class_names: Sequence[str],
    *,
    color_by: ColorBy = "class",
) -> Image.Image:
    """Draw detections on a copy of an image.

    Small objects are drawn over large ones, and names over everything but, where there is room, not over
    each other. Line widths and letters grow with the image; see :func:`enlargement` for small ones.

    Args:
        image: uint8 RGB (3, H, W).
        detections: ``boxes`` (N, 4) as left, top, right, bottom in pixels, ``labels`` (N,) from 1 on,
            ``scores`` (N,), and if there are masks ``masks`` (N, 1, H, W), true over 0.5.
        class_names: of the labels 1, 2, ...
        color_by: ``class``: one color per class, the same in every image; ``object``: one per object.
    """
    factor = enlargement(image)
    pixels = image.permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)
    boxes = detections["boxes"].float().mul(factor).tolist()
    labels = detections["labels"].tolist()
    colors = [
        object_color(label - 1 if color_by == "class" else n) for n, label in enumerate(labels)
    ]
    size = _font_size(pixels)
    line = max(1, round(_scale(pixels) / 300))
    largest_first = sorted(range(len(boxes)), key=lambda n: -_area(boxes[n]))
    if "masks" in detections:
        for n in largest_first:
            mask = (detections["masks"][n, 0] > 0.5).numpy().repeat(factor, 0).repeat(factor, 1)
            _draw_mask(pixels, mask, colors[n], line)
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    for n in largest_first:
        _draw_box(draw, boxes[n], colors[n], line)
    names: list[tuple[_Rectangle, str, Color, ImageFont.FreeTypeFont]] = []
    # The highest scores choose their places first, and are written over the others.
    for n in sorted(range(len(boxes)), key=lambda n: -float(detections["scores"][n])):
        text = f"{class_names[labels[n] - 1]} {float(detections['scores'][n]):.2f}"
        # Small objects usually stand close together.
        letters = size if _area(boxes[n]) > (4 * size) ** 2 else size * 3 // 4
        font = _fitting_font(text, canvas.width - 4, letters)
        place = _free_place(text, boxes[n], font, canvas.size, [name[0] for name in names])
        names.append((place, text, colors[n], font))
    for place, text, color, font in reversed(names):
        draw.rectangle(place, fill=color, outline=_BLACK)
        draw.text((place[0] + 2, place[1] + 1), text, _BLACK, font)
    return canvas


def enlargement(image: Tensor) -> int:
    """Return the integer factor by which a small image is enlarged when drawn; 1 for others."""
    return max(1, math.ceil(_SMALLEST / max(image.shape[-2:])))


def object_color(index: int) -> Color:
    """Return one of many colors, distant from those of nearby indices.

    Black letters are legible on all of them: their relative luminance is over 0.2, which makes a contrast
    of 5 to 1 (WCAG 2).
    """
    hue = index * 0.6180339887 % 1  # the golden ratio: each hue is far from the last
    saturation, value = ((0.9, 1.0), (0.6, 1.0), (1.0, 0.8))[index % 3]
    color = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    while np.dot((0.2126, 0.7152, 0.0722), color**2.2) < 0.2:
        color += 0.05 * (1 - color)
    red, green, blue = (round(255 * channel) for channel in color.tolist())
    return red, green, blue


def write_caption(image: Image.Image, text: str) -> Image.Image:
    """Return the image with a line of text on a dark strip above it."""
    size = _font_size(np.asarray(image))
    font = _fitting_font(text, image.width - size, size)
    strip = 2 * size
    out = Image.new("RGB", (image.width, image.height + strip), (24, 24, 24))
    out.paste(image, (0, strip))
    ImageDraw.Draw(out).text((size / 2, strip / 2), text, _WHITE, font, anchor="lm")
    return out


def _draw_mask(pixels: np.ndarray, mask: np.ndarray, color: Color, line: int) -> None:
    """Tint the mask's pixels in place, and paint its edge."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return
    # Include one pixel more on each side, where there is one, to find the edge.
    top, left = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
    window = np.s_[top : rows[-1] + 2, left : columns[-1] + 2]
    part, inside = pixels[window], mask[window]
    tinted = (1 - MASK_OPACITY) * part[inside] + MASK_OPACITY * np.array(color)
    part[inside] = tinted.round().astype(np.uint8)
    # An object continues beyond the image's border: no edge there.
    inner = binary_erosion(inside, iterations=line, border_value=1)
    part[inside & ~inner] = color


def _draw_box(draw: ImageDraw.ImageDraw, box: _Rectangle, color: Color, line: int) -> None:
    """Draw a rectangle visible on dark and bright ground: a colored line between black ones."""
    last = np.array(draw.im.size * 2) - 1
    left, top, right, bottom = np.clip(np.round(box).astype(int), 0, last).tolist()
    right, bottom = max(left, right), max(top, bottom)  # Pillow refuses a box that is turned round
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_BLACK, width=line + 2)
    draw.rectangle((left, top, right, bottom), outline=color, width=line)


def _free_place(
    text: str,
    box: _Rectangle,
    font: ImageFont.FreeTypeFont,
    canvas: tuple[int, int],
    taken: Sequence[_Rectangle],
) -> _Rectangle:
    """Return a rectangle for a name at its box, inside the canvas, where it overlaps others least."""
    ascent, descent = font.getmetrics()
    width, height = font.getlength(text) + 4, ascent + descent + 2
    left, top, right, bottom = box
    places = [
        (left, top - height),
        (left, top),
        (right - width, top - height),
        (left, bottom),
        (right - width, top),
        (left, bottom - height),
        (right - width, bottom),
        (right, top),
        (left - width, top),
    ]
    inside = [_within(x, y, width, height, canvas) for x, y in places]
    return min(inside, key=lambda here: sum(_overlap(here, other) for other in taken))


def _within(x: float, y: float, width: float, height: float, canvas: tuple[int, int]) -> _Rectangle:
    x = max(0, min(round(x), canvas[0] - 1 - math.ceil(width)))
    y = max(0, min(round(y), canvas[1] - 1 - math.ceil(height)))
    return x, y, x + math.ceil(width), y + math.ceil(height)


def _overlap(a: _Rectangle, b: _Rectangle) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)


def _area(box: _Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _font_size(pixels: np.ndarray) -> int:
    return max(_SMALLEST_FONT, round(_scale(pixels) / 45))


def _scale(pixels: np.ndarray) -> float:
    """Return the side of a square with the same number of pixels."""
    return math.sqrt(pixels.shape[0] * pixels.shape[1])


def _fitting_font(text: str, width: float, size: int) -> ImageFont.FreeTypeFont:
    """Return the font at ``size``, or smaller if the text is too long for the width."""
    wanted = _font(size).getlength(text)
    return _font(max(6, int(size * min(1.0, width / wanted))))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib includes one with nearly every alphabet.
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size
    )
