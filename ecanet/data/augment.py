"""Augmentation of whole batches of uint8 images, where they are.

Every function takes its random draws as arguments, one per image, so that who draws decides what is
random; none loops over images.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ecanet.config import Augmentation

log = logging.getLogger(__name__)

# Names of digits and letters: 3 or 03, which may be a number of another kind; and digit_3, 3 - three, three.
_ONE_CHARACTER = re.compile(r"0?\w")
_WORD_OF_A_CHARACTER = re.compile(
    r"(digit|number|letter|character)[ _-]*\w"
    r"|(\d *[-_:] *)?(zero|one|two|three|four|five|six|seven|eight|nine)",
    re.IGNORECASE,
)


def with_flip(
    settings: Augmentation, classes: Sequence[str], *, quiet: bool = True
) -> Augmentation:
    """Return settings whose ``flip`` is settled: by default images are mirrored unless that may change what
    they show, as of digits and letters.

    Args:
        classes: names. Words of digits, such as ``three``, ``3 - three`` and ``digit_3``, are taken for
            characters, and so are ten or more single characters.
    """
    if settings.flip is not None:
        return settings
    level = logging.DEBUG if quiet else logging.INFO
    single = all(_ONE_CHARACTER.fullmatch(name) for name in classes)
    characters = (single and len(classes) >= 10) or (
        len(classes) > 1 and all(_WORD_OF_A_CHARACTER.fullmatch(name) for name in classes)
    )
    if characters:
        log.log(
            level,
            f"images are not mirrored, as the classes {classes[0]} to {classes[-1]} look like characters: "
            "--augmentation.flip true mirrors them",
        )
    elif single and classes:
        log.log(
            level,
            f"images of the classes {', '.join(classes)} are mirrored: if they show characters, give "
            "--augmentation.flip false",
        )
    return replace(settings, flip=not characters)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right the images (N, C, H, W) for which ``mirrored``, bool (N,), is true."""
    # images ^ ((flipped ^ images) & mask): the mask of ones takes the flipped image. torch.where does
    # the same, three times as slowly on a CPU, as it is not vectorised for bytes.
    mask = mirrored.to(torch.uint8).neg()[:, None, None, None]
    return images.flip(3).bitwise_xor_(images).bitwise_and_(mask).bitwise_xor_(images)


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad images (N, C, H, W) by ``padding`` zeros on each side and cut windows of the old size.

    Args:
        top, left: int64 (N,), 0..2*padding: the window's corner in the padded image.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    return _windows(padded, height, width)[_each(images), :, top, left]


def cutout(images: Tensor, side: int, row: Tensor, column: Tensor, fill: Tensor) -> Tensor:
    """Blank a square of each image (N, C, H, W), clipped where it leaves the image.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017
    (arXiv 1708.04552), section 3.2: the centre is anywhere in the image.

    Args:
        side: of the square, in pixels.
        row, column: int64 (N,): the square's centre; it reaches from centre - side // 2 on.
        fill: (C,), of the images' type: the colour, as a rule the mean, which normalises to 0.
    """
    # Writing the squares into a padded copy is several times as fast as a mask over all pixels
    padded = F.pad(images, (side, side, side, side))
    corner = side - side // 2
    squares = _windows(padded, side, side)
    squares[_each(images), :, row + corner, column + corner] = fill[:, None, None]
    return padded[:, :, side:-side, side:-side]


def normalize(images: Tensor, mean: Tensor, std: Tensor, channels_last: bool) -> Tensor:
    """Return float32 (images / 255 - mean) / std of uint8 images (N, C, H, W).

    Args:
        mean, std: float32 (C,), in 0..1.
        channels_last: lay the result out channels last in memory.
    """
    scale, shift = 1 / (255 * std), -mean / std
    layout = torch.channels_last if channels_last else torch.contiguous_format
    floats = images.to(torch.float32, memory_format=layout)
    if channels_last:  # whole rows of pixels at once: an inner loop of 3 channels would be slow
        rows, width = floats.permute(0, 2, 3, 1).flatten(2), images.shape[3]
        rows.mul_(scale.repeat(width)).add_(shift.repeat(width))
        return floats
    return floats.mul_(scale[:, None, None]).add_(shift[:, None, None])


def _windows(images: Tensor, height: int, width: int) -> Tensor:
    """Return a view of all windows of images (N, C, H, W): (N, C, top, left, height, width)."""
    return images.unfold(2, height, 1).unfold(3, width, 1)


def _each(images: Tensor) -> Tensor:
    return torch.arange(len(images), device=images.device)
