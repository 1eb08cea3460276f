"""A detector as one graph without loops over objects, for images of any size.

torchvision's detectors take lists, choose between ways to compute the same by how many boxes there are, and
paste masks one by one. ``torch.export`` follows one way through the code, whatever the number: while it
does, four functions of torchvision are replaced by ones that have one way only and give the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import roi_heads, transform
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import boxes as box_ops
from torchvision.ops import poolers, roi_align

OUTPUTS = ("boxes", "labels", "scores", "masks")


class OneImage(nn.Module):
    """A detector of one image: float (3, H, W) of 0..1 to boxes, labels, scores and, if it has them, masks.

    Boxes are (N, 4) as left, top, right, bottom in pixels, masks (N, 1, H, W) of 0..1.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.detector([image])[0]
        return tuple(found[name] for name in OUTPUTS if name in found)


@contextmanager
def one_way_only() -> Iterator[None]:
    """Replace, for as long as it lasts, what ``torch.export`` cannot follow."""
    with ExitStack() as stack:
        for owner, name, replacement in (
            (box_ops, "batched_nms", _batched_nms),
            (poolers, "_multiscale_roi_align", _pool_of_all_levels),
            (transform, "paste_masks_in_image", paste_masks),
            (GeneralizedRCNNTransform, "batch_images", _pad_one),
        ):
            stack.enter_context(patch.object(owner, name, replacement))
        yield


def _batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression inside each class: boxes of different ones are moved apart first."""
    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # without boxes too
    offsets = classes.to(boxes) * (largest + 1)
    return torch.ops.torchvision.nms(boxes + offsets[:, None], scores, threshold)


def _pool_of_all_levels(
    features: list[Tensor],
    boxes: list[Tensor],
    output_size: Sequence[int],
    sampling_ratio: int,
    scales: list[float],
    mapper: Any,
) -> Tensor:
    """Pool each box from the level of the pyramid that fits its size."""
    rois = poolers._convert_to_roi_format(boxes)
    levels = mapper(boxes)
    pooled = features[0].new_zeros((rois.shape[0], features[0].shape[1], *output_size))
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        mine = torch.where(levels == level)[0]
        values = roi_align(feature, rois[mine], output_size, scale, sampling_ratio)
        pooled = pooled.index_put((mine,), values)
    return pooled


def _pad_one(
    self: GeneralizedRCNNTransform, images: list[Tensor], size_divisible: int = 32
) -> Tensor:
    """Return one image as a batch, with zeros at right and bottom up to a multiple of ``size_divisible``."""
    (image,) = images
    return F.pad(
        image[None], (0, -image.shape[2] % size_divisible, 0, -image.shape[1] % size_divisible)
    )


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], padding: int = 1) -> Tensor:
    """Return masks (N, 1, M, M) of boxes (N, 4) as masks (N, 1, *size) of the image.

    Torchvision's ``paste_masks_in_image``, which resizes them one by one, as two products of matrices:
    each pixel's row and column take their shares of two neighbouring values.
    """
    side = masks.shape[-1] + 2 * padding
    padded = F.pad(masks, (padding,) * 4)[:, 0]
    grown = roi_heads.expand_boxes(boxes, side / masks.shape[-1]).to(torch.int64)
    rows = _shares(grown[:, 1], grown[:, 3], size[0], side)
    columns = _shares(grown[:, 0], grown[:, 2], size[1], side)
    return (rows @ padded @ columns.transpose(1, 2))[:, None]


def _shares(low: Tensor, high: Tensor, pixels: int, values: int) -> Tensor:
    """Return (N, pixels, values): how much of each value a pixel takes when they span low..high."""
    extent = (high - low + 1).clamp(min=1)[:, None]
    place = torch.arange(pixels, device=low.device)[None] - low[:, None]
    source = ((place + 0.5) * (values / extent.float()) - 0.5).clamp(min=0, max=values - 1)
    near = torch.arange(values, device=low.device)
    shares = (1 - (source[:, :, None] - near).abs()).clamp(min=0)
    return shares * ((place >= 0) & (place < extent))[:, :, None]
