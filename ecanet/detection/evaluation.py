"""COCO's metrics of detections, by faster-coco-eval, with masks kept as run lengths."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecanet.errors import UserError
from ecanet.files import write_atomic
from ecanet.training.launch import is_rank_zero, world_size

METRICS = (
    "AP", "AP50", "AP75", "APs", "APm", "APl",
    "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
"""COCO's twelve: mean precision over IoU thresholds 0.5 to 0.95, at 0.5, at 0.75, for small (under 32²
pixels), medium and large (over 96²) objects; mean recall with 1, 10 and 100 detections per image, and
with 100 for small, medium and large objects. 0 to 1; -1 if there are no such objects."""
KIND_NAMES = {"bbox": "box", "segm": "mask"}
"""COCO's names of the kinds of detections, and ours."""


@dataclass
class DetectionMetrics:
    """The results of an evaluation."""

    metrics: dict[str, dict[str, float]]
    """The twelve :data:`METRICS` by kind, ``bbox`` and ``segm``."""
    classes: list[dict[str, Any]]
    """For each class of the data its ``id``, ``name``, number of ``objects`` (without crowds) and its
    metrics by kind."""

    def row(self) -> dict[str, float]:
        """Return all metrics in one dict: ``box_AP``, ``mask_AP50`` ..."""
        return {
            f"{KIND_NAMES[kind]}_{name}": value
            for kind, metrics in self.metrics.items()
            for name, value in metrics.items()
        }


@dataclass
class _Detections:
    """The detections in one image."""

    boxes: np.ndarray
    """(N, 4) float32: left, top, width, height in pixels."""
    categories: list[int]
    scores: np.ndarray
    masks: list[dict[str, Any]] = field(default_factory=list)
    """COCO's compressed run lengths; empty if masks are not evaluated."""


