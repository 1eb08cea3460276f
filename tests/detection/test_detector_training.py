"""Training of detectors: what is theirs alone. What every task keeps to is in training/test_tasks.py."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.news import news
from helpers.runs import DETECTOR, draw_shapes
from PIL import Image

from ecanet.config import (
    DetectionOptimizer,
    DetectionSchedule,
    DetectionSettings,
    EvaluateDetectorSettings,
)
from ecanet.data.stream import ShardedBatchSampler
from ecanet.detection import create_detector, load_detector, save_detector
from ecanet.detection.batches import TrainingImages, collate, shape_groups
from ecanet.detection.dataset import CocoFolder
from ecanet.detection.evaluation import CocoEvaluator, DetectionMetrics, mask_library
from ecanet.detection.inference import evaluate_weights
from ecanet.detection.task import DetectionTask, build_detector, resolve_detector
from ecanet.errors import UserError
from ecanet.record import Record
from ecanet.training.train import train, train_in_study
from ecanet.training.trainer import Trainer


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return draw_shapes(tmp_path / "shapes")


def train_detector(root: Path, out: Path, settings: DetectionSettings = DETECTOR) -> Record:
    return train(replace(settings, data=str(root)), out)


def test_a_run_leaves_what_others_read(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = replace(DETECTOR, keep_epochs=True, ema_decay=0.9, clip_grad=1.0)
    with news() as lines:
        row = train_detector(shapes, out, settings).epochs[-1]
    parts = ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")
    losses = sum(row[f"train_{part}_loss"] for part in parts)
    assert row["train_loss"] == pytest.approx(losses, rel=1e-5)
    assert {f"{kind}_AP{at}" for kind in ("box", "mask") for at in ("", "50", "75")} <= set(row)
    assert "epoch 2/2" in lines[-1]
    detector, file = load_detector(out / "last.safetensors")
    assert file.metadata["epoch"] == "2"
    assert json.loads(file.metadata["metrics"])["box_AP"] == row["box_AP"]
    assert detector.class_names == ["circle", "square", "triangle", "ring"]
    assert detector.transform.min_size == [48, 64]
    assert sorted(p.name for p in (out / "epochs").iterdir()) == [
        "epoch0001.safetensors",
        "epoch0002.safetensors",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_one_detector(shapes: Path, tmp_path: Path) -> None:
    """Each sees its half of each batch, and all images are counted."""
    settings = replace(DETECTOR, data=str(shapes), devices=2, epochs=1)
    settings = DetectionTask.resolve(settings, DetectionTask.read(settings))
    (row,) = train_in_study(settings, tmp_path / "run").epochs
    assert row["train_loss"] > 0
    assert row["images_per_second"] * row["seconds"] == pytest.approx(8, rel=1e-6)


def test_the_rate_is_that_of_the_detector_and_the_batch(shapes: Path, tmp_path: Path) -> None:
    settings = replace(
        DETECTOR, detector="retinanet", proposals=None, box_samples=None, epochs=1,
        lr_batch_size=16, optimizer=DetectionOptimizer(), schedule=DetectionSchedule("constant", 0),
    )  # fmt: skip
    with news() as lines:
        record = train_detector(shapes, tmp_path / "run", settings)
    assert record.epochs[-1]["lr"] == pytest.approx(0.01 * 2 / 16)
    assert "learning rate 0.00125: 0.01 for a batch of 16, times 2/16" in lines
    assert "mask_AP" not in record.final


def test_milestones_are_in_proportion_and_warm_up_is_in_steps(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def step(self: Trainer, batch: Any) -> torch.Tensor:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return torch.zeros(3)

    monkeypatch.setattr(Trainer, "step", step)
    settings = replace(
        DETECTOR, epochs=12, limit=2, detector="faster_rcnn",
        optimizer=DetectionOptimizer(lr=1.0), schedule=DetectionSchedule(warmup_steps=4),
    )  # fmt: skip
    train_detector(shapes, tmp_path / "run", settings)
    expected = [0.001, 0.25075, 0.5005, 0.75025, *[1.0] * 4, *[0.1] * 3, 0.01]
    assert rates == pytest.approx(expected)


def test_images_and_objects_change_together(shapes: Path) -> None:
    folder = CocoFolder(shapes, "train")
    images = TrainingImages(folder, masks=True, flip=True, min_size=[32, 48], max_size=64, seed=1)
    sizes: Counter[int] = Counter()
    flipped = 0
    for epoch in range(12):
        image, target = images[epoch, 2]
        sizes[image.shape[1]] += 1
        for mask, box in zip(target["masks"], target["boxes"], strict=True):
            down, right = torch.nonzero(mask, as_tuple=True)
            inner = torch.tensor([right.min(), down.min(), right.max() + 1, down.max() + 1])
            assert (inner - box).abs().max() <= 1.5
        plain = folder[2][1]["boxes"][0, 0] * image.shape[2] / 64
        flipped += bool((target["boxes"][0, 0] - plain).abs() > 1)
    assert set(sizes) == {32, 48}
    assert 0 < flipped < 12
    again, _ = images[3, 2]
    assert torch.equal(again, images[3, 2][0])
    batch = collate([images[0, 0], images[0, 1 + len(folder)]])
    device = torch.device("cpu")
    for number, (image, target) in enumerate([images[0, 0], images[0, 1 + len(folder)]]):
        assert torch.equal(batch.images(device)[number], image.float() / 255)
        for name in ("boxes", "labels", "masks"):
            assert torch.equal(batch.targets(device)[number][name], target[name])


def test_batches_are_of_one_shape_as_far_as_there_are_enough() -> None:
    groups = [0] * 11 + [1] * 6 + [0] * 2
    order = ShardedBatchSampler(19, 4, shuffle=True, seed=0, groups=groups)
    left_out: Counter[int] = Counter()
    for epoch in range(40):
        order.seek(epoch)
        batches = [[index for _, index in batch] for batch in order]
        assert len(batches) == order.steps == 4
        seen = [index for batch in batches for index in batch]
        assert len(set(seen)) == 16
        left_out.update(groups[index] for index in set(range(19)) - set(seen))
        alike = [batch for batch in batches if len({groups[index] for index in batch}) == 1]
        assert len(alike) >= 3
    assert min(left_out[0], left_out[1]) > 0
    halves = []
    for process in range(2):
        half = ShardedBatchSampler(
            19, 4, shuffle=True, seed=0, groups=groups, process=process, processes=2
        )
        halves.append([[index for _, index in batch] for batch in half])
    order.seek(0)
    whole = [[index for _, index in batch] for batch in order]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(b) for b in whole]


def test_tall_images_are_a_group(shapes: Path) -> None:
    folder = CocoFolder(shapes, "train", limit=3)
    folder.images[1] = {**folder.images[1], "height": 100}
    assert shape_groups(folder, 2) == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm": "frozen"}, "from scratch the loss diverges"),
        ({"norm": "group", "backbone_weights": "x.pth"}, "are for batch norm"),
        ({"pretrained": True, "backbone_weights": "x.pth"}, "give only one"),
        ({"backbone_weights": "nowhere.pth"}, "there is no weight file .*nowhere.pth"),
        ({"weights": "nowhere.pth"}, "there is no weight file .*nowhere.pth"),
        ({"batch_size": 9}, "from 1 to 8"),
        ({"epochs": 0}, "--epochs 0"),
        ({"limit": 0}, "--limit 0"),
        ({"min_size": [8]}, "from 32"),
        ({"max_size": 50}, "at least the largest --min-size"),
        ({"eval_split": "test"}, "give --eval-split train"),
        ({"split": "test"}, "has no annotations of test"),
        ({"attention": "ecca"}, "eca"),
        ({"optimizer": DetectionOptimizer(lr=0)}, "above 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    shapes: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        train_detector(shapes, tmp_path / "run", replace(DETECTOR, **changes))
    assert not (tmp_path / "run").exists()


def test_objects_without_masks_train_boxes_alone(shapes: Path, tmp_path: Path) -> None:
    file = shapes / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="train --detector faster_rcnn"):
        train_detector(shapes, tmp_path / "run", DETECTOR)
    settings = replace(DETECTOR, detector="faster_rcnn", epochs=1)
    assert "box_AP" in train_detector(shapes, tmp_path / "run", settings).final


def test_evaluation_images_without_objects_are_refused(shapes: Path, tmp_path: Path) -> None:
    file = shapes / "annotations/instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(UserError, match="has no objects to evaluate on"):
        train_detector(shapes, tmp_path / "run", DETECTOR)


# ---- beginning with a detector's weights


@pytest.fixture
def own(shapes: Path, tmp_path: Path) -> Path:
    """Return weights of a small RetinaNet without attention, of the shapes' classes."""
    folder = CocoFolder(shapes, "train")
    torch.manual_seed(3)
    detector = create_detector(
        "retinanet", "resnet18", 4, norm="group", width=32, anchor_size=16, min_size=[48, 64],
        max_size=80, class_names=folder.class_names, category_ids=folder.category_ids,
    )  # fmt: skip
    save_detector(tmp_path / "own.safetensors", detector)
    return tmp_path / "own.safetensors"


