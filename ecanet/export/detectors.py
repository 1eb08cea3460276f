"""Exports a detector as one graph without loops over objects, for images of any size.

torchvision's detectors take lists, branch on the number of boxes, and paste masks one by one.
``torch.export`` traces a single path for any number of boxes, so during export functions of torchvision are
replaced by equivalents without branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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


class SingleImage(nn.Module):
    """A detector for a single image: float (3, H, W) of 0..1 to boxes, labels, scores and, if any, masks.

    Boxes are (N, 4) as left, top, right, bottom in pixels, masks (N, 1, H, W) of 0..1.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        objects = self.detector([image])[0]
        return tuple(objects[name] for name in OUTPUTS if name in objects)


@contextmanager
def export_patches(module: nn.Module) -> Iterator[None]:
    """Replace, inside ``with``, what ``torch.export`` cannot trace in a :class:`SingleImage`."""
    if not isinstance(module, SingleImage):
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
        replacements.append((heads, "mask_roi_pool", _PadTwoBoxes(heads.mask_roi_pool)))
    with ExitStack() as stack:
        for owner, name, replacement in replacements:
            stack.enter_context(patch.object(owner, name, replacement))
        yield


def _batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within each class: boxes of different classes are moved apart first.

    ``torch.export`` assumes that at least two boxes are left. Two are added outside the image, with the
    lowest scores, and removed again.
    """
    count = boxes.shape[0]
    added = boxes.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # also without boxes
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
    """Pool each box from the pyramid level that fits its size."""
    rois = poolers._convert_to_roi_format(boxes)
    levels = mapper(boxes)
    pooled = features[0].new_zeros((rois.shape[0], features[0].shape[1], *output_size))
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        mine = torch.where(levels == level)[0]
        values = roi_align(feature, rois[mine], output_size, scale, sampling_ratio)
        pooled = pooled.index_put((mine,), values)
    return pooled


def _resize_one(image: Tensor, min_size: int, max_size: int, *_: Any) -> tuple[Tensor, None]:
    """Resize the short side to ``min_size``, or the long side to ``max_size`` if that is smaller."""
    height, width = image.shape[-2:]
    scale: Any = torch.sym_min(
        min_size / torch.sym_min(height, width), max_size / torch.sym_max(height, width)
    )
    return _scaled(image, scale), None


def _resize_traced(image: Tensor, min_size: int, max_size: int, *_: Any) -> tuple[Tensor, None]:
    """As :func:`_resize_one`, for the tracing exporter, in which sizes are tensors.

    The scale is slightly larger than torchvision's: in float32, 210 pixels scaled to 96 could become 95.
    """
    sides = torch._shape_as_tensor(image)[-2:].float()
    scale: Any = torch.min(min_size / sides.min(), max_size / sides.max()) * (1 + 1e-6)
    return _scaled(image, scale), None


def _scaled(image: Tensor, scale: Any) -> Tensor:
    return F.interpolate(
        image[None], scale_factor=scale, mode="bilinear", recompute_scale_factor=True
    )[0]


def exact_sizes() -> AbstractContextManager[Any]:
    """Make the tracing exporter resize, inside ``with``, to the very size of torchvision's eager mode."""
    return patch.object(transform, "_resize_image_and_masks", _resize_traced)


def _pad_one(
    self: GeneralizedRCNNTransform, images: list[Tensor], size_divisible: int = 32
) -> Tensor:
    """Return one image as a batch, zero-padded at right and bottom to a multiple of ``size_divisible``."""
    (image,) = images
    return F.pad(
        image[None], (0, -image.shape[2] % size_divisible, 0, -image.shape[1] % size_divisible)
    )


class _PadTwoBoxes(nn.Module):
    """The mask head's pooler with two extra boxes: a convolution of an empty batch cannot be traced."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: Any, boxes: list[Tensor], sizes: Any) -> Tensor:
        (one,) = boxes
        extra = one.new_tensor([[0.0, 0.0, 8.0, 8.0]] * 2)
        return self.pool(features, [torch.cat([one, extra])], sizes)


def _masks_of_labels(logits: Tensor, labels: list[Tensor]) -> list[Tensor]:
    """Select the masks (N, 1, M, M) of one image by its objects' labels; drop the two extra boxes."""
    (one,) = labels
    count = one.shape[0]
    return [logits.sigmoid()[:count][torch.arange(count, device=one.device), one][:, None]]


def _decode_one(self: BoxCoder, codes: Tensor, boxes: list[Tensor]) -> Tensor:
    """Apply the codes (N, 4 C) of one image to its boxes (N, 4); return (N, C, 4)."""
    (one,) = boxes
    return self.decode_single(codes, one).reshape(one.shape[0], -1, 4)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], padding: int = 1) -> Tensor:
    """Paste masks (N, 1, M, M) of boxes (N, 4) into masks (N, 1, *size) of the image.

    Equals torchvision's ``paste_masks_in_image``, which resizes them one by one, but uses two matrix
    products: bilinear weights for each pixel's row and column.
    """
    side = masks.shape[-1] + 2 * padding
    padded = F.pad(masks, (padding,) * 4)[:, 0]
    grown = roi_heads.expand_boxes(boxes, side / masks.shape[-1]).to(torch.int64)
    rows = _weights(grown[:, 1], grown[:, 3], size[0], side)
    columns = _weights(grown[:, 0], grown[:, 2], size[1], side)
    return (rows @ padded @ columns.transpose(1, 2))[:, None]


def _weights(low: Tensor, high: Tensor, pixels: int, values: int) -> Tensor:
    """Return bilinear weights (N, pixels, values) for values that span the pixels low..high."""
    extent = (high - low + 1).clamp(min=1)[:, None]
    offset = torch.arange(pixels, device=low.device)[None] - low[:, None]
    source = ((offset + 0.5) * (values / extent.float()) - 0.5).clamp(min=0, max=values - 1)
    index = torch.arange(values, device=low.device)
    weights = (1 - (source[:, :, None] - index).abs()).clamp(min=0)
    return weights * ((offset >= 0) & (offset < extent))[:, :, None]
