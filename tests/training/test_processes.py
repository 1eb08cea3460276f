"""Runs on several devices: real processes, which train, fail, are told to stop and lose their parent."""

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

from ecanet.config import Augmentation, Optimizer, RunSettings
from ecanet.data import load_data
from ecanet.errors import Preempted, UserError
from ecanet.experiments.compare import resolve
from ecanet.training.processes import train_on_devices
from ecanet.training.run import train

SETTINGS = RunSettings(
    data="digits",
    model="plain_cnn",
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
    return train_on_devices(task, 2, folder, threads=1, **(calls | how))


def digits_run(
    folder: Path,
    settings: RunSettings,
    on_epoch: Callable[[Any], None],
    on_step: Callable[[], None] = lambda: None,
) -> Any:
    from helpers import plain_cnn  # noqa: F401 registers the model

    data = load_data("digits")
    return train(settings, "none", 0, data, folder, on_epoch=on_epoch, on_step=on_step)


@pytest.mark.slow
def test_two_devices_train_as_one(tmp_path: Path) -> None:
    """Without batch norm, whose statistics are each device's own, nothing but rounding differs."""
    one = digits_run(tmp_path / "one", SETTINGS, lambda epoch: None)
    epochs: list[Any] = []
    settings = replace(SETTINGS, devices=2)
    (tmp_path / "two").mkdir()
    task = functools.partial(digits_run, tmp_path / "two", settings)
    two = on_two(task, tmp_path / "two", on_epoch=epochs.append)
    assert two.epochs == epochs
    for ours, reference in zip(two.epochs, one.epochs, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            value = getattr(reference, name)
            assert getattr(ours, name) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert two.final.test_loss == pytest.approx(one.final.test_loss, rel=1e-4)
    assert {f.name for f in (tmp_path / "two").iterdir() if not f.name.startswith(".")} == {
        "metrics.csv",
        "record.json",
    }
    # An ended run answers at once.
    assert on_two(task, tmp_path / "two") == two


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


@pytest.mark.parametrize(
    ("task", "error", "line"),
    [
        (refuse, UserError, "the data are gone"),
        pytest.param(
            fail, RuntimeError, "on device 1: ValueError: no such thing", marks=pytest.mark.slow
        ),
        pytest.param(die, RuntimeError, "was killed by SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_what_fails_in_one_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any, error: type, line: str
) -> None:
    monkeypatch.setattr("ecanet.training.processes._TO_SAVE", 2.0)
    with pytest.raises(error, match=line):
        on_two(task, tmp_path)


def count(folder: Path, on_epoch: Callable[[Any], None], on_step: Callable[[], None]) -> None:
    """Train for ever, a byte a step; leave a mark when told to stop."""
    from ecanet.signals import obey

    rank = os.environ["LOCAL_RANK"]
    try:
        while True:
            with (folder / f"steps{rank}").open("a") as steps:
                steps.write(".")
            time.sleep(0.02)
            on_step()
            obey()
    finally:
        (folder / f"ended{rank}").touch()


def steps(folder: Path) -> list[int]:
    return [file.stat().st_size for file in sorted(folder.glob("steps*"))]


@pytest.mark.slow
def test_told_to_stop_they_end_in_good_order(tmp_path: Path) -> None:
    def tell() -> None:
        _wait_for(lambda: len(steps(tmp_path)) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell).start()
    with pytest.raises(Preempted):
        on_two(functools.partial(count, tmp_path), tmp_path)
    assert len(list(tmp_path.glob("ended*"))) == 2


@pytest.mark.slow
def test_they_hold_while_the_caller_does_and_write_nothing_once_it_gives_up(tmp_path: Path) -> None:
    class Lost(Exception):
        pass

    def on_step() -> None:
        if len(steps(tmp_path)) == 2:
            time.sleep(3.0)  # longer than they go on without being looked at
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
def test_they_do_not_outlive_their_parent(tmp_path: Path) -> None:
    process = torch.multiprocessing.get_context("spawn").Process(target=parent, args=[tmp_path])
    process.start()
    _wait_for(lambda: len(steps(tmp_path)) == 2)
    process.kill()
    process.join()
    _wait_for(lambda: len(list(tmp_path.glob("ended*"))) == 2)


def _wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"devices": 3}, "--batch_size 256 is the batch of all 3 devices"),
        ({"devices": 0}, "--devices 0: give a whole number from 1"),
    ],
)
def test_devices_that_cannot_share_are_refused(change: dict[str, Any], line: str) -> None:
    settings = replace(SETTINGS, model="resnet20", **change)
    with pytest.raises(UserError, match=line):
        resolve(settings, ["none"], load_data("digits"))
