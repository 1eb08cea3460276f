"""The same seed gives the same metrics, to the last bit, whatever cores a run gets and who runs beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import draw_colors, untimed

from ecanet.config import ClassificationSettings
from ecanet.data.dataset import channel_statistics
from ecanet.training.task import Hooks
from ecanet.training.train import train

IN_MEMORY = ["digits", "--epochs", "1"]
# A small detector, and a small classifier that streams.
DETECTOR = [
    "detect", "train", "shapes", "--recipe", "smoke/shapes", "--epochs", "1", "--limit", "8", "--eval-split",
    "train", "--batch-size", "4", "--workers", "0",
]  # fmt: skip
STREAMED = [
    "train", "DATA", "--model", "eca_resnet18", "--epochs", "1", "--batch-size", "8", "--image-size", "32",
    "--storage", "stream",
]  # fmt: skip


def test_the_callers_threads_are_given_back(tmp_path: Path) -> None:
    settings = ClassificationSettings(
        epochs=1, batch_size=512, device="cpu", precision="float32", threads=2
    )
    before = torch.get_num_threads()
    used: list[int] = []
    train(settings, tmp_path, hooks=Hooks(on_epoch=lambda _: used.append(torch.get_num_threads())))
    assert used == [2]
    assert torch.get_num_threads() == before


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
def test_training_gives_the_same_on_one_core_and_on_all(tmp_path: Path, command: list[str]) -> None:
    photos = draw_colors(tmp_path / "photos")

    def metrics(name: str, cores: set[int], threads: str, *more: str) -> list[dict[str, float]]:
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
        return [untimed(row) for row in epochs]

    cores = os.sched_getaffinity(0)
    first = metrics("one", {min(cores)}, "1")
    assert first == metrics("all", cores, "2")
    if command is STREAMED:
        assert first == metrics("unaided", cores, "2", "--workers", "0"), "nor on who reads"
