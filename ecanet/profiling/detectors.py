"""Costs of detectors: measured, and counted as for the tables of the ECA-Net paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from ecanet.detection.batches import TrainingImages, collate
from ecanet.detection.dataset import CocoFolder
from ecanet.models.counts import counted_macs
from ecanet.profiling.speed import Subject, measure_subjects, slow_sgd
from ecanet.record import Cost
from ecanet.training.device import autocast_dtype

_HEIGHT, _WIDTH, _PROPOSALS, _MASKS = 800, 1280, 1000, 100


def measure_detector_costs(
    detectors: dict[str, Any],
    images: CocoFolder,
    *,
    batch_size: int,
    min_size: int,
    max_size: int,
    device: torch.device,
    precision: str,
    channels_last: bool,
    repeats: int = 5,
) -> list[Cost]:
    """Measure the cost of each of several detectors on real images, under the same conditions.

    As :func:`ecanet.profiling.speed.measure_costs`, on the first images of a folder at their training
    size. Multiply-adds are those of the first image in evaluation mode, with untrained weights.

    Args:
        detectors: by the name of their attention module; they are moved to the device.
        images: at least one.
    """
    size: Any = {"min_size": [min_size], "max_size": max_size, "seed": 0}
    masks = any(detector.arguments["kind"] == "mask_rcnn" for detector in detectors.values())
    training = TrainingImages(images, masks=masks, flip=False, **size)
    batch = collate([training[0, i] for i in range(batch_size)])
    inputs, targets = batch.images(device), batch.targets(device)
    tensors = [*inputs, *(value for target in targets for value in target.values())]
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def prepared(name: str, detector: Any) -> Subject:
        detector.to(device, memory_format=layout)
        detector.transform._skip_resize = True  # images already have their training size
        return Subject(
            name,
            detector,
            slow_sgd(detector),
            tensors,
            lambda: detector(inputs),
            lambda: sum(detector(inputs, targets).values(), torch.zeros((), device=device)),
            autocast_dtype(precision),
        )

    subjects = [prepared(name, detector) for name, detector in detectors.items()]
    macs = [_run(subject.model.eval(), inputs[:1])[0] for subject in subjects]
    return measure_subjects(subjects, macs, device, batch_size, precision, repeats)


def count_detector_macs(detector: nn.Module) -> int:
    """Return the multiply-adds of convolutions and matrix products for one image of 1280 x 800 pixels.

    With 1000 proposals and 100 masks, and with the transposed convolution counted for each value of its
    output, which is stride² times too often, as in MMDetection's counter of 2019.
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
    with counted_macs(module) as total:
        output = module(inputs)
    return total(), output
