"""Mask R-CNN with a ResNet-50 and FPN: ecanet's beside torchvision's own, as a ratio.

    python benchmarks/detector_speed.py --height 320 --width 448

The same weights, images, objects and optimizer on both sides, 100 detections an image; batch norms and
the first stage frozen, as one trains with a pretrained backbone. torchvision's runs as it comes, float32,
NCHW and with its FrozenBatchNorm2d; ecanet's as its trainer runs it, in the device's
best precision and channels last. The sides take turns step by step; a side's figure is the median over
the turns, the ratio the median of the ratios turn by turn. On a CPU both have the threads that torch has
(OMP_NUM_THREADS).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sides import rates_and_ratio, seconds_in_turns, write_record
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from ecanet.detection import create_detector
from ecanet.heap import keep_freed_memory
from ecanet.profiling.speed import device_and_threads
from ecanet.training.device import autocast_dtype, resolve_device, resolve_precision

OBJECTS = 7  # an image of COCO has so many


def make_batch(
    count: int, height: int, width: int, device: torch.device
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images of noise, and rectangles in them for objects."""
    images = [torch.rand(3, height, width, device=device) for _ in range(count)]
    targets = []
    for _ in range(count):
        left, top = torch.rand(OBJECTS) * width * 0.6, torch.rand(OBJECTS) * height * 0.6
        right = left + 16 + torch.rand(OBJECTS) * width * 0.3
        bottom = top + 16 + torch.rand(OBJECTS) * height * 0.3
        boxes = torch.stack([left, top, right, bottom], 1)
        masks = torch.zeros(OBJECTS, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        target = {"boxes": boxes, "labels": torch.randint(1, 91, (OBJECTS,)), "masks": masks}
        targets.append({name: value.to(device) for name, value in target.items()})
    return images, targets


def make_steps(
    detector: Any, batch: Any, device: torch.device, precision: str
) -> dict[str, Callable[[], None]]:
    """Return functions that train one step and that predict once."""
    images, targets = batch
    detector.roi_heads.score_thresh = 0.0  # an untrained detector is sure of nothing
    # A rate this low keeps an untrained model finite.
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-6, momentum=0.9)
    dtype = autocast_dtype(precision)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def train() -> None:
        detector.train()
        torch.manual_seed(0)  # the same boxes are drawn on both sides
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            losses = detector(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        wait()

    def predict() -> None:
        detector.eval()
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype is not None),
        ):
            detector(images)
        wait()

    return {"train": train, "predict": predict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder for the record")
    flags = parser.parse_args()
    device = resolve_device(flags.device)
    if device.type == "cpu":
        keep_freed_memory()
    precision = resolve_precision("auto", device)
    torch.manual_seed(0)
    size = {"min_size": flags.height, "max_size": flags.width}
    ours = create_detector("mask_rcnn", "resnet50", 90, norm="frozen", frozen_stages=1, **size)
    pyramid = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    theirs = MaskRCNN(pyramid, 91, **size).to(device)
    state = {n: t for n, t in ours.state_dict().items() if not n.endswith("batches_tracked")}
    theirs.load_state_dict(state)
    ours = ours.to(device, memory_format=torch.channels_last)
    batch = make_batch(flags.batch_size, flags.height, flags.width, device)
    sides = {
        "torchvision, NCHW float32": make_steps(theirs, batch, device, "float32"),
        f"ecanet, channels last {precision}": make_steps(ours, batch, device, precision),
    }
    measured: dict[str, Any] = {}
    for kind in ("train", "predict"):
        steps = {name: of_side[kind] for name, of_side in sides.items()}
        seconds = seconds_in_turns(steps, flags.repeats)
        measured[kind] = rates_and_ratio(seconds, flags.batch_size, f"{kind:8} ")
    record = {
        "what": f"Mask R-CNN R50-FPN, {flags.batch_size} images of {flags.width} x {flags.height}",
        **measured,
        "repeats": flags.repeats,
        "environment": {"device": device_and_threads(device)},
    }
    write_record(flags.out, f"detector-speed-{device.type}", record, device)


if __name__ == "__main__":
    main()
