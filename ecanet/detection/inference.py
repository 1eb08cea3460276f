"""Inference with detectors: on images, and on a split of a data set for evaluation."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from ecanet.activity import activity
from ecanet.config import EvaluateDetectorSettings, PredictSettings, given
from ecanet.data.stream import prepare_worker
from ecanet.detection.dataset import CocoFolder
from ecanet.detection.evaluation import CocoEvaluator, DetectionMetrics
from ecanet.detection.weights import EVALUATION_KEY, describe_detector, load_detector
from ecanet.errors import UserError, first_of
from ecanet.training.device import resolve_device
from ecanet.training.launch import launch, loader_workers

log = logging.getLogger(__name__)

# Settings that a file may have from training, with their values; the first is for files without it.
_EVALUATION: dict[str, tuple[Any, ...]] = {
    "precision": ("float32", "bf16", "fp16"),
    "channels_last": (True, False),
    "ignore_exif": (False, True),
}


def detect(fabric: Fabric, detector: Any, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Return the detector's output for uint8 images (3, H, W) of any sizes.

    Args:
        fabric: launched; determines the device and the precision.
        detector: on that device, in evaluation mode.
    """
    with torch.inference_mode(), fabric.autocast():
        return detector([fabric.to_device(image).float() / 255 for image in images])


def evaluate_detector(
    fabric: Fabric,
    detector: Any,
    data: CocoFolder,
    batch_size: int,
    workers: int,
    *,
    category_ids: Sequence[int | None] | None = None,
) -> CocoEvaluator:
    """Run a detector on all images of ``data``; call it in all processes.

    Masks are evaluated if the detector predicts them and the data has them. The metrics are
    ``evaluate_detector(...).compute()``.

    Args:
        fabric: launched.
        detector: on Fabric's device; its mode is restored.
        batch_size: images per step in each process.
        workers: processes that read for each device, or 0.
        category_ids: as in :class:`CocoEvaluator`; by default the data's own.
    """
    has_masks = getattr(getattr(detector, "roi_heads", None), "has_mask", lambda: False)()
    evaluator = CocoEvaluator(
        data.annotations,
        category_ids or data.category_ids,
        ("bbox", "segm") if has_masks and data.has_masks else ("bbox",),
    )
    mine: Any = range(fabric.global_rank, len(data), fabric.world_size)
    loader: DataLoader[Any] = DataLoader(
        mine,
        batch_size,
        num_workers=workers,
        collate_fn=functools.partial(_read, data),
        worker_init_fn=prepare_worker,
    )
    was_training = detector.training
    detector.eval()
    with activity("evaluating", len(mine), "images", at_once=True) as shown:
        for batch in loader:
            ids, images = zip(*batch, strict=True)
            evaluator.update(ids, detect(fabric, detector, images))
            shown.done += len(ids)
    detector.train(was_training)
    return evaluator


def match_classes(detector: Any, data: CocoFolder) -> list[int | None]:
    """Return the data's category id of each of the detector's labels, matched by class name.

    A detector without class names is assumed to have this data's classes if there are as many.

    Raises:
        UserError: the data has a class that the detector does not have, or has twice.
    """
    of_name = dict(zip(data.class_names, data.category_ids, strict=True))
    names = detector.class_names
    if names == [str(label) for label in range(1, len(names) + 1)] and len(names) == len(of_name):
        log.info(
            "the weights do not name their classes: assuming those of the data, in the order of their ids"
        )
        return list(data.category_ids)
    twice = [name for name in of_name if names.count(name) > 1]
    if twice:
        raise UserError(
            f"the weights have several classes of the name {first_of(twice, 3)}: it is unclear "
            f"which of them matches that in {data.file}"
        )
    unknown = [name for name in of_name if name not in names]
    if unknown:
        raise UserError(
            f"the weights are for other classes ({first_of(names, 3)}): they lack "
            f"{first_of(unknown, 3)} of {data.file}"
        )
    return [of_name.get(name) for name in names]


def evaluate_weights(
    root: Path, settings: EvaluateDetectorSettings
) -> tuple[DetectionMetrics, CocoEvaluator]:
    """Evaluate a weight file on a split of ``root``, on one process or several.

    Returns:
        The metrics, the same in all processes, and the evaluator, with all detections in the first one.

    Raises:
        UserError: anything the caller can correct.
    """
    if settings.weights is None:
        raise UserError("which weights? give --weights FILE")
    arguments, metadata = describe_detector(settings.weights)
    weights, settings = settings.weights, _as_trained(settings, metadata)
    data = CocoFolder(
        root,
        settings.split,
        limit=settings.limit,
        keep_classes=arguments.get("class_names") or (),
        ignore_exif=bool(settings.ignore_exif),
    )
    fabric = launch(settings)
    detector = open_detector(fabric, weights, settings)
    evaluator = evaluate_detector(
        fabric,
        detector,
        data,
        settings.batch_size,
        loader_workers(settings),
        category_ids=match_classes(detector, data),
    )
    return evaluator.compute(), evaluator


def open_detector(
    fabric: Fabric,
    weights: str | os.PathLike[str],
    settings: EvaluateDetectorSettings | PredictSettings,
) -> Any:
    """Return a file's detector on Fabric's device, in evaluation mode.

    Raises:
        UserError: the file cannot be read or holds no detector.
    """
    detector, file = load_detector(weights, **given(settings, "min_size", "max_size"))
    if file.layout == "torchvision" and detector.arguments["kind"] == "retinanet":
        log.info(
            f"{weights}: class 0 of RetinaNet is taken to be the background, as in torchvision"
        )
    if settings.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    return fabric.to_device(detector)


def _as_trained(
    settings: EvaluateDetectorSettings, metadata: dict[str, str]
) -> EvaluateDetectorSettings:
    """Fill in settings left open with those of the evaluations during the training of the weights."""
    try:
        stored = json.loads(metadata.get(EVALUATION_KEY, "{}"))
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        stored = {}
    chosen: dict[str, Any] = {
        name: next((value for value in values if value == stored.get(name)), values[0])
        for name, values in _EVALUATION.items()
        if getattr(settings, name) is None
    }
    if chosen.get("precision") == "fp16" and resolve_device(settings.device).type != "cuda":
        chosen["precision"] = "float32"
        log.info(
            "the weights were trained in fp16, which this device does not support: using float32"
        )
    taken = [f"{name} {v}" for name, v in chosen.items() if v != _EVALUATION[name][0]]
    if taken:
        log.info(f"using settings of the training: {', '.join(taken)}")
    return dataclasses.replace(settings, **chosen)


def _read(data: CocoFolder, indices: Sequence[int]) -> list[tuple[int, Tensor]]:
    """Return the ids and images of a batch, without their objects."""
    return [(data.images[index]["id"], data.image(index)) for index in indices]
