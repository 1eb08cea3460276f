"""COCO's figures of detections, by faster-coco-eval, in memory that does not grow with the masks."""

from __future__ import annotations

import gc
import json
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
from ecanet.training.launch import is_first_process, processes

FIGURES = (
    "AP", "AP50", "AP75", "APs", "APm", "APl",
    "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
"""COCO's twelve: mean precision over IoU thresholds 0.5 to 0.95, at 0.5, at 0.75, for small (under 32²
pixels), medium and large (over 96²) objects; mean recall with 1, 10 and 100 detections an image, and
with 100 for small, medium and large ones. 0 to 1; -1 where there is no object to find."""
KIND_NAMES = {"bbox": "box", "segm": "mask"}
"""COCO's words for what is compared, and ours."""


@dataclass
class DetectionMetrics:
    """What an evaluation found: by kind (``bbox``, ``segm``) the twelve :data:`FIGURES`."""

    figures: dict[str, dict[str, float]]
    classes: list[dict[str, Any]]
    """For each class of the data its ``id``, ``name``, number of ``objects`` (without crowds) and, by
    kind, its figures."""

    def row(self) -> dict[str, float]:
        """Return all figures under one name each: ``box_AP``, ``mask_AP50`` and so on."""
        return {
            f"{KIND_NAMES[kind]}_{name}": value
            for kind, figures in self.figures.items()
            for name, value in figures.items()
        }


@dataclass
class _Detections:
    """Those of one image, in the least memory."""

    boxes: np.ndarray
    """(N, 4) float32: left, top, width, height in pixels."""
    categories: list[int]
    scores: np.ndarray
    masks: list[dict[str, Any]] = field(default_factory=list)
    """COCO's run lengths, compressed; empty when masks are not evaluated."""


class CocoEvaluator:
    """Gathers a detector's predictions image by image, then holds them against the annotations.

    Args:
        annotations: a COCO dict with ``images``, ``annotations`` and ``categories``; not changed. All
            its images are evaluated, those without predictions too.
        category_ids: the data's id of each of the detector's labels, from label 1 on. None: the data has
            no such class, and detections of it are left out.
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
        """Take the predictions of some images; masks become run lengths at once.

        Args:
            image_ids: the annotations' ids of the images.
            predictions: for each its ``boxes`` (N, 4) as left, top, right, bottom in pixels of the
                original image, ``labels`` (N,), ``scores`` (N,) and, for kind ``segm``, ``masks``
                (N, 1, H, W), of which values over 0.5 are taken.
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
        """Return the figures over the predictions of all processes; to be called in each of them."""
        self._gather()
        with _garbage_collection_paused():
            here: list[DetectionMetrics | None] = [self._compute() if is_first_process() else None]
        if processes() > 1:
            torch.distributed.broadcast_object_list(here)
        assert here[0] is not None
        return here[0]

    def write_results(self, folder: Path) -> list[Path]:
        """Write ``detections.bbox.json`` and ``detections.segm.json`` as COCO's own tools read them.

        A file for each kind, because those tools size a detection by its box where it has one. After
        :meth:`compute`, in the first process alone when there are several.

        Raises:
            OSError: the disk is full; files that were there are intact.
        """
        written = []
        for kind in self.kinds:
            lines = ",\n".join(json.dumps(result) for result in self.results(kind))
            written.append(folder / f"detections.{kind}.json")
            write_atomic(written[-1], f"[{lines}]\n")
        return written

    def results(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield each detection as COCO's results format has it, images in the order of their ids."""
        for image_id, found in sorted(self.detections.items()):
            shapes = found.boxes.tolist() if kind == "bbox" else found.masks
            key = "bbox" if kind == "bbox" else "segmentation"
            scores = found.scores.tolist()
            for category, shape, score in zip(found.categories, shapes, scores, strict=True):
                yield {
                    "image_id": image_id,
                    "category_id": category,
                    key: shape,
                    "score": score,
                }

    def _gather(self) -> None:
        """Bring all detections to the first process; an image that two of them saw counts once."""
        if processes() == 1:
            return
        parts: list[Any] | None = [None] * processes() if is_first_process() else None
        torch.distributed.gather_object(self.detections, parts)
        for part in parts or []:
            self.detections.update(part)

    def _compute(self) -> DetectionMetrics:
        COCO, _ = _library()
        truth = COCO({**self.annotations, "annotations": self._truth()})
        arrays = {kind: self._arrays(truth, kind) for kind in self.kinds}
        objects: dict[int, int] = {}
        for annotation in truth.anns.values():
            if not annotation["iscrowd"]:
                category = annotation["category_id"]
                objects[category] = objects.get(category, 0) + 1
        classes = [
            {
                "id": category,
                "name": truth.cats[category]["name"],
                "objects": objects.get(category, 0),
                **{
                    kind: _figures(precision[:, :, [k]], recall[:, [k]])
                    for kind, (precision, recall) in arrays.items()
                },
            }
            for k, category in enumerate(sorted(truth.cats))
        ]
        return DetectionMetrics({kind: _figures(*both) for kind, both in arrays.items()}, classes)

    def _truth(self) -> list[dict[str, Any]]:
        """Return the annotations as copies that the library may write into, numbered from 1.

        COCO's matching takes the id 0 for "no match", and an id that stands twice for one object.
        """
        return [
            {
                "iscrowd": 0,
                "area": annotation["bbox"][2] * annotation["bbox"][3],
                **annotation,
                "id": number,
            }
            for number, annotation in enumerate(self.annotations["annotations"], 1)
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
    """Return (N, 1, H, W) masks, true over 0.5, as COCO's compressed run lengths.

    Each is ``{"size": [H, W], "counts": str}``, which JSON takes as it is.
    """
    if not len(masks):
        return []
    # Columns first, as COCO's run lengths go.
    bits = (masks[:, 0] > 0.5).to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()
    encoded = mask_library().encode(bits.transpose(2, 1, 0))
    return [{"size": list(one["size"]), "counts": _text(one["counts"])} for one in encoded]


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def _figures(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Return COCO's twelve; its axes: 10 IoU thresholds, all/small/medium/large, 1/10/100 detections."""
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
        for name, value in zip(FIGURES, known, strict=True)
    }


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """The library makes an object for each image and class: Python would search them all, often."""
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
            "COCO's figures need faster-coco-eval: pip install 'ecanet[detection]'"
        ) from None
    return COCO, COCOeval_faster


def mask_library() -> Any:
    _library()
    from faster_coco_eval.core import mask

    return mask
