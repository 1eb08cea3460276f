"""COCO's 24 metrics: ecanet's evaluation beside pycocotools, in one run, as a ratio.

    python benchmarks/detection_evaluation.py PATH/coco128/annotations/instances_train2017.json

The images and their annotations are repeated under new ids up to --images of them. A detector is
imitated: each object is found up to eight times, moved and resized at random, three times in ten under
a wrong name; that makes about 30 detections an image, as many as a real detector gives. Both sides
hold the same detections in memory, masks as run lengths, and are timed from there to the twelve
metrics for boxes and the twelve for masks. They take turns; a side's figure is the median over the
turns, the ratio the median of the ratios turn by turn. All 24 metrics must agree to 1e-6.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sides import in_words, ratio_of, write_record

from ecanet.detection.evaluation import METRICS, CocoEvaluator

KINDS = ("bbox", "segm")


def repeat(annotations: dict[str, Any], count: int) -> dict[str, Any]:
    """Return annotations of ``count`` images: those given, again and again under new ids."""
    of_image = defaultdict(list)
    for annotation in annotations["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    images: list[dict[str, Any]] = []
    repeated: list[dict[str, Any]] = []
    for image in itertools.islice(itertools.cycle(annotations["images"]), count):
        new = len(images) + 1
        images.append({**image, "id": new})
        for annotation in of_image[image["id"]]:
            repeated.append({**annotation, "id": len(repeated) + 1, "image_id": new})
    return {**annotations, "images": images, "annotations": repeated}


def imitate_detector(annotations: dict[str, Any], evaluator: CocoEvaluator, seed: int = 0) -> None:
    """Feed ``evaluator`` with what a middling detector might find."""
    generator = np.random.default_rng(seed)
    coco = quietly(lambda: COCO_of(annotations))
    classes = len(evaluator.category_ids)
    for image in annotations["images"]:
        height, width = image["height"], image["width"]
        boxes, labels, scores, masks = [], [], [], []
        for annotation in coco.imgToAnns[image["id"]]:
            mask = coco.annToMask(annotation)
            left, top, w, h = annotation["bbox"]
            for _ in range(generator.integers(0, 9)):
                # Most lie near the object; some so far that they find nothing.
                x, y = generator.normal(0, 0.1, 2) * (w, h)
                box = np.array([left + x, top + y, left + x + w, top + y + h])
                boxes.append(box + generator.normal(0, 0.05, 4) * (w, h, w, h))
                masks.append(np.roll(mask, (round(y), round(x)), (0, 1)))
                right = generator.random() < 0.7
                true = evaluator.category_ids.index(annotation["category_id"]) + 1
                labels.append(true if right else generator.integers(1, classes + 1))
                # In hundredths, so that some are equal.
                scores.append(round(float(generator.random()), 2))
        empty = np.zeros((0, 1, height, width), np.float32)
        prediction = {
            "boxes": torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores, dtype=torch.float32),
            "masks": torch.from_numpy(np.stack(masks)[:, None] if masks else empty),
        }
        evaluator.update([image["id"]], [prediction])


def COCO_of(annotations: dict[str, Any]) -> COCO:
    """Return pycocotools' index of annotations."""
    coco = COCO()
    coco.dataset = annotations
    coco.createIndex()
    return coco


def quietly(call: Any) -> Any:
    """Call with pycocotools' prints held back."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call()


def by_pycocotools(
    annotations: dict[str, Any], results: dict[str, list[dict[str, Any]]]
) -> dict[str, dict[str, float]]:
    """Return the metrics as the official tools give them."""
    metrics = {}
    coco = COCO_of(annotations)
    for kind in results:
        evaluation = COCOeval(coco, coco.loadRes(results[kind]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        metrics[kind] = dict(zip(METRICS, evaluation.stats.tolist(), strict=True))
    return metrics


def largest_difference(a: dict[str, dict[str, float]], b: dict[str, dict[str, float]]) -> float:
    """Return by how much the metrics differ at most."""
    return max(abs(a[kind][name] - b[kind][name]) for kind in a for name in METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("annotations", type=Path, help="COCO's instances_*.json")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--out", type=Path, help="folder for the record")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    annotations = repeat(json.loads(flags.annotations.read_text()), flags.images)
    evaluator = CocoEvaluator(annotations, [c["id"] for c in annotations["categories"]])
    imitate_detector(annotations, evaluator)
    results = {kind: list(evaluator.results(kind)) for kind in KINDS}
    seconds: dict[str, list[float]] = {"pycocotools": [], "ecanet": []}
    for _ in range(flags.repeats):
        # Both may write into what they get.
        theirs, found = copy.deepcopy((annotations, results))
        began = time.perf_counter()
        official = quietly(lambda: by_pycocotools(theirs, found))  # noqa: B023
        middle = time.perf_counter()
        ours = evaluator.compute().metrics
        seconds["ecanet"].append(time.perf_counter() - middle)
        seconds["pycocotools"].append(middle - began)
        difference = largest_difference(official, ours)
        assert difference < 1e-6, difference
    ratio = ratio_of(*seconds.values())
    record = {
        "what": "COCO's 24 metrics for boxes and masks, from detections in memory",
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio": ratio,
        "largest_difference": difference,
        "metrics": ours,
        "images": flags.images,
        "objects": len(annotations["annotations"]),
        "detections": len(results["bbox"]),
        "repeats": flags.repeats,
    }
    print(f"{flags.images} images, {record['objects']} objects, {record['detections']} detections")
    for name, times in seconds.items():
        print(f"{name:12} {statistics.median(times):6.2f} s")
    print(in_words(ratio))
    print(f"largest difference of the 24 metrics {difference:.1e}")
    write_record(flags.out, "detection-evaluation", record)


if __name__ == "__main__":
    main()
