"""COCO's metrics: against pycocotools, by hand, and over several processes."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ecanet.detection.evaluation import METRICS, CocoEvaluator, encode_masks

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 90, 120


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """Return benchmarks/detection_evaluation.py: it imitates detectors and asks pycocotools."""
    pytest.importorskip("pycocotools")
    file = ROOT / "benchmarks" / "detection_evaluation.py"
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location("detection_evaluation", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def annotations(images: int = 12, first_id: int = 1) -> dict[str, Any]:
    """Return rectangles of several sizes as polygons and as run lengths, some of them crowds.

    Image 3 is without objects, category 90 too; ids of categories have holes.
    """
    generator = np.random.default_rng(7)
    objects: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(0 if image == 3 else generator.integers(1, 7)):
            w, h = generator.integers(6, 70, 2).tolist()
            x, y = generator.integers(0, [WIDTH - w, HEIGHT - h]).tolist()
            crowd = int(generator.random() < 0.2)
            objects.append(
                {
                    "id": len(objects) + first_id,
                    "image_id": image,
                    "category_id": int(generator.choice([3, 17, 44])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": crowd,
                    "segmentation": run_lengths(x, y, w, h)
                    if crowd or generator.random() < 0.3
                    else [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    return {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "annotations": objects,
        "categories": [{"id": number, "name": f"class {number}"} for number in (3, 17, 44, 90)],
    }


def run_lengths(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    bits = mask.T.ravel()
    edges = np.flatnonzero(np.diff(bits, prepend=0, append=bits[-1])).tolist()
    ends = [0, *edges, len(bits)]
    return {"size": [HEIGHT, WIDTH], "counts": [b - a for a, b in itertools.pairwise(ends)]}


def perfect(data: dict[str, Any], image: int) -> dict[str, torch.Tensor]:
    """Return predictions that are the annotations."""
    ids = [category["id"] for category in data["categories"]]
    mine = [o for o in data["annotations"] if o["image_id"] == image and not o["iscrowd"]]
    masks = torch.zeros(len(mine), 1, HEIGHT, WIDTH)
    for mask, o in zip(masks, mine, strict=True):
        x, y, w, h = o["bbox"]
        mask[0, y : y + h, x : x + w] = 1
    xywh = torch.tensor([o["bbox"] for o in mine], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
        "labels": torch.tensor([ids.index(o["category_id"]) + 1 for o in mine], dtype=torch.int64),
        "scores": torch.ones(len(mine)),
        "masks": masks,
    }


def evaluator(data: dict[str, Any]) -> CocoEvaluator:
    return CocoEvaluator(data, [category["id"] for category in data["categories"]])


def holds_against_pycocotools(benchmark: ModuleType, data: dict[str, Any]) -> CocoEvaluator:
    ours = evaluator(data)
    before = copy.deepcopy(data)
    benchmark.imitate_detector(data, ours)
    results = {kind: list(ours.results(kind)) for kind in ("bbox", "segm")}
    metrics = ours.compute().metrics
    theirs = benchmark.quietly(lambda: benchmark.by_pycocotools(copy.deepcopy(before), results))
    assert benchmark.largest_difference(theirs, metrics) < 1e-6
    assert 0.05 < metrics["bbox"]["AP"] < 0.95, "nothing is shown by metrics at the ends"
    assert 0.05 < metrics["segm"]["AP"] < 0.95
    return ours


def test_all_24_metrics_on_real_objects(benchmark: ModuleType, real_data: Path) -> None:
    file = real_data / "coco128" / "annotations" / "instances_train2017.json"
    holds_against_pycocotools(benchmark, json.loads(file.read_text()))


def test_all_24_metrics_and_each_class_as_if_it_stood_alone(benchmark: ModuleType) -> None:
    data = annotations(40)
    assert {type(o["segmentation"]) for o in data["annotations"]} == {list, dict}
    assert any(o["iscrowd"] for o in data["annotations"])
    ours = holds_against_pycocotools(benchmark, data)
    classes = ours.compute().classes
    assert [c["id"] for c in classes] == [3, 17, 44, 90]
    assert set(classes[3]["bbox"].values()) == {-1.0}
    for one in classes[:3]:
        alone = {**data, "categories": [c for c in data["categories"] if c["id"] == one["id"]]}
        alone["annotations"] = [o for o in data["annotations"] if o["category_id"] == one["id"]]
        results = {
            kind: [r for r in ours.results(kind) if r["category_id"] == one["id"]]
            for kind in ("bbox", "segm")
        }
        theirs = benchmark.quietly(lambda: benchmark.by_pycocotools(alone, results))  # noqa: B023
        assert benchmark.largest_difference(theirs, {k: one[k] for k in theirs}) < 1e-6
        assert one["objects"] == sum(not o["iscrowd"] for o in alone["annotations"])


@pytest.mark.parametrize("first_id", [0, 1])
def test_what_is_all_found_scores_one_whatever_the_numbering(first_id: int) -> None:
    data = annotations(first_id=first_id)
    data["annotations"][5]["id"] = data["annotations"][6]["id"]  # as in sets put together by hand
    untouched = copy.deepcopy(data)
    ours = evaluator(data)
    for image in range(1, 13):
        ours.update([image], [perfect(data, image)])
    metrics = ours.compute()
    assert data == untouched
    assert metrics.metrics["bbox"]["AP"] == metrics.metrics["segm"]["AP"] == 1
    # No annotation is large: there is nothing to say about large ones.
    assert metrics.row()["box_APl"] == -1
    assert list(metrics.row()) == [f"{kind}_{name}" for kind in ("box", "mask") for name in METRICS]


def test_nothing_found_is_zero_and_nothing_there_is_undefined() -> None:
    data = annotations()
    ours = evaluator(data)
    assert ours.compute().metrics["segm"]["AP"] == 0
    nothing = {name: tensor[:0] for name, tensor in perfect(data, 1).items()}
    ours.update(range(1, 13), [nothing] * 12)
    assert ours.compute().metrics["bbox"]["AR100"] == 0
    empty = evaluator({**data, "annotations": []})
    empty.update([1], [perfect(data, 1)])
    assert set(empty.compute().row().values()) == {-1.0}


def test_the_results_are_read_by_the_official_tools(benchmark: ModuleType, tmp_path: Path) -> None:
    data = annotations()
    ours = evaluator(data)
    benchmark.imitate_detector(data, ours)
    written = ours.write_results(tmp_path)
    assert [path.name for path in written] == ["detections.bbox.json", "detections.segm.json"]
    kinds = zip(("bbox", "segm"), written, strict=True)
    results = {kind: json.loads(path.read_text()) for kind, path in kinds}
    theirs = benchmark.quietly(lambda: benchmark.by_pycocotools(data, results))
    assert benchmark.largest_difference(theirs, ours.compute().metrics) < 1e-6


def test_masks_become_run_lengths_and_back() -> None:
    from faster_coco_eval.core import mask

    masks = (torch.rand(5, 1, 31, 17, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    masks[3] = 0
    back = mask.decode(encode_masks(masks)).transpose(2, 0, 1)
    assert np.array_equal(back, masks[:, 0].numpy())
    json.dumps(encode_masks(masks))
    assert encode_masks(masks[:0]) == []


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    data = annotations()
    alone = evaluator(data)
    for image in range(1, 13):
        alone.update([image], [perfect(data, image)] if image % 4 else [perfect(data, 3)])
    (tmp_path / "each.py").write_text(
        "import sys, json, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_evaluation import annotations, evaluator, perfect\n"
        "torch.distributed.init_process_group('gloo')\n"
        "rank = torch.distributed.get_rank()\n"
        "data = annotations()\n"
        "ours = evaluator(data)\n"
        "for image in [*range(1 + rank, 13, 2), 1]:\n"  # image 1 is seen twice
        "    ours.update([image], [perfect(data, image)] if image % 4 else [perfect(data, 3)])\n"
        "row = ours.compute().row()\n"
        "json.dump(row, open(f'{sys.argv[1]}/{rank}.json', 'w'))\n"
    )
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(tmp_path / "each.py"), str(tmp_path)],
        check=True, capture_output=True,
    )  # fmt: skip
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone.compute().row()
    assert 0 < alone.compute().row()["box_AP"] < 1
