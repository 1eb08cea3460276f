"""The multiply-adds of a detector, as they were counted for the ECA-Net paper's tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from ecanet.profiling.counts import MacCounter

_HEIGHT, _WIDTH, _PROPOSALS, _MASKS = 800, 1280, 1000, 100


def count_detector_macs(detector: nn.Module) -> int:
    """Return the multiply-adds of one image of 1280 x 800, convolutions and matrix products.

    Of 1000 proposals and 100 masks, and with a transposed convolution counted at each value of its
    output, which is stride² times too often: as MMDetection's counter did it in 2019.
    """
    pyramid: Any = detector.backbone
    macs, features = _run(pyramid, torch.empty(1, 3, _HEIGHT, _WIDTH, device="meta"))
    levels = list(features.values())
    if isinstance(detector, RetinaNet):
        return macs + _run(detector.head, levels)[0]
    proposals: Any = detector.rpn
    heads: Any = detector.roi_heads
    macs += _run(proposals.head, levels)[0]
    boxes = _pooled(_PROPOSALS, heads.box_roi_pool.output_size)
    macs += _run(nn.Sequential(heads.box_head, heads.box_predictor), boxes)[0]
    if heads.has_mask():
        masks = _pooled(_MASKS, heads.mask_roi_pool.output_size)
        macs += _run(nn.Sequential(heads.mask_head, heads.mask_predictor), masks)[0]
        up = heads.mask_predictor.conv5_mask
        area = _MASKS * heads.mask_roi_pool.output_size[0] * heads.mask_roi_pool.output_size[1]
        macs += (up.stride[0] * up.stride[1] - 1) * up.weight.numel() * area
    return macs


def _pooled(count: int, size: tuple[int, int]) -> Tensor:
    return torch.empty(count, 256, *size, device="meta")


def _run(module: nn.Module, inputs: Any) -> tuple[int, Any]:
    with MacCounter(module) as counter:
        output = module(inputs)
    return counter.total(), output