class CocoEvaluator:
    """Collects a detector's predictions image by image, then compares them with the annotations.

    Args:
        annotations: a COCO dict with ``images``, ``annotations`` and ``categories``; not changed. All
            its images are evaluated, also those without predictions.
        category_ids: the data's id of each of the detector's labels, from label 1. Detections of a class
            that the data does not have, with id None, are ignored.
        kinds: ``bbox`` for boxes, ``segm`` for masks.

    Raises:
        UserError: faster-coco-eval is not installed.
    """

    def __init__(
        self,
        annotations: Mapping[str, Any],
        category_ids: Sequence[int | None],
        kinds: Sequence[str] = ("bbox", "segm"),
    ) -> None:
        _library()
        self.annotations, self.category_ids, self.kinds = annotations, list(category_ids), kinds
        self.detections: dict[int, _Detections] = {}

    def update(self, image_ids: Iterable[int], predictions: Iterable[Mapping[str, Tensor]]) -> None:
        """Add the predictions for some images; masks are encoded as run lengths.

        Args:
            image_ids: ids of the images in the annotations.
            predictions: for each image ``boxes`` (N, 4) as left, top, right, bottom in pixels of the
                original image, ``labels`` (N,), ``scores`` (N,) and, for kind ``segm``, ``masks``
                (N, 1, H, W), true over 0.5.
        """
        for image_id, prediction in zip(image_ids, predictions, strict=True):
            known = [self.category_ids[label - 1] for label in prediction["labels"].tolist()]
            kept = [n for n, category in enumerate(known) if category is not None]
            corners = prediction["boxes"][kept].detach().float().cpu()
            sizes = corners[:, 2:] - corners[:, :2]
            self.detections[int(image_id)] = _Detections(
                torch.cat([corners[:, :2], sizes], 1).numpy(),
                [category for category in known if category is not None],
                prediction["scores"][kept].detach().float().cpu().numpy(),
                encode_masks(prediction["masks"][kept]) if "segm" in self.kinds else [],
            )

    def compute(self) -> DetectionMetrics:
        """Return the metrics over the predictions of all processes; call it in each of them."""
        if world_size() > 1:
            parts: list[Any] | None = [None] * world_size() if is_rank_zero() else None
            torch.distributed.gather_object(self.detections, parts)
            for part in parts or []:  # an image that several have evaluated counts once
                self.detections.update(part)
        with _garbage_collection_paused():
            here: list[DetectionMetrics | None] = [self._compute() if is_rank_zero() else None]
        if world_size() > 1:
            torch.distributed.broadcast_object_list(here)
        assert here[0] is not None
        return here[0]

    def write_results(self, folder: Path) -> list[Path]:
        """Write ``detections.bbox.json`` and ``detections.segm.json`` in COCO's results format.

        There is a file for each kind because COCO's tools measure a detection by its box if it has one.
        Call it after :meth:`compute`, in the first process only.

        Raises:
            OSError: the disk is full; existing files are intact.
        """
        written = []
        for kind in self.kinds:
            lines = ",\n".join(json.dumps(result) for result in self.results(kind))
            written.append(folder / f"detections.{kind}.json")
            write_atomic(written[-1], f"[{lines}]\n")
        return written

    def results(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield each detection in COCO's results format, by image id."""
        for image_id, found in sorted(self.detections.items()):
            shapes = found.boxes.tolist() if kind == "bbox" else found.masks
            key = "bbox" if kind == "bbox" else "segmentation"
            scores = found.scores.tolist()
            for category, shape, score in zip(found.categories, shapes, scores, strict=True):
                yield {"image_id": image_id, "category_id": category, key: shape, "score": score}

    def _compute(self) -> DetectionMetrics:
        COCO, _ = _library()
        truth = COCO({**self.annotations, "annotations": self._truth()})
        arrays = {kind: self._arrays(truth, kind) for kind in self.kinds}
        objects = Counter(a["category_id"] for a in truth.anns.values() if not a["iscrowd"])
        classes = [
            {
                "id": category,
                "name": truth.cats[category]["name"],
                "objects": objects[category],
                **{
                    kind: _metrics(precision[:, :, [k]], recall[:, [k]])
                    for kind, (precision, recall) in arrays.items()
                },
            }
            for k, category in enumerate(sorted(truth.cats))
        ]
        return DetectionMetrics({kind: _metrics(*both) for kind, both in arrays.items()}, classes)

    def _truth(self) -> list[dict[str, Any]]:
        """Return copies of the annotations, which the library modifies, numbered from 1.

        COCO's matching uses the id 0 for "no match", and takes objects of the same id for one.
        """
        return [
            {"iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3], **one, "id": number}
            for number, one in enumerate(self.annotations["annotations"], 1)
        ]

    def _arrays(self, truth: Any, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return precision (IoU, recall, class, area, limit) and recall (IoU, class, area, limit)."""
        COCO, COCOeval = _library()
        found = list(self.results(kind))
        if kind == "bbox":
            areas = [result["bbox"][2] * result["bbox"][3] for result in found]
        else:
            areas = mask_library().area([result["segmentation"] for result in found])
        for number, (result, area) in enumerate(zip(found, areas, strict=True), 1):
            result |= {"id": number, "area": float(area), "iscrowd": 0}
        evaluation = COCOeval(truth, COCO({**self.annotations, "annotations": found}), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation.eval["precision"], evaluation.eval["recall"]


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode masks (N, 1, H, W), true over 0.5, as COCO's compressed run lengths.

    Each is ``{"size": [H, W], "counts": str}``, ready for JSON.
    """
    if not len(masks):
        return []
    # COCO's run lengths are column-major.
    bits = (masks[:, 0] > 0.5).to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()
    encoded = mask_library().encode(bits.transpose(2, 1, 0))
    counts = [one["counts"] for one in encoded]
    texts = [text.decode() if isinstance(text, bytes) else text for text in counts]
    return [{"size": list(masks.shape[2:]), "counts": text} for text in texts]


def _metrics(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Return COCO's twelve metrics.

    Args:
        precision: (10 IoU thresholds, recall, class, all/small/medium/large, 1/10/100 detections).
        recall: without the second axis.
    """
    areas, limits = range(1, 4), range(3)
    values = [
        precision[..., 0, 2],
        precision[0, ..., 0, 2],
        precision[5, ..., 0, 2],
        *(precision[..., area, 2] for area in areas),
        *(recall[..., 0, limit] for limit in limits),
        *(recall[..., area, 2] for area in areas),
    ]
    known = [value[value > -1] for value in values]
    return {
        name: float(value.mean()) if value.size else -1.0
        for name, value in zip(METRICS, known, strict=True)
    }


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """The library makes an object for each image and class, which the collector would scan often."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _library() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UserError(
            "COCO's metrics need faster-coco-eval: pip install 'ecanet[detection]'"
        ) from None
    return COCO, COCOeval_faster


def mask_library() -> Any:
    """Return faster-coco-eval's functions for run lengths.

    Raises:
        UserError: faster-coco-eval is not installed.
    """
    _library()
    from faster_coco_eval.core import mask

    return mask
