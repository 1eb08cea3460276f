"""Images small enough to be part of a page."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

SIDE = 128
"""Pixels of the longer side, at most."""
_SMALL = 32  # pixels up to which an image is kept as it is


def thumbnail(image: Tensor, side: int = SIDE) -> str:
    """Return an image, uint8 (1 or 3, H, W), as the ``data:`` address of a JPEG, or of a PNG if tiny.

    Args:
        side: pixels of the longer side, at most.
    """
    pixels = image.permute(1, 2, 0).numpy()
    drawn = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    small = max(drawn.size) <= _SMALL
    drawn.thumbnail((side, side))
    content = io.BytesIO()
    drawn.save(content, "PNG" if small else "JPEG", **({} if small else {"quality": 80}))
    encoded = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{'png' if small else 'jpeg'};base64,{encoded}"
