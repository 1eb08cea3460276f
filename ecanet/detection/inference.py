"""Detectors at work: on pictures, and on a split of a data set to be measured."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ecanet.config import EvaluateDetectorSettings, PredictSettings
from ecanet.data.stream import prepare_worker
from ecanet.detection.dataset import CocoFolder
from ecanet.detection.evaluation import CocoEvaluator, DetectionMetrics
from ecanet.detection.weights import EVALUATION_KEY, describe_detector, load_detector
from ecanet.errors import UserError, at_least
from ecanet.training.device import resolve_device
from ecanet.training.launch import launch, loader_workers

# How detectors are evaluated whose file does not say how they were trained.
_AS_WITHOUT = {"precision": "float32", "channels_last": True, "ignore_exif": False}


def detect(fabric: Fabric, detector: Any, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Return the detections in uint8 images (3, H, W) of any sizes, as the detector gives them.

    Args:
        fabric: launched; says the device and the precision.
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
    progress: bool = False,
) -> CocoEvaluator:
    """Let a detector look at all images of ``data``; to be called in all processes.

    Masks are evaluated if the detector gives them and the data has them. The figures are
    ``evaluate_detector(...).compute()``.

    Args:
        fabric: launched.
        detector: on Fabric's device; its mode is kept.
        batch_size: images a step in each process.
        workers: processes that read for each device; 0: none.
        category_ids: as :class:`CocoEvaluator` takes them; by default the data's own.
        progress: show a bar, in the first process.
    """
    has_masks = getattr(getattr(detector, "roi_heads", None), "has_mask", lambda: False)()
    evaluator = CocoEvaluator(
        data.annotations,
        category_ids or data.category_ids,
        ("bbox", "segm") if has_masks and data.has_masks else ("bbox",),
    )
    mine = range(fabric.global_rank, len(data), fabric.world_size)
    loader: DataLoader[Any] = DataLoader(
        _Images(data, mine),
        batch_size,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=prepare_worker,
    )
    was_training = detector.training
    detector.eval()
    bar = progress and fabric.is_global_zero
    for batch in tqdm(loader, "evaluation", unit="step", leave=False, disable=not bar):
        ids, images = zip(*batch, strict=True)
        evaluator.update(ids, detect(fabric, detector, images))
    detector.train(was_training)
    return evaluator


def match_classes(
    detector: Any, data: CocoFolder, say: Callable[[str], None] = lambda line: None
) -> list[int | None]:
    """Return the data's category id of each of the detector's labels, by their names.

    A detector whose file names no classes is taken for one of this data if it has as many.

    Raises:
        UserError: the data has a class that the detector does not know, or knows twice.
    """
    of_name = dict(zip(data.class_names, data.category_ids, strict=True))
    names = detector.class_names
    if names == [str(label) for label in range(1, len(names) + 1)] and len(names) == len(of_name):
        say(
            "the weights name no classes: they are taken to be those of the data, in the order of its "
            "ids"
        )
        return list(data.category_ids)
    twice = [name for name in of_name if names.count(name) > 1]
    if twice:
        raise UserError(
            f"the weights have several classes of the name {_first(twice)}: which of them is that of "
            f"{data.file} cannot be told"
        )
    unknown = [name for name in of_name if name not in names]
    if unknown:
        raise UserError(
            f"the weights are for other classes ({_first(names)}): they do not know {_first(unknown)} "
            f"of {data.file}"
        )
    return [of_name.get(name) for name in names]


def evaluate_weights(
    root: Path,
    settings: EvaluateDetectorSettings,
    *,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[DetectionMetrics, CocoEvaluator]:
    """Evaluate a weight file on a split of ``root``, on one process or several.

    Returns:
        The figures, the same in all processes, and the evaluator, which has all detections in the first.

    Raises:
        UserError: anything the caller can put right.
    """
    if settings.weights is None:
        raise UserError("which weights? Give --weights FILE")
    if settings.batch_size < 1 or (settings.limit or 1) < 1:
        raise UserError("give a --batch_size and a --limit from 1")
    arguments, metadata = describe_detector(settings.weights)
    weights, settings = settings.weights, _as_trained(settings, metadata, say)
    data = CocoFolder(
        root,
        settings.split,
        limit=settings.limit,
        keep_classes=arguments.get("class_names") or (),
        ignore_exif=bool(settings.ignore_exif),
        say=say,
    )
    fabric = launch(settings)
    detector = open_detector(fabric, weights, settings, say)
    evaluator = evaluate_detector(
        fabric,
        detector,
        data,
        settings.batch_size,
        loader_workers(settings),
        category_ids=match_classes(detector, data, say),
        progress=progress,
    )
    return evaluator.compute(), evaluator


def open_detector(
    fabric: Fabric,
    weights: str | os.PathLike[str],
    settings: EvaluateDetectorSettings | PredictSettings,
    say: Callable[[str], None] = lambda line: None,
) -> Any:
    """Return a file's detector on Fabric's device, in evaluation mode.

    Raises:
        UserError: the file cannot be read or is of no detector.
    """
    sizes = {"min_size": settings.min_size, "max_size": settings.max_size}
    at_least(32, **sizes)
    detector, file = load_detector(weights, **{k: v for k, v in sizes.items() if v is not None})
    if file.layout == "torchvision" and detector.arguments["kind"] == "retinanet":
        say(f"{weights}: class 0 of RetinaNet is taken for the background, as torchvision has it")
    if settings.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    return fabric.to_device(detector)


def _as_trained(
    settings: EvaluateDetectorSettings, metadata: dict[str, str], say: Callable[[str], None]
) -> EvaluateDetectorSettings:
    """Fill in what no flag says with how the weights were evaluated while they were trained."""
    try:
        told = json.loads(metadata.get(EVALUATION_KEY, "{}"))
    except (ValueError, RecursionError):
        told = None
    told = told if isinstance(told, dict) else {}
    choices = {"precision": ("float32", "bf16", "fp16"), "channels_last": (True, False)}
    choices["ignore_exif"] = choices["channels_last"]
    chosen: dict[str, Any] = {}
    taken = []
    for name, plain in _AS_WITHOUT.items():
        if getattr(settings, name) is not None:
            continue
        value = next(
            (c for c in choices[name] if c is told.get(name) or c == told.get(name)), plain
        )
        chosen[name] = value
        if value != plain:
            taken.append(f"{name} {value}")
    if chosen.get("precision") == "fp16" and resolve_device(settings.device).type != "cuda":
        chosen["precision"] = "float32"
        taken.remove("precision fp16")
        say("the weights were trained in fp16, which this device does not have: float32")
    if taken:
        say(f"as the weights were trained: {', '.join(taken)}")
    return dataclasses.replace(settings, **chosen)


class _Images(Dataset[tuple[int, Tensor]]):
    """Some of the images of a split, with their ids and without their objects."""

    def __init__(self, data: CocoFolder, indices: Sequence[int]) -> None:
        self.data, self.indices = data, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Tensor]:
        index = self.indices[position]
        return self.data.images[index]["id"], self.data.image(index)


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