OPEN = DetectionSettings(
    threads=1, epochs=1, batch_size=2, workers=0, device="cpu", precision="float32"
)


def test_what_no_flag_gives_is_taken_from_the_file(shapes: Path, tmp_path: Path, own: Path) -> None:
    settings = replace(OPEN, weights=str(own), min_size=[64])
    with news() as lines:
        train_detector(shapes, tmp_path / "run", settings)
    assert (
        f"read from {own}: detector retinanet, model resnet18, norm group, max_size 80, width 32, "
        "anchor_size 16"
    ) in lines
    trained, _ = load_detector(tmp_path / "run/last.safetensors")
    kept = {"kind": "retinanet", "backbone": "resnet18", "norm": "group", "width": 32}
    assert kept.items() <= trained.arguments.items()
    assert (trained.arguments["min_size"], trained.arguments["anchor_size"]) == ([64], 16)
    # The same command resumes, or finds nothing left to do.
    train_detector(shapes, tmp_path / "run", settings)


def test_without_a_file_the_defaults_are_those_of_the_papers() -> None:
    settings = resolve_detector(DetectionSettings())
    assert (settings.detector, settings.model, settings.width) == ("mask_rcnn", "eca_resnet50", 256)
    assert (settings.min_size, settings.max_size, settings.anchor_size) == ([800], 1333, 32)


