"""What detectors cost: measured, and as it was counted for the ECA-Net paper's tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from ecanet.detection.batches import TrainingImages, collate
from ecanet.detection.dataset import CocoFolder
from ecanet.models import attention_modules
from ecanet.profiling.counts import MacCounter, count_parameters
from ecanet.profiling.speed import (
    Subject,
    device_and_threads,
    interleaved_speeds,
    slow_sgd,
    train_peak,
)
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
    """Measure what each of several detectors costs on real images, under the same conditions.

    As :func:`ecanet.profiling.speed.measure_costs` does it, in turns, on the first images of a folder at
    their size in training. Multiply-adds are those of one of them in evaluation, untrained.

    Args:
        detectors: by the name of their attention module; they are moved to the device.
        images: at least one.
    """
    size: Any = {"min_size": [min_size], "max_size": max_size, "seed": 0}
    masks = any(detector.arguments["kind"] == "mask_rcnn" for detector in detectors.values())
    drawn = TrainingImages(images, masks=masks, flip=False, **size)
    batch = collate([drawn[0, i] for i in range(batch_size)])
    pictures, targets = batch.images(device), batch.targets(device)
    tensors = [*pictures, *(value for target in targets for value in target.values())]
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def prepared(name: str, detector: Any) -> Subject:
        detector.to(device, memory_format=layout)
        detector.transform._skip_resize = True  # in training; done above
        return Subject(
            name,
            detector,
            slow_sgd(detector),
            tensors,
            lambda: detector(pictures),
            lambda: sum(detector(pictures, targets).values(), torch.zeros((), device=device)),
            autocast_dtype(precision),
        )

    subjects = [prepared(name, detector) for name, detector in detectors.items()]
    macs = [_run(subject.model.eval(), pictures[:1])[0] for subject in subjects]
    train = interleaved_speeds([s.train_step for s in subjects], device, batch_size, repeats)
    infer = interleaved_speeds([s.infer for s in subjects], device, batch_size, repeats)
    with torch.random.fork_rng():
        peaks = []
        for measured in subjects:
            torch.manual_seed(0)  # which proposals a step trains on is drawn
            peaks.append(train_peak(measured, device))
    return [
        Cost(
            attention=name,
            parameters=count_parameters(detector),
            attention_parameters=sum(
                map(count_parameters, attention_modules(detector.backbone.body).values())
            ),
            macs=macs[i],
            train=train[i],
            inference=infer[i],
            train_peak_bytes=peaks[i],
            batch_size=batch_size,
            device=device_and_threads(device),
            precision=precision,
        )
        for i, (name, detector) in enumerate(detectors.items())
    ]


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
