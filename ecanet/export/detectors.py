"""A detector as one graph without loops over objects, for images of any size.

torchvision's detectors take lists, choose between ways to compute the same by how many boxes there are, and
paste masks one by one. ``torch.export`` follows one way through the code, whatever the number: while it
does, functions of torchvision are replaced by ones that have one way only and give the same.
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
from torchvision.models.detection._utils import BoxCoder
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
def one_way_only(module: nn.Module) -> Iterator[None]:
    """Replace, for as long as it lasts, what ``torch.export`` cannot follow in a :class:`OneImage`."""
    if not isinstance(module, OneImage):
        yield
        return
    replacements: list[tuple[Any, str, Any]] = [
        (box_ops, "batched_nms", _batched_nms),
        (poolers, "_multiscale_roi_align", _pool_of_all_levels),
        (transform, "paste_masks_in_image", paste_masks),
        (transform, "_resize_image_and_masks", _resize_one),
        (GeneralizedRCNNTransform, "batch_images", _pad_one),
        (BoxCoder, "decode", _decode_one),
        (roi_heads, "maskrcnn_inference", _masks_of_labels),
    ]
    heads: Any = getattr(module.detector, "roi_heads", None)
    if heads is not None and heads.has_mask():
        replacements.append((heads, "mask_roi_pool", _TwoMore(heads.mask_roi_pool)))
    with ExitStack() as stack:
        for owner, name, replacement in replacements:
            stack.enter_context(patch.object(owner, name, replacement))
        yield


def _batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression inside each class: boxes of different ones are moved apart first.

    ``torch.export`` takes for granted that two boxes or more are left. Two are added, beside the image and
    with the lowest scores, and taken away again.
    """
    count = boxes.shape[0]
    added = boxes.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # without boxes too
    apart = boxes + (classes.to(boxes) * (largest + 1))[:, None]
    kept = torch.ops.torchvision.nms(
        torch.cat([apart, added]), torch.cat([scores, scores.new_full((2,), -1.0)]), threshold
    )
    return kept[kept < count]


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


def _resize_one(image: Tensor, min_size: int, max_size: int, *_: Any) -> tuple[Tensor, None]:
    """Bring an image to ``min_size`` at its short side, or ``max_size`` at its long one if that is less."""
    height, width = image.shape[-2:]
    scale: Any = torch.sym_min(
        min_size / torch.sym_min(height, width), max_size / torch.sym_max(height, width)
    )
    resized = F.interpolate(
        image[None], scale_factor=scale, mode="bilinear", recompute_scale_factor=True
    )
    return resized[0], None


def _resize_traced(image: Tensor, min_size: int, max_size: int, *_: Any) -> tuple[Tensor, None]:
    """As :func:`_resize_one`, for the tracer, which has sizes as tensors.

    A little more than torchvision's scale: in float32, 210 pixels that become 96 could become 95.
    """
    sides = torch._shape_as_tensor(image)[-2:].float()
    scale: Any = torch.min(min_size / sides.min(), max_size / sides.max()) * (1 + 1e-6)
    resized = F.interpolate(
        image[None], scale_factor=scale, mode="bilinear", recompute_scale_factor=True
    )
    return resized[0], None


@contextmanager
def exact_sizes() -> Iterator[None]:
    """Let the tracer resize images to the pixel as torchvision does without it."""
    with patch.object(transform, "_resize_image_and_masks", _resize_traced):
        yield


def _pad_one(
    self: GeneralizedRCNNTransform, images: list[Tensor], size_divisible: int = 32
) -> Tensor:
    """Return one image as a batch, with zeros at right and bottom up to a multiple of ``size_divisible``."""
    (image,) = images
    return F.pad(
        image[None], (0, -image.shape[2] % size_divisible, 0, -image.shape[1] % size_divisible)
    )


class _TwoMore(nn.Module):
    """The mask head's pooler, with two boxes more: a convolution of no object at all cannot be followed."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: Any, boxes: list[Tensor], sizes: Any) -> Tensor:
        (mine,) = boxes
        more = mine.new_tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 8.0]])
        return self.pool(features, [torch.cat([mine, more])], sizes)


def _masks_of_labels(logits: Tensor, labels: list[Tensor]) -> list[Tensor]:
    """Return the masks (N, 1, M, M) of one image that its objects' labels choose; leave the two more."""
    (mine,) = labels
    count = mine.shape[0]
    return [logits.sigmoid()[:count][torch.arange(count, device=mine.device), mine][:, None]]


def _decode_one(self: BoxCoder, codes: Tensor, boxes: list[Tensor]) -> Tensor:
    """Return the boxes (N, C, 4) of one image that codes (N, 4 C) make of boxes (N, 4)."""
    (one,) = boxes
    return self.decode_single(codes, one).reshape(one.shape[0], -1, 4)


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