@pytest.mark.parametrize(
    "flags",
    [
        {"width": 64},
        {"norm": "batch"},
        {"norm": "frozen"},
        {"detector": "faster_rcnn"},
        {"detector": "mask_rcnn"},
        {"model": "resnet34"},
        {"attention": "eca"},
    ],
)
def test_a_flag_that_contradicts_the_file_is_refused(
    shapes: Path, tmp_path: Path, own: Path, flags: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"does not fit these settings|is for another backbone"):
        train_detector(shapes, tmp_path / "run", replace(OPEN, weights=str(own), **flags))
    assert not (tmp_path / "run").exists()


def test_a_mask_head_may_be_added(shapes: Path, tmp_path: Path) -> None:
    """Faster R-CNN's weights are a beginning for Mask R-CNN, said by a flag."""
    folder = CocoFolder(shapes, "train")
    detector = create_detector(
        "faster_rcnn", "resnet18", 4, width=16, min_size=48, max_size=64,
        class_names=folder.class_names, category_ids=folder.category_ids,
    )  # fmt: skip
    save_detector(tmp_path / "own.safetensors", detector)
    settings = replace(OPEN, weights=str(tmp_path / "own.safetensors"), detector="mask_rcnn")
    with news() as said:
        built = build_detector(settings, folder)
    assert built.arguments["width"] == 16
    assert "missing from the file: roi_heads.mask_head" in said[-1]
    weight = "roi_heads.box_head.fc6.weight"
    assert torch.equal(built.state_dict()[weight], detector.state_dict()[weight])


# ---- evaluating afterwards


def mixed_sizes(root: Path, split: str) -> None:
    """Widen a split's images by different numbers of black columns: a batch of them needs padding."""
    file = root / f"annotations/instances_{split}.json"
    content = json.loads(file.read_text())
    more = {image["id"]: 9 * (image["id"] % 3) for image in content["images"]}
    for image in content["images"]:
        path = root / split / image["file_name"]
        image["width"] += more[image["id"]]
        Image.open(path).crop((0, 0, image["width"], image["height"])).save(path)
    for annotation in content["annotations"]:
        bits = mask_library().decode(annotation["segmentation"])
        wider = np.pad(bits, ((0, 0), (0, more[annotation["image_id"]])))
        encoded = mask_library().encode(np.asfortranarray(wider))
        annotation["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.5},
        {"detector": "faster_rcnn", "norm": "group", "channels_last": False, "precision": "bf16"},
    ],
)  # fmt: skip
def test_evaluate_finds_what_training_found(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """With the data and the weights alone, to the bit: all else is in the file."""
    for split in ("train", "val"):
        mixed_sizes(shapes, split)
    found: list[list[Any]] = []
    real = CocoEvaluator.compute

    def compute(self: CocoEvaluator) -> DetectionMetrics:
        found.append([list(self.results(kind)) for kind in self.kinds])
        return real(self)

    monkeypatch.setattr(CocoEvaluator, "compute", compute)
    settings = replace(DETECTOR, **changes, optimizer=DetectionOptimizer("adamw", 0.003))
    record = train_detector(shapes, tmp_path / "run", settings)
    evaluation = EvaluateDetectorSettings(
        weights=str(tmp_path / "run/last.safetensors"), device="cpu", workers=0
    )
    with news() as said:
        metrics, _ = evaluate_weights(shapes, evaluation)
    assert len(found) == 3
    assert len(found[-1][0]) > 20
    assert found[-1] == found[-2]
    row = metrics.row()
    assert row == {name: record.final[name] for name in row}
    told = {line for line in said if "using settings of the training" in line}
    assert told == (
        {"using settings of the training: precision bf16, channels_last False"}
        if "precision" in changes
        else set()
    )
