"""A small run of each task, and what it leaves behind."""

from __future__ import annotations

import csv
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from ecanet.config import (
    Augmentation,
    ClassificationSettings,
    DetectionOptimizer,
    DetectionSchedule,
    DetectionSettings,
    Optimizer,
)
from ecanet.detection.shapes import draw_split

TIMES = ("images_per_second", "seconds", "train_seconds")

# Processes that begin with the imports done, and without the threads of this one.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["ecanet.training.classification", "ecanet.detection.task"])

STREAMED = ClassificationSettings(
    storage="stream",
    model="resnet20",
    attention="eca",
    epochs=3,
    batch_size=8,
    image_size=16,
    augmentation=Augmentation(scale=[0.08, 1.0], mixup=0.2, cutmix=1.0),
    optimizer=Optimizer(lr=0.05),
    ema_decay=0.9,
    drop_rate=0.2,
    save_every=0,
    workers=0,
    threads=1,
    device="cpu",
    precision="float32",
    compile="off",
)
IN_MEMORY = replace(
    STREAMED,
    storage="memory",
    augmentation=Augmentation(crop_padding=2, cutout=4),
    ema_decay=None,
    drop_rate=0.0,
)
DETECTOR = DetectionSettings(
    detector="mask_rcnn",
    model="mobilenet_v2",  # small checkpoints
    attention="eca",
    min_size=[48, 64],
    max_size=64,
    width=16,
    anchor_size=8,
    proposals=20,
    box_samples=16,
    epochs=2,
    batch_size=2,
    lr_batch_size=None,
    optimizer=DetectionOptimizer(lr=0.01),
    schedule=DetectionSchedule(warmup_steps=2),
    clip_grad=10.0,
    save_every=0,
    workers=0,
    threads=1,
    device="cpu",
    precision="float32",
)
TASKS: dict[str, Any] = {"memory": IN_MEMORY, "stream": STREAMED, "detector": DETECTOR}


def draw_colors(root: Path, validation: str = "val") -> Path:
    """Write noisy JPEGs of three classes, each with its color: 45 to train on, 21 to evaluate on."""
    chance = np.random.default_rng(0)
    for label in range(3):
        for split, count in (("train", 15), (validation, 7)):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = chance.integers(0, 120, (20, 24, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root


def draw_shapes(root: Path) -> Path:
    """Write eight images of shapes to train on, and three to evaluate on."""
    draw_split(root, "train", 8, side=64)
    draw_split(root, "val", 3, side=64)
    return root


def settings_of(task: str, folder: Path) -> Any:
    """Return the settings of a run of ``task``, with its images drawn in ``folder``."""
    draw = draw_shapes if task == "detector" else draw_colors
    return replace(TASKS[task], data=str(draw(folder / "images")))


def outcome(out: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """Return the bits of a run's weights, and its ``metrics.csv`` without the times."""
    weights = {
        f"{name}.{key}": tensor.numpy().tobytes()
        for name in ("last", "best")
        for key, tensor in load_file(out / f"{name}.safetensors").items()
    }
    return weights, [untimed(row) for row in read_csv(out / "metrics.csv")]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table with a header."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of metrics without its times."""
    return {name: value for name, value in row.items() if name not in TIMES}
