"""Runs on several devices: real processes that train, fail, are interrupted and lose their parent."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import untimed
from helpers.waiting import wait_until

from ecanet.config import Augmentation, ClassificationSettings, Optimizer
from ecanet.data import load_data
from ecanet.errors import Preempted, UserError
from ecanet.training.classification import resolve
from ecanet.training.processes import spawn_ranks
from ecanet.training.task import Hooks
from ecanet.training.train import train_in_study

SETTINGS = ClassificationSettings(
    data="digits",
    model="plain_cnn",
    plugin=[str(Path(__file__).parents[1] / "helpers" / "plain_cnn.py")],
    epochs=2,
    batch_size=256,
    device="cpu",
    precision="float32",
    compile="off",
    augmentation=Augmentation(flip=False, crop_padding=1),
    optimizer=Optimizer(lr=0.05),
)


def on_two(task: Callable[..., Any], folder: Path, **how: Any) -> Any:
    calls: dict[str, Any] = {"on_epoch": lambda epoch: None, "on_step": lambda: None}
    return spawn_ranks(task, 2, folder, threads=1, **(calls | how))


@pytest.mark.slow
def test_two_devices_train_as_one(tmp_path: Path) -> None:
    """Without batch norm, whose statistics are each device's own, nothing but rounding differs."""
    records, epochs = [], []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        settings = resolve(replace(SETTINGS, devices=devices), load_data("digits"))
        records.append(train_in_study(settings, folder, hooks=Hooks(on_epoch=epochs.append)))
        left = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
        assert left == {
            "metrics.csv", "record.json", "last.safetensors", "predictions.parquet",
        }  # fmt: skip
        # An ended run answers at once.
        assert train_in_study(settings, folder) == records[-1]
    one, two = records
    assert epochs == one.epochs + two.epochs
    for ours, reference in zip([*two.epochs, two.final], [*one.epochs, one.final], strict=True):
        assert untimed(ours) == pytest.approx(untimed(reference), rel=1e-4, abs=1e-5)


def refuse(*_: Any) -> None:
    raise UserError("the data are gone")


def fail(*_: Any) -> None:
    if os.environ["LOCAL_RANK"] == "1":
        raise ValueError("no such\nthing")
    time.sleep(60)


def die(*_: Any) -> None:
    if os.environ["LOCAL_RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "error", "line"),
    [
        (refuse, UserError, "the data are gone"),
        (fail, RuntimeError, "on device 1: ValueError: no such thing"),
        (die, RuntimeError, "was killed by SIGKILL"),
    ],
)
def test_a_failure_in_one_rank_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any, error: type, line: str
) -> None:
    monkeypatch.setattr("ecanet.training.processes._SAVE_SECONDS", 2.0)
    with pytest.raises(error, match=line):
        on_two(task, tmp_path)


def count(folder: Path, on_epoch: Callable[[Any], None], on_step: Callable[[], None]) -> None:
    """Train for ever, a byte per step; leave a file when interrupted."""
    from ecanet.signals import raise_pending

    rank = os.environ["LOCAL_RANK"]
    try:
        while True:
            with (folder / f"steps{rank}").open("a") as steps:
                steps.write(".")
            time.sleep(0.02)
            on_step()
            raise_pending()
    finally:
        (folder / f"ended{rank}").touch()


def steps(folder: Path) -> list[int]:
    return [file.stat().st_size for file in sorted(folder.glob("steps*"))]


@pytest.mark.slow
def test_interrupted_ranks_save_and_exit(tmp_path: Path) -> None:
    def tell() -> None:
        wait_until(lambda: len(steps(tmp_path)) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell).start()
    with pytest.raises(Preempted):
        on_two(functools.partial(count, tmp_path), tmp_path)
    assert len(list(tmp_path.glob("ended*"))) == 2


@pytest.mark.slow
def test_ranks_pause_with_the_caller_and_are_killed_when_it_raises(tmp_path: Path) -> None:
    class Lost(Exception):
        pass

    def on_step() -> None:
        if len(steps(tmp_path)) == 2:
            time.sleep(3.0)  # longer than _PARENT_TIMEOUT
            held = steps(tmp_path)
            time.sleep(0.5)
            assert steps(tmp_path) == held
            raise Lost

    with pytest.raises(Lost):
        on_two(functools.partial(count, tmp_path), tmp_path, on_step=on_step)
    assert not list(tmp_path.glob("ended*"))


def parent(folder: Path) -> None:
    on_two(functools.partial(count, folder), folder)


@pytest.mark.slow
def test_ranks_do_not_outlive_their_parent(tmp_path: Path) -> None:
    process = torch.multiprocessing.get_context("spawn").Process(target=parent, args=[tmp_path])
    process.start()
    wait_until(lambda: len(steps(tmp_path)) == 2)
    process.kill()
    process.join()
    wait_until(lambda: len(list(tmp_path.glob("ended*"))) == 2)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"devices": 3}, "--batch-size 256 is the batch of all 3 devices"),
        ({"devices": 0}, "--devices 0: give a whole number from 1"),
        (
            {"devices": 2, "sync_batchnorm": True},
            "--sync-batchnorm: torch supports it only on GPUs",
        ),
    ],
)
def test_devices_that_cannot_share_are_refused(change: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        resolve(replace(SETTINGS, model="resnet20", **change), load_data("digits"))
