"""The same seed gives the same figures, to the last bit, whatever cores a run gets and who runs beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ecanet.config import RunSettings
from ecanet.data import load_data
from ecanet.data.dataset import channel_statistics
from ecanet.experiments.compare import resolve
from ecanet.experiments.study.plan import ComparePlan, plan_from_dict
from ecanet.training.run import train

IN_MEMORY = ["digits", "--epochs", "1"]
# A small detector, and a small classifier that streams.
DETECTOR = [
    "detect", "train", "shapes", "--recipe", "smoke/shapes", "--epochs", "1", "--limit", "8", "--eval-split",
    "train", "--batch-size", "4", "--workers", "0",
]  # fmt: skip
STREAMED = [
    "train", "DATA", "--model", "eca_resnet18", "--epochs", "1", "--batch-size", "8", "--image-size", "32",
    "--eval-size", "32",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                picture = random.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{i}.jpg")
    return tmp_path / "photos"


def test_the_callers_threads_are_given_back(tmp_path: Path) -> None:
    data = load_data("digits")
    settings = RunSettings(epochs=1, batch_size=512, device="cpu", precision="float32", threads=2)
    before = torch.get_num_threads()
    used: list[int] = []
    train(
        resolve(settings, ["none"], data),
        "none",
        0,
        data,
        tmp_path,
        on_epoch=lambda _: used.append(torch.get_num_threads()),
    )
    assert used == [2]
    assert torch.get_num_threads() == before


def test_the_threads_of_older_plans_are_those_of_their_runs() -> None:
    plan = ComparePlan(RunSettings(), "", [], []).to_dict()
    del plan["settings"]["threads"]
    assert plan_from_dict({**plan, "threads": 3}).settings == replace(RunSettings(), threads=3)


def test_statistics_do_not_depend_on_threads() -> None:
    images = torch.randint(0, 256, (1500, 3, 24, 24), dtype=torch.uint8)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(channel_statistics(images))
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]
    exact = images.double().div(255).transpose(0, 1).flatten(1)
    assert found[0][0] == pytest.approx(exact.mean(1).tolist(), rel=1e-12)
    assert found[0][1] == pytest.approx(exact.std(1, correction=0).tolist(), rel=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a choice of cores")
@pytest.mark.parametrize(
    "command",
    [["train", *IN_MEMORY], STREAMED, DETECTOR],
    ids=["in memory", "streamed", "detector"],
)
def test_training_gives_the_same_on_one_core_and_on_all(
    tmp_path: Path, photos: Path, command: list[str]
) -> None:
    def figures(name: str, cores: set[int], threads: str, *more: str) -> list[dict[str, float]]:
        out = tmp_path / name
        arguments = [str(photos) if a == "DATA" else a for a in command]
        subprocess.run(
            [
                sys.executable, "-m", "ecanet", *arguments, "--device", "cpu", "--precision", "float32",
                "--threads", "2", "--out", str(out), *more,
            ],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            check=True,
            capture_output=True,
        )  # fmt: skip
        epochs = json.loads((out / "record.json").read_text())["epochs"]
        times = ("seconds", "images_per_second")
        return [{k: v for k, v in row.items() if k not in times} for row in epochs]

    cores = os.sched_getaffinity(0)
    first = figures("one", {min(cores)}, "1")
    assert first == figures("all", cores, "2")
    if command is STREAMED:
        assert first == figures("unaided", cores, "2", "--workers", "0"), "nor on who reads"
