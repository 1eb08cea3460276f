"""Runs on several devices: real processes, which train, fail, are told to stop and lose their parent."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ecanet.config import Augmentation, Optimizer, RunSettings
from ecanet.data import load_data
from ecanet.errors import UserError
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


def digits_run(folder: Path, settings: RunSettings, on_epoch: Callable[[Any], None]) -> Any:
    import plain_cnn  # noqa: F401 registers the model

    return train(settings, "none", 0, load_data("digits"), folder, on_epoch=on_epoch)


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


def refuse(on_epoch: Callable[[Any], None]) -> None:
    raise UserError("the data are gone")


def fail(on_epoch: Callable[[Any], None]) -> None:
    if os.environ["LOCAL_RANK"] == "1":
        raise ValueError("no such\nthing")
    time.sleep(60)


def die(on_epoch: Callable[[Any], None]) -> None:
    if os.environ["LOCAL_RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.parametrize(
    ("task", "error", "line"),
    [
        (refuse, UserError, "the data are gone"),
        (fail, RuntimeError, "on device 1: ValueError: no such thing"),
        (die, RuntimeError, "exit code -9"),
    ],
)
def test_what_fails_in_one_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any, error: type, line: str
) -> None:
    monkeypatch.setattr("ecanet.training.processes._TO_SAVE", 2.0)
    with pytest.raises(error, match=line):
        on_two(task, tmp_path)


def count(folder: Path, on_epoch: Callable[[Any], None]) -> None:
    """Train for ever; leave a mark when told to stop."""
    from ecanet.interrupts import obey

    rank = os.environ["LOCAL_RANK"]
    (folder / f"begun{rank}").touch()
    try:
        while True:
            time.sleep(0.02)
            obey()
    finally:
        (folder / f"ended{rank}").touch()


def test_what_the_caller_raises_ends_them_in_good_order(tmp_path: Path) -> None:
    class Lost(Exception):
        pass

    def on_step() -> None:
        if len(list(tmp_path.glob("begun*"))) == 2:
            raise Lost

    with pytest.raises(Lost):
        on_two(functools.partial(count, tmp_path), tmp_path, on_step=on_step)
    assert len(list(tmp_path.glob("ended*"))) == 2


def parent(folder: Path) -> None:
    on_two(functools.partial(count, folder), folder)


def test_they_do_not_outlive_their_parent(tmp_path: Path) -> None:
    process = torch.multiprocessing.get_context("spawn").Process(target=parent, args=[tmp_path])
    process.start()
    _wait_for(lambda: len(list(tmp_path.glob("begun*"))) == 2)
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
